"""Many texts at once to numbers, times and identities: what is usual, decoded by the thousand. Pure.

Each answers a list as long as its column, with None for whatever has to be looked at by itself: `values`
says what is accepted, and whether it is refused and why. So nothing here refuses anything, and what is
answered is what `values` would have answered. One call of a compiled decoder for a column takes a tenth of
the time of a call for each text (benchmarks/README.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

import msgspec

import values
from schema import Bad

T = TypeVar("T")


class Told(NamedTuple):
    """What a payload says in numbers, with one time for all, as most devices send them.

    `alone`: there is one value, of the sensor that the topic names, or of this name where it names none.
    None: each value has a name of its own.
    """

    values: Mapping[str, float]
    ts: float | int | None = None
    alone: str | None = None


class _Measured(msgspec.Struct, forbid_unknown_fields=True):
    values: dict[str, float]
    ts: float | int | None = None


_MEASURED = msgspec.json.Decoder(list[_Measured])
_OBJECTS = msgspec.json.Decoder(list[dict[str, float]])
_FLOATS = msgspec.json.Decoder(list[float])
_NUMBERS: msgspec.json.Decoder[list[float]] = msgspec.json.Decoder(list[int | float])
_INTEGERS = msgspec.json.Decoder(list[int])
_MOMENTS = msgspec.json.Decoder(list[datetime])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EXACT = 2.0**53  # a whole number below it is itself as a float
_LONGEST_MOMENT = len("2026-01-02T03:04:05.123456Z")


def numbers(column: Sequence[bytes]) -> list[float | None]:
    """Decimal numbers, as `values.scalar` reads them."""
    if max(map(len, column), default=0) > values.MAX_NUMBER:
        return [_number(one) for one in column]
    return _decoded(column, _FLOATS, _number)


def times(column: Sequence[bytes], latest_us: int) -> list[int | None]:
    """Times as `values.timestamp` and `values.check_time` read them, in microseconds since 1970 UTC."""
    if not column:
        return []
    if column[0][4:5] == b"-":
        found = _moments(column)
    elif max(map(len, column)) > 64 or any(raw != raw.strip() for raw in column):
        found = [None] * len(column)
    else:
        unix: list[float | None] = _decoded(column, _NUMBERS, _passed_over)
        found = _scaled(unix)
    if None not in found and max(found) <= latest_us:  # type: ignore[type-var, operator]
        return found
    return [one if one is not None and one <= latest_us else None for one in found]


def payloads(column: Sequence[bytes]) -> list[Told | None]:
    """Payloads as `payloads.members` reads them: `{"ts": …, "values": {name: number, …}}`, `{name: number,
    …}` with or without a time, and bare numbers.
    """
    objects = [place for place, raw in enumerate(column) if raw[:1] == b"{"]
    found: list[Told | None] = [None] * len(column)
    if len(objects) < len(column):
        bare = [place for place, raw in enumerate(column) if raw[:1] != b"{"]
        for place, number in zip(bare, numbers([column[place] for place in bare]), strict=True):
            if number is not None:
                found[place] = Told({"": number}, None, "")
    for place, told in zip(objects, _objects([column[place] for place in objects]), strict=True):
        found[place] = told
    return found


def _objects(column: Sequence[bytes]) -> list[Told | None]:
    # A text that is not whole by itself could swallow its neighbour: it is left out.
    whole = [raw if b"\\" not in raw and not raw.count(b'"') % 2 else b"" for raw in column]
    nested = [place for place, raw in enumerate(whole) if b'"values"' in raw]
    found: list[Told | None] = [None] * len(column)
    for place, one in _at(nested, whole, _MEASURED):
        if _says_once(column[place], len(one.values) + 2 - (one.ts is None)):
            found[place] = Told(one.values, one.ts)
    flat = range(len(column)) if not nested else sorted({*range(len(column))}.difference(nested))
    for place, numbered in _at(flat, whole, _OBJECTS):
        if _says_once(column[place], len(numbered)):
            found[place] = _with_time(numbered)
    return found


def _at(
    places: Sequence[int], column: Sequence[bytes], decoder: msgspec.json.Decoder[list[T]]
) -> Iterator[tuple[int, T]]:
    found: list[T | None] = _decoded([column[place] for place in places], decoder, _nothing)
    for place, one in zip(places, found, strict=True):
        if one is not None:
            yield place, one


def _says_once(raw: bytes, names: int) -> bool:
    """Whether its text has so many names and no more: none is repeated, and none hides in a value."""
    return raw.count(b":") == raw.count(b'":') == names


def _with_time(numbered: dict[str, float]) -> Told | None:
    """What is left beside the time, as `payloads.members` tells them apart."""
    time = numbered.pop("timestamp", None)
    time = numbered.pop("ts", time)
    alone = "value" if len(numbered) == 1 and "value" in numbered else None
    if not numbered or not -_EXACT < (time or 0.0) < _EXACT:
        return None
    if time is None or not time.is_integer():
        return Told(numbered, time, alone)
    return Told(numbered, int(time), alone)


def unix_times(column: Sequence[float], latest_us: int) -> list[int | None]:
    """Unix times as numbers, as `values.json_time` and `values.check_time` read them."""
    return [one if one is not None and one <= latest_us else None for one in _scaled(column)]


def entry_times(ids: Sequence[bytes], latest_us: int) -> list[int | None]:
    """When Redis took the entries of these IDs in, in microseconds since 1970 UTC."""
    millis = _halves(ids)[::2]
    return [one * 1000 if one * 1000 <= latest_us else None for one in millis]


def identities(ids: Sequence[bytes]) -> list[bytes]:
    """Entry IDs as 16 bytes each."""
    halves = _halves(ids)
    packed = struct.pack(f">{len(halves)}Q", *halves)
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def _halves(ids: Sequence[bytes]) -> list[int]:
    """The two numbers of each entry ID, all in a row. Redis makes the IDs, so all of them are in order."""
    return _INTEGERS.decode(b"[" + b",".join(ids).replace(b"-", b",") + b"]")


def _decoded(
    column: Sequence[bytes], decoder: msgspec.json.Decoder[list[T]], strange: Callable[[bytes], T | None]
) -> list[T | None]:
    """The column as a JSON array. A text that is none by itself goes to `strange`; it is found by
    quartering, which costs little, since the decoder stops where it stands.

    A text with a comma makes the array longer, and no number can make it shorter: so the length tells.
    """
    try:
        found = decoder.decode(b"[" + b",".join(column) + b"]")
        if len(found) == len(column):
            return found  # type: ignore[return-value]
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    if len(column) == 1:
        return [strange(column[0])]
    quarter = -(-len(column) // 4)
    return [
        one
        for start in range(0, len(column), quarter)
        for one in _decoded(column[start : start + quarter], decoder, strange)
    ]


def _moments(column: Sequence[bytes]) -> list[int | None]:
    """RFC 3339 to microseconds. What the decoder might read otherwise than `values` does is passed over."""
    if max(map(len, column)) > _LONGEST_MOMENT or any(b"\\" in raw or raw[-1:] != b"Z" for raw in column):
        return [None] * len(column)
    try:
        found = _MOMENTS.decode(b'["' + b'","'.join(column) + b'"]')
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [None] * len(column)
    if len(found) != len(column):
        return [None] * len(column)
    micros = [(one - _EPOCH) // _MICROSECOND for one in found]
    return [one if one >= 0 else None for one in micros]


def _passed_over(_: bytes) -> float | None:
    return None


def _nothing(_: bytes) -> None:
    return None


def _number(raw: bytes) -> float | None:
    try:
        return values.scalar(raw)[0]
    except Bad:
        return None


def _scaled(found: Sequence[float | None]) -> list[int | None]:
    """Unix times to microseconds. Their unit is told by their size, and usually the same for all."""
    if found and set(map(type, found)) == {int}:
        known: Sequence[int] = found  # type: ignore[assignment]
        low, high, least = min(known), max(known), 0
        for bound, multiplier, divisor in values.UNITS:
            if least <= low and high < bound:
                if divisor == 1:
                    return [one * multiplier for one in known]
                return [one // divisor for one in known]
            least = bound
    return [None if one is None else _unix_time(str(one).encode()) for one in found]


def _unix_time(raw: bytes) -> int | None:
    try:
        return values.timestamp(raw)
    except Bad:
        return None
