"""The values of EMQX's rule SQL: functions, conditions, FOREACH. Refuses what deploy/emqx does not use.

Follows EMQX 6.3: emqx_rule_runtime, emqx_rule_funcs, emqx_rule_maps. Values: bytes for binaries, str for
the keys of maps, None for JSON's null, `UNDEFINED` for what is not there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.emqx_sql import UNDEFINED, Call, Case, Const, Field, Path, Rule, Unknown

Columns = Mapping[str, Any]


class RuleFailed(Exception):
    """EMQX counts `failed.exception`; the message reaches no action and no fallback."""


# Functions


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


# Expressions


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
