"""EMQX's rule SQL, exactly the subset that deploy/emqx uses. Refuses anything else with `Unknown`.

Follows rulesql 0.2.1 and, of EMQX 6.3, emqx_rule_runtime, emqx_rule_funcs and emqx_rule_maps. Values: bytes
for binaries, str for the keys of maps, None for JSON's null, `UNDEFINED` for what is not there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

UNDEFINED = object()
Columns = Mapping[str, Any]


class RuleFailed(Exception):
    """EMQX counts `failed.exception`; the message reaches no action and no fallback."""


class Unknown(Exception):
    """The rules use something that this evaluator does not know."""


# Text to trees

_KEYWORDS = frozenset(
    {"select", "foreach", "do", "incase", "from", "where", "as", "case", "when", "then", "else", "end"}
    | {"and", "or", "not", "in", "div"}
)
_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>'[^']*') | (?P<quoted>"[^"]*") | (?P<compare><>|!=|<=|>=|=|<|>)
      | (?P<mark>[(),.]) | (?P<number>[0-9]+(?![0-9.])) | (?P<name>[A-Za-z][A-Za-z0-9_$@~]*)""",
    re.VERBOSE,
)


class Token(NamedTuple):
    kind: str
    text: str


def _tokens(sql: str) -> Iterator[Token]:
    at = 0
    while at < len(sql):
        found = _TOKEN.match(sql, at)
        if not found or not found.lastgroup:
            raise Unknown(f"not in the grammar: {sql[at : at + 30]!r}")
        at = found.end()
        if found.lastgroup == "name" and found[0].lower() in _KEYWORDS:
            yield Token("keyword", found[0].lower())
        elif found.lastgroup != "space":
            yield Token(found.lastgroup, found[0])
    yield Token("end", "")


@dataclass(frozen=True, slots=True)
class Const:
    value: Any


@dataclass(frozen=True, slots=True)
class Path:
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class Case:
    branches: tuple[tuple[Any, Any], ...]
    otherwise: Any


class Field(NamedTuple):
    expression: Any
    alias: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One statement. `item` is set for a FOREACH: what a row of its collection is called."""

    fields: tuple[Field, ...]
    filters: tuple[str, ...]
    where: Any = None
    item: str = ""
    collection: Any = None
    incase: Any = None


class _Reader:
    def __init__(self, sql: str) -> None:
        self._tokens = list(_tokens(sql))

    def _take(self, kind: str, text: str | None = None) -> str:
        found = self._tokens[0]
        if found.kind != kind or (text is not None and found.text != text):
            raise Unknown(f"expected {text or kind}, got {found.text!r}")
        return self._tokens.pop(0).text

    def _next(self, kind: str, text: str | None = None) -> bool:
        found = self._tokens[0]
        if found.kind == kind and (text is None or found.text == text):
            self._tokens.pop(0)
            return True
        return False

    def rule(self) -> Rule:
        item, collection, incase = "", None, None
        if self._next("keyword", "foreach"):
            collection, item = self._field()
            self._take("keyword", "do")
        else:
            self._take("keyword", "select")
        fields = self._list(self._field)
        if item and self._next("keyword", "incase"):
            incase = self._condition()
        self._take("keyword", "from")
        filters = self._list(lambda: self._take("quoted")[1:-1])
        where = self._condition() if self._next("keyword", "where") else None
        self._take("end")
        return Rule(tuple(fields), tuple(filters), where, item, collection, incase)

    def _list(self, one: Callable[[], Any]) -> list[Any]:
        found = [one()]
        while self._next("mark", ","):
            found.append(one())
        return found

    def _field(self) -> Field:
        expression = self._case() if self._next("keyword", "case") else self._expression()
        if self._next("keyword", "as"):
            return Field(expression, self._take("name"))
        if isinstance(expression, Path) and len(expression.keys) == 1:
            return Field(expression, expression.keys[0])
        raise Unknown("a field without a name of its own gets one that changes every time")

    def _condition(self) -> Any:
        left = self._conjunction()
        while self._next("keyword", "or"):
            left = Binary("or", left, self._conjunction())
        return left

    def _conjunction(self) -> Any:
        left = self._comparison()
        while self._next("keyword", "and"):
            left = Binary("and", left, self._comparison())
        return left

    def _comparison(self) -> Any:
        left = self._expression()
        if self._tokens[0].kind != "compare":
            return left
        return Binary(self._take("compare"), left, self._expression())

    def _case(self) -> Case:
        branches = []
        while self._next("keyword", "when"):
            condition = self._condition()
            self._take("keyword", "then")
            branches.append((condition, self._expression()))
        otherwise = self._expression() if self._next("keyword", "else") else Const(UNDEFINED)
        self._take("keyword", "end")
        return Case(tuple(branches), otherwise)

    def _expression(self) -> Any:
        if self._tokens[0].kind == "string":
            return Const(self._take("string")[1:-1].encode())
        if self._tokens[0].kind == "number":
            return Const(int(self._take("number")))
        keys = [self._take("name")]
        if keys in (["true"], ["false"]):
            raise Unknown(f"the literal {keys[0]}")
        if self._next("mark", "("):
            if self._next("mark", ")"):
                raise Unknown(f"{keys[0]}() without arguments")
            arguments = self._list(self._expression)
            self._take("mark", ")")
            return Call(keys[0], tuple(arguments))
        while self._next("mark", "."):
            keys.append(self._take("name"))
        return Path(tuple(keys))


def parse_rule(sql: str) -> Rule:
    """One statement as a tree. Raises: `Unknown` for what deploy/emqx has no need of."""
    return _Reader(sql).rule()


# Trees to values


def _need(condition: bool) -> None:
    if not condition:
        raise RuleFailed("bad_sql_function_argument")


def _nth(index: Any, items: Any) -> Any:
    _need(type(index) is int and isinstance(items, list) and 1 <= index <= len(items))
    return items[index - 1]


def _split(text: Any, separator: Any, option: Any) -> list[bytes]:
    _need(isinstance(text, bytes) and isinstance(separator, bytes))
    if option != b"notrim":
        raise Unknown(f"split with {option!r}")
    return list(text.split(separator))


def _tokens_of(text: Any, separators: Any) -> list[bytes]:
    _need(isinstance(text, bytes))
    return [part for part in re.split(b"[" + re.escape(separators) + b"]", text) if part]


def _replace(text: Any, pattern: Any, replacement: Any) -> bytes:
    _need(all(isinstance(one, bytes) for one in (text, pattern, replacement)))
    return bytes(text.replace(pattern, replacement))


def _sha256(text: Any) -> bytes:
    _need(isinstance(text, bytes))
    return hashlib.sha256(text).hexdigest().encode()


def _hexstr2bin(text: Any) -> bytes:
    _need(isinstance(text, bytes))
    return bytes.fromhex(text.decode().rjust(len(text) + len(text) % 2, "0"))


def _subbits(bits: Any, start: Any, length: Any) -> Any:
    """Unsigned, big-endian, from the bit `start`, which counts from 1; what is left, where it is less."""
    _need(isinstance(bits, bytes) and type(start) is int and type(length) is int)
    size = 8 * len(bits) - (start - 1)
    if size <= 0:
        return UNDEFINED
    rest = int.from_bytes(bits, "big") & ((1 << size) - 1)
    return rest >> (size - length) if length <= size else rest


def _mod(value: Any, by: Any) -> int:
    _need(type(value) is int and type(by) is int and by != 0)
    return int(abs(value) % abs(by) * (1 if value >= 0 else -1))


def _base64(text: Any) -> bytes:
    _need(isinstance(text, bytes))
    return base64.b64encode(text)


def _map_to_entries(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, bytes):
        value = decode_json(value)
    if not isinstance(value, dict):
        raise RuleFailed("badarg")
    return [{"key": key.encode(), "value": one} for key, one in value.items()]


def _coalesce(first: Any, second: Any) -> Any:
    return second if first is UNDEFINED else first


def _is_num(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "base64_encode": _base64,
    "coalesce": _coalesce,
    "hexstr2bin": _hexstr2bin,
    "is_not_null_var": lambda value: value is not UNDEFINED and value is not None,
    "is_num": _is_num,
    "json_encode": lambda value: encode_json(value),
    "map_to_entries": _map_to_entries,
    "mod": _mod,
    "nth": _nth,
    "replace": _replace,
    "sha256": _sha256,
    "split": _split,
    "subbits": _subbits,
    "tokens": _tokens_of,
}


def decode_json(raw: bytes) -> Any:
    """As jiffy does: strings are binaries; NaN, and numbers that no double holds, are refused."""

    def refuse(word: str) -> None:
        raise RuleFailed(f"decode_json_failed: {word}")

    def number(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            refuse(digits)
        return value

    try:
        return _binaries(json.loads(raw.decode(), parse_constant=refuse, parse_float=number))
    except (ValueError, RecursionError):
        raise RuleFailed("decode_json_failed") from None


def _binaries(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [_binaries(one) for one in value]
    if isinstance(value, dict):
        return {key: _binaries(one) for key, one in value.items()}
    return value


def encode_json(value: Any) -> bytes:
    """As jiffy does with `force_utf8`: bytes that are no UTF-8 are replaced."""

    def texts(one: Any) -> Any:
        if isinstance(one, bytes):
            return one.decode("utf-8", "replace")
        if one is UNDEFINED:
            return "undefined"
        if isinstance(one, list):
            return [texts(inner) for inner in one]
        if isinstance(one, dict):
            return {key: texts(inner) for key, inner in one.items()}
        return one

    return json.dumps(texts(value), ensure_ascii=False, separators=(",", ":")).encode()


def _descend(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if isinstance(value, bytes):
            try:
                value = decode_json(value)
            except RuleFailed:
                return UNDEFINED
        value = value.get(key, UNDEFINED) if isinstance(value, dict) else UNDEFINED
    return value


def evaluate(tree: Any, columns: Columns) -> Any:
    """The value of an expression. Raises: `RuleFailed`, where EMQX gives the message up; `Unknown`."""
    if isinstance(tree, Const):
        return tree.value
    if isinstance(tree, Path):
        first, *rest = tree.keys
        value = columns.get(first, UNDEFINED)
        if first == "payload" and rest and isinstance(value, bytes):
            value = decode_json(value)  # here a payload that is no JSON fails the rule
        return _descend(value, rest)
    if isinstance(tree, Call):
        if tree.name not in FUNCTIONS:
            raise Unknown(f"the function {tree.name}")
        arguments = [evaluate(argument, columns) for argument in tree.arguments]
        try:
            return FUNCTIONS[tree.name](*arguments)
        except TypeError:
            raise Unknown(f"{tree.name} with {len(arguments)} arguments") from None
    if isinstance(tree, Case):
        for condition, value in tree.branches:
            if evaluate(condition, columns) is True:
                return evaluate(value, columns)
        return evaluate(tree.otherwise, columns)
    return _compare(tree, columns)


def _compare(tree: Any, columns: Columns) -> bool:
    left = evaluate(tree.left, columns)
    if tree.operator == "and":
        return left is True and evaluate(tree.right, columns) is True
    if tree.operator == "or":
        return left is True or evaluate(tree.right, columns) is True
    right = evaluate(tree.right, columns)
    if not isinstance(left, bytes) or not isinstance(right, bytes) or tree.operator not in ("=", "<>"):
        raise Unknown(f"{tree.operator} of other things than two strings")
    return (left == right) is (tree.operator == "=")


def matches(topic: str, pattern: str) -> bool:
    """MQTT 3.1.1, 4.7: `+` is one level, perhaps empty; it takes no $ at the beginning."""
    if "#" in pattern:
        raise Unknown("a filter with #")
    levels, wanted = topic.split("/"), pattern.split("/")
    if topic.startswith("$") and wanted[0] == "+":
        return False
    return len(levels) == len(wanted) and all(
        w in ("+", level) for w, level in zip(wanted, levels, strict=True)
    )


def apply(rule: Rule, columns: Columns) -> list[dict[str, Any]]:
    """What the rule hands to its actions, one map each. Raises: `RuleFailed`."""
    if not rule.item:
        selected = _select(rule.fields, columns)
        met = rule.where is None or evaluate(rule.where, {**columns, **selected}) is True
        return [selected] if met else []
    rows = evaluate(rule.collection, columns)
    columns = {**columns, rule.item: rows}
    if rule.where is not None and evaluate(rule.where, columns) is not True:
        return []
    found = []
    for row in rows if isinstance(rows, list) else []:
        with_row = {**columns, rule.item: row}
        if rule.incase is None or evaluate(rule.incase, with_row) is True:
            found.append(_select(rule.fields, with_row))
    return found


def _select(fields: Sequence[Field], columns: Columns) -> dict[str, Any]:
    """Left to right: an alias is seen by the fields after it, before the column of the same name."""
    selected: dict[str, Any] = {}
    for field in fields:
        selected[field.alias] = evaluate(field.expression, {**columns, **selected})
    return selected
