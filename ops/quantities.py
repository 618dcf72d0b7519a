"""Numbers and durations as people write them, and back. Pure."""

from __future__ import annotations

import json
import re
from typing import TypeAlias

import values
from ops.output import excerpt
from schema import Bad

Raw: TypeAlias = str | int | float | bool | None
MAX_SECONDS = 1e9
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(.*[0-9.])\s*([smhd])", re.DOTALL)


def finite(raw: Raw, *, duration: bool = False) -> float:
    """A finite number, given as one or as text. Raises `ValueError` with a sentence that follows a name."""
    takes = "a duration such as 90, 90s, 5m, 2h or 1d" if duration else "a number such as 21.5 or -3"
    try:
        if isinstance(raw, bool) or raw is None:
            raise ValueError(f"is {shown(raw)}; it takes {takes}")
        if not isinstance(raw, str):
            return values.finite(float(raw))
        match = _DURATION.fullmatch(raw.strip()) if duration else None
        if match:
            return values.finite(values.number(match[1].encode()) * _UNITS[match[2]])
        return values.number(raw.encode("utf-8", "replace"))
    except OverflowError:
        raise ValueError(f"is beyond the range of a double; it takes {takes}") from None
    except Bad as bad:
        raise ValueError(f"is {shown(raw)}: {bad.sentence}; it takes {takes}") from None


def shown(raw: Raw, longest: int = 40) -> str:
    """What was given, for a sentence about it; cut off after `longest` characters."""
    return f"'{excerpt(raw, longest)}'" if isinstance(raw, str) else excerpt(json.dumps(raw))


def number_text(number: float) -> str:
    """A number that reads back as exactly itself, without a needless `.0`."""
    return repr(number).removesuffix(".0")


def duration_text(seconds: float) -> str:
    """`10m` for 600: in the largest unit that divides it."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0 and seconds < MAX_SECONDS:
            return f"{number_text(seconds / _UNITS[unit])}{unit}"
    return f"{number_text(seconds)}s"
