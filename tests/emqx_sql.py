"""EMQX's rule SQL as trees: the grammar that deploy/emqx uses. Refuses anything else with `Unknown`.

Follows rulesql 0.2.1, the parser of EMQX 6.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

UNDEFINED = object()  # what a variable has that is not there


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
