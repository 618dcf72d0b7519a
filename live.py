"""What is told of new readings as they are stored: which, in how few words, and how it is read again. Pure.

PostgreSQL carries less than 8,000 bytes a notification, so what does not fit is said in fewer words: the
newest reading of each series, else the names of the series, else that there were many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from schema import Reading

VERSION = 1
MAX_BYTES = 7_999  # of one payload in UTF-8: one more and pg_notify refuses it
MAX_PAYLOADS = 4  # for one transaction
MAX_TEXT = 200  # characters; a longer text is left out, and readers fetch it

_LATEST_US = 253_402_300_799_999_999  # the last that a datetime holds: any role of the database may notify
_READINGS = f'{{"v":{VERSION},"readings":['.encode()
_SERIES = f'{{"v":{VERSION},"series":['.encode()
MANY = f'{{"v":{VERSION},"many":true}}'
_END = b"]}"

Series = tuple[str, str]  # device and sensor


class News(NamedTuple):
    """The newest reading of a series among those that one transaction has stored.

    `timestamp_us` is microseconds since 1970 UTC. The table may hold a newer one: compare. Where neither
    value is given, the text is longer than MAX_TEXT: fetch it. `span_us`: how much older than this one the
    oldest is that the transaction has stored of the series.
    """

    device_id: str
    sensor_type: str
    timestamp_us: int
    value: float | None = None
    value_text: str | None = None
    span_us: int = 0


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest readings of some series, each series once."""

    readings: tuple[News, ...]


@dataclass(frozen=True, slots=True)
class Touched:
    """These series have new readings; there were too many to say them."""

    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """Any series may have new readings, or some were missed: read the tables."""


Told = Newest | Touched | Many


def payloads(stored: Sequence[Reading]) -> list[str]:
    """What to say of the readings of one transaction, sorted by key: at most MAX_PAYLOADS notifications.

    Each has at most MAX_BYTES of UTF-8. Together they name each series once, or say that there were many.
    """
    if not stored:
        return []
    last = {(reading[0], reading[1]): number for number, reading in enumerate(stored)}
    said = _packed(_READINGS, _rows(stored, last.values()))
    if said is None:
        said = _packed(_SERIES, last)
    return [MANY] if said is None else said


def _rows(stored: Sequence[Reading], last: Iterable[int]) -> Iterator[tuple[object, ...]]:
    """One for each series, of which `last` has the number of its newest reading: its oldest comes right
    after the newest of the series before.
    """
    first = 0
    for number in last:
        reading = stored[number]
        text = reading.value_text
        if text is not None and len(text) > MAX_TEXT:
            text = None
        row = reading.device_id, reading.sensor_type, reading.timestamp_us, reading.value, text
        span_us = reading.timestamp_us - stored[first].timestamp_us
        yield (*row, span_us) if span_us else row
        first = number + 1


def _packed(head: bytes, rows: Iterable[object]) -> list[str] | None:
    """As few payloads as hold all rows; None where that is more than MAX_PAYLOADS."""
    full: list[str] = []
    for part in _parts(rows, MAX_BYTES - len(head) - len(_END)):
        if len(full) == MAX_PAYLOADS:
            return None
        full.append((head + b",".join(part) + _END).decode())
    return full


def _parts(rows: Iterable[object], room: int) -> Iterator[list[bytes]]:
    """The rows encoded, cut so that each part, with commas between, has at most `room` bytes.

    One row always fits: names have 100 characters, a text 200, a character 6 bytes at most.
    """
    encode = msgspec.json.Encoder().encode
    part: list[bytes] = []
    left = room
    for row in rows:
        encoded = encode(row)
        left -= len(encoded) + 1
        if left < -1 and part:  # the last row has no comma behind it
            yield part
            part, left = [], room - len(encoded) - 1
        part.append(encoded)
    if part:
        yield part


_Micros = Annotated[int, msgspec.Meta(ge=0, le=_LATEST_US)]


class _Row(msgspec.Struct, array_like=True):
    """As `_rows` makes it."""

    device_id: str
    sensor_type: str
    timestamp_us: _Micros
    value: float | None
    value_text: str | None
    span_us: _Micros = 0


class _Payload(msgspec.Struct):
    v: int
    readings: list[_Row] | None = None
    series: list[Series] | None = None


_decoder = msgspec.json.Decoder(_Payload)


def understood(payload: str) -> Told:
    """What a payload says. Whatever this version does not write is `Many`: any role may notify."""
    try:
        found = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Many()
    if found.v != VERSION:
        return Many()
    if "\\u0000" in payload and _holds_nul(found):
        return Many()
    if found.readings is not None:
        return Newest(tuple(News(*msgspec.structs.astuple(row)) for row in found.readings))
    if found.series is not None:
        return Touched(tuple(found.series))
    return Many()


def _holds_nul(found: _Payload) -> bool:
    """No name or text that is stored does, and PostgreSQL takes none as a parameter."""
    rows: list[tuple[object, ...]] = [*map(msgspec.structs.astuple, found.readings or ())]
    rows += found.series or ()
    return any("\0" in one for row in rows for one in row if isinstance(one, str))
