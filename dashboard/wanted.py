"""What a browser asks for, in the address of its WebSocket or of a chart, checked. Pure.

Every function raises `Wrong` with a sentence that names the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from urllib.parse import unquote, unquote_plus

from live import Series
from tables import NAME_LENGTH

CARDS = 24  # series on a page
DEVICES = 12  # devices on a page
MOST_SERIES = 100  # that one browser may name
_MOST_QUERY = 100
_MOST_WORDS = 8
_MOST_PAGE = 1_000_000


class Wrong(Exception):
    """The message is a whole sentence for whoever asked."""


class Parameters:
    """The query of an address, its values as they stand there: `series` has slashes of two kinds."""

    def __init__(self, query: str) -> None:
        self._values: dict[str, list[str]] = {}
        for part in query.split("&"):
            name, _, value = part.partition("=")
            self._values.setdefault(name, []).append(value)

    def getlist(self, name: str) -> Sequence[str]:
        return self._values.get(name, ())


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Which cards and devices are shown. `named`: these series, in place of those that are found."""

    words: tuple[str, ...] = ()
    page: int = 1
    devices_page: int = 1
    named: tuple[Series, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """`after`: what was measured since then is missing in the browser; None: it has nothing."""

    view: View
    after: datetime | None = None


class Range(Enum):
    """How far back a chart looks, in seconds, and how wide its buckets are; 0: readings as they are."""

    LIVE = ("live", 900, 0)
    HOUR = ("1h", 3_600, 15)
    DAY = ("24h", 86_400, 300)
    MONTH = ("30d", 30 * 86_400, 7_200)

    def __init__(self, text: str, seconds: int, bucket_sec: int) -> None:
        self.text = text
        self.seconds = seconds
        self.bucket_sec = bucket_sec


def wanted(given: Parameters) -> Wanted:
    """What a WebSocket asks for: `series`, any number of times, or `q` and `page`; `devices`, `after`."""
    named = tuple(dict.fromkeys(series(text) for text in given.getlist("series")))
    if len(named) > MOST_SERIES:
        raise Wrong(f"series is given {len(named)} times; it may be given {MOST_SERIES} times")
    view = View(
        words=words(_one(given, "q")),
        page=_number(given, "page"),
        devices_page=_number(given, "devices"),
        named=named,
    )
    after = _one(given, "after")
    return Wanted(view=view, after=moment(after) if after else None)


def series(text: str) -> Series:
    """`device/sensor`, each percent-encoded, so that a slash in a name is `%2F`.

    The slash between them may be encoded too, where the device has none in its name.
    """
    device, slash, sensor = (text if "/" in text else unquote(text)).partition("/")
    names = unquote(device), unquote(sensor)
    if not slash or not all(names):
        raise Wrong(f"series is {text[:100]!r}; it takes device/sensor, each percent-encoded")
    for name in names:
        if len(name) > NAME_LENGTH or "\0" in name:
            raise Wrong(
                f"series is {text[:100]!r}; a name has at most {NAME_LENGTH} characters, and no NUL"
            )
    return names


def words(text: str) -> tuple[str, ...]:
    """What is searched for: each word must be there."""
    if len(text) > _MOST_QUERY or "\0" in text:
        raise Wrong(f"q has {len(text)} characters; it takes at most {_MOST_QUERY}, and no NUL")
    return tuple(dict.fromkeys(text.split()))[:_MOST_WORDS]


def moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None or not 1970 <= found.year < 9999:
        raise Wrong(f"after is {text[:40]!r}; it takes a time such as 2026-01-02T03:04:05Z")
    return found.astimezone(UTC)


def chart_range(given: Parameters) -> Range:
    text = _one(given, "range") or Range.LIVE.text
    for one in Range:
        if one.text == text:
            return one
    raise Wrong(f"range is {text[:40]!r}; it takes {', '.join(one.text for one in Range)}")


def chart_series(given: Parameters) -> Series:
    values = given.getlist("series")
    if len(values) != 1:
        raise Wrong(f"series is given {len(values)} times; it takes one device/sensor, percent-encoded")
    return series(values[0])


def _one(given: Parameters, name: str) -> str:
    values = given.getlist(name)
    if len(values) > 1:
        raise Wrong(f"{name} is given {len(values)} times; it may be given once")
    return unquote_plus(values[0]) if values else ""


def _number(given: Parameters, name: str) -> int:
    text = _one(given, name) or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MOST_PAGE):
        raise Wrong(f"{name} is {text[:40]!r}; it takes the number of a page, from 1")
    return int(text)
