"""Dead letters as values, those that an operator means, and reading them in bounded memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import redis

import values
from redis_client import execute
from schema import Bad, Entry

UNREADABLE = "unreadable"  # the reason of what stands in the stream and is no letter of ours
_PAGE_BYTES = 4_000_000
_MOST_ENTRIES = 1_000
_ID = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")
_NAMES = (b"original_stream", b"original_id", b"error", b"failed_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """One entry of the dead-letter stream. `entry`: the original, byte for byte, under its first ID.

    `replays`: how often it had been replayed when it failed; `replayed_id`: the entry that failed then.
    `size`: bytes of the whole letter. One that Sluice has not written has the reason `UNREADABLE`, and
    an entry
    without stream that holds all of its fields.
    """

    id: bytes
    entry: Entry
    reason: str
    sentence: str
    device: str = ""
    sensor: str = ""
    value: str = ""
    failed_at: float = 0.0
    replays: int = 0
    replayed_id: bytes = b""
    size: int = 0

    @property
    def readable(self) -> bool:
        return self.reason != UNREADABLE


def letter_of(letter_id: bytes, raw: Sequence[bytes]) -> Letter:
    """What `settlement.dead_letter_fields` has written, taken apart. Never raises."""
    size = sum(map(len, raw))
    header = _header(raw)
    try:
        stream, original_id, error, failed_at = (header[name] for name in _NAMES)
        replayed_id, replays = header.get(b"replayed_id", b""), int(header.get(b"replays", 0))
        failed = float(failed_at)
        if not _is_id(original_id) or not (replayed_id == b"" or _is_id(replayed_id)):
            raise ValueError(original_id, replayed_id)
        if replays < 0 or not math.isfinite(failed):
            raise ValueError(failed_at)
        reason, _, sentence = _text(error).partition(": ")
        return Letter(
            id=letter_id,
            entry=Entry(stream, original_id, raw[len(raw) - 2 * int(header[b"original_fields"]) :]),
            reason=reason,
            sentence=sentence,
            device=_text(header.get(b"device_id", b"")),
            sensor=_text(header.get(b"sensor_type", b"")),
            value=_text(header.get(b"value", b"")),
            failed_at=failed,
            replays=replays,
            replayed_id=replayed_id,
            size=size,
        )
    except (KeyError, ValueError):
        entry = Entry(b"", letter_id, raw)
        return Letter(id=letter_id, entry=entry, reason=UNREADABLE, sentence="no dead letter", size=size)


def _is_id(raw: bytes) -> bool:
    return bool(_ID.fullmatch(raw)) and max(values.entry_id_parts(raw)) < 2**64


def _header(raw: Sequence[bytes]) -> dict[bytes, bytes]:
    """The fields before the original ones; empty where their number does not fit."""
    for place in range(0, len(raw) - 1, 2):
        if raw[place] == b"original_fields":
            left = len(raw) - place - 2
            if raw[place + 1] == b"%d" % (left // 2):
                return dict(zip(raw[: place + 2 : 2], raw[1 : place + 2 : 2], strict=True))
            break
    return {}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which letters are meant: all that match every one of these. Times in milliseconds since 1970.

    `first_ms` and `last_ms` bound when they failed. None: whatever it is.
    """

    ids: tuple[bytes, ...] = ()
    first_ms: int | None = None
    last_ms: int | None = None
    reasons: re.Pattern[str] | None = None
    devices: re.Pattern[str] | None = None
    sensors: re.Pattern[str] | None = None
    streams: re.Pattern[str] | None = None

    @property
    def everything(self) -> bool:
        return self == Wanted()

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is meant, but for ids and times, which `read` asks Redis for."""
        for pattern, text in (
            (self.reasons, letter.reason),
            (self.devices, letter.device),
            (self.sensors, letter.sensor),
            (self.streams, _text(letter.entry.stream)),
        ):
            if pattern is not None and not pattern.fullmatch(text):
                return False
        return True


def newest_id(client: redis.Redis, stream: str) -> bytes | None:
    """The last letter there is now: a bound that keeps a job from running after those that it makes."""
    found = execute(client, "XREVRANGE", stream, "+", "-", "COUNT", 1)
    return found[0][0] if found else None


def read(
    client: redis.Redis,
    stream: str,
    wanted: Wanted,
    *,
    last: bytes | None = None,
    newest_first: bool = False,
) -> Iterator[Letter]:
    """The letters that are meant, in the order in which they failed, none after `last`. Redis errors pass.

    Letters may be deleted while this goes on. In memory is a page at a time, of some megabytes, or one
    letter.
    """
    rows = (
        _by_id(client, stream, wanted.ids)
        if wanted.ids
        else _rows(client, stream, wanted, last, newest_first)
    )
    for letter_id, fields in rows:
        if wanted.ids and not _within(letter_id, wanted):
            continue
        letter = letter_of(letter_id, fields)
        if wanted.matches(letter):
            yield letter


def _by_id(
    client: redis.Redis, stream: str, ids: Iterable[bytes]
) -> Iterator[tuple[bytes, Sequence[bytes]]]:
    for letter_id in dict.fromkeys(ids):
        for row in execute(client, "XRANGE", stream, letter_id, letter_id):
            yield row[0], row[1]


def _within(letter_id: bytes, wanted: Wanted) -> bool:
    millis = values.entry_id_parts(letter_id)[0]
    first, last = wanted.first_ms, wanted.last_ms
    return (first is None or first <= millis) and (last is None or millis <= last)


def _rows(
    client: redis.Redis, stream: str, wanted: Wanted, last: bytes | None, newest_first: bool
) -> Iterator[tuple[bytes, Sequence[bytes]]]:
    low: bytes | int | str = "-" if wanted.first_ms is None else wanted.first_ms
    high: bytes | int | str = "+" if wanted.last_ms is None else wanted.last_ms
    if last is not None and (wanted.last_ms is None or values.entry_id_parts(last)[0] <= wanted.last_ms):
        high = last
    count = 10
    while True:
        if newest_first:
            page = execute(client, "XREVRANGE", stream, high, low, "COUNT", count)
        else:
            page = execute(client, "XRANGE", stream, low, high, "COUNT", count)
        weight = 0
        for letter_id, fields in page:
            weight += sum(map(len, fields))
            yield letter_id, fields
        if len(page) < count:
            return
        if newest_first:
            high = b"(" + page[-1][0]
        else:
            low = b"(" + page[-1][0]
        count = max(1, min(_MOST_ENTRIES, 2 * count, count * _PAGE_BYTES // max(1, weight)))


def moment(millis: float) -> str:
    """`2026-01-02 03:04:05Z`."""
    try:
        return f"{datetime.fromtimestamp(millis / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (OverflowError, ValueError, OSError):
        return f"{millis:.0f} ms"


def milliseconds(text: str, now_ms: int, ago: re.Pattern[str] = re.compile(r"([0-9.]+)\s*([smhd])")) -> int:
    """A time as operators write it: RFC 3339, Unix time, or a duration (90s, 15m, 2h, 7d): so long ago.

    Raises `ValueError` with what it takes.
    """
    takes = "a time such as 2026-01-02T03:04:05Z, or a duration such as 90s, 15m, 2h or 7d: so long ago"
    units = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    match = ago.fullmatch(text.strip())
    try:
        if match:
            return max(0, now_ms - int(float(match[1]) * units[match[2]]))
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip()):
            text = f"{text.strip()}T00:00:00Z"
        return values.timestamp(text.strip().encode("utf-8", "replace")) // 1000
    except (Bad, ValueError, OverflowError):
        raise ValueError(f"it takes {takes}") from None
