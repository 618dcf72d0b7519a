"""Patterns as users write them, in SQL: the one place that translates them. Pure.

`*` is any text, `?` any one character, all else itself: what `rules.py` makes of them in memory.
"""

from __future__ import annotations

from typing import LiteralString

_SIGNS = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_", "*": "%", "?": "_"})


def like(pattern: str) -> str:
    """The operand of LIKE, with its default escape, that matches what `pattern` matches."""
    return pattern.translate(_SIGNS)


def like_of(column: LiteralString) -> LiteralString:
    """An SQL expression for `like` of a column that holds patterns.

    The order counts: backslashes first, since the others add some.
    """
    return (
        f"replace(replace(replace(replace(replace({column},"
        r" '\', '\\'), '%%', '\%%'), '_', '\_'), '*', '%%'), '?', '_')"
    )


def is_literal(pattern: str) -> bool:
    """Whether `pattern` names one device or sensor."""
    return "*" not in pattern and "?" not in pattern
