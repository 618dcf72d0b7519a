"""What callers send, checked and turned into plain values. Pure.

Every function raises `Refused` with INVALID_ARGUMENT and a sentence that names the argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from query import collector_pb2 as pb
from query.queries import AlertFilter, bucket_count
from query.refusal import Code, Refused
from tables import NAME_LENGTH
from thresholds import Severity, Status

MOST_RAW = timedelta(hours=2)
MOST_BUCKETS = 50_000
MOST_KEYS = 1_000
MOST_PLACES = 10_000
MOST_DELETED = 1_000
MOST_STREAMED = 200
MOST_PER_PAGE = 500
MOST_ALERTS = 1_000_000
_PER_PAGE = 50
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = 253_402_300_799  # of the year 9999

_STATUSES = {pb.ALERT_STATUS_ACTIVE: Status.ACTIVE, pb.ALERT_STATUS_RESOLVED: Status.RESOLVED}
_SEVERITIES = {pb.ALERT_SEVERITY_WARNING: Severity.WARNING, pb.ALERT_SEVERITY_CRITICAL: Severity.CRITICAL}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingsWanted:
    """Measured in [start, end). No `sensors`: all of the device. `interval_sec` 0: as they are."""

    device_id: str
    sensors: tuple[str, ...]
    start: datetime
    end: datetime
    interval_sec: int

    def check_buckets(self, series: int) -> None:
        """Whether so many series make no more buckets than one answer holds."""
        count = bucket_count(self.start, self.end, self.interval_sec) * series
        if count > MOST_BUCKETS:
            raise wrong(
                f"interval_seconds is {self.interval_sec}, which makes {count:,} buckets of {series} series"
                f" from 'from' to 'to'; an answer holds {MOST_BUCKETS:,}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesWanted:
    """`after` None: what is stored from now on."""

    device_id: str
    sensor: str
    after: datetime | None


def wrong(sentence: str) -> Refused:
    return Refused(Code.INVALID_ARGUMENT, sentence)


def device(value: str, name: str = "device_id") -> str:
    return _name(value, name)


def readings_wanted(request: pb.GetReadingsRequest) -> ReadingsWanted:
    sensors = tuple(dict.fromkeys(_name(key, "a key") for key in _few(request.keys, MOST_KEYS, "keys")))
    start, end = _range(request, required=True)
    if start is None or end is None:
        raise AssertionError("required")
    wanted = ReadingsWanted(
        device_id=device(request.device_id),
        sensors=sensors,
        start=start,
        end=end,
        interval_sec=request.interval_seconds,
    )
    if wanted.interval_sec < 0:
        raise wrong(
            f"interval_seconds is {wanted.interval_sec}; it takes the width of a bucket in seconds, or 0"
            " for readings as they are"
        )
    if wanted.interval_sec == 0 and end - start > MOST_RAW:
        raise wrong(
            f"from 'from' to 'to' are {end - start}, but readings as they are come for at most 2 hours; "
            "set interval_seconds for more"
        )
    if wanted.interval_sec:
        wanted.check_buckets(max(1, len(sensors)))
    return wanted


def alerts_wanted(request: pb.GetAlertsRequest) -> tuple[AlertFilter, int, int]:
    """Which alerts, which page, and how many on it."""
    start, end = _range(request, required=False)
    page, per_page = request.page or 1, request.per_page or _PER_PAGE
    if page < 1:
        raise wrong(f"page is {page}; pages are counted from 1")
    if not 1 <= per_page <= MOST_PER_PAGE:
        raise wrong(f"per_page is {per_page}; it takes 1 to {MOST_PER_PAGE}")
    if page * per_page > MOST_ALERTS:
        raise wrong(f"page is {page}, which is beyond the first {MOST_ALERTS:,} alerts; narrow from and to")
    which = AlertFilter(
        place_id=_plain(request.place_id, "place_id"),
        status=_choice(_STATUSES, request.status, "status"),
        severity=_choice(_SEVERITIES, request.severity, "severity"),
        sensor_id=_plain(request.sensor_id, "sensor_id") or None,
        device_id=device(request.device_id) if request.device_id else None,
        start=start,
        end=end,
    )
    return which, page, per_page


def places(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_plain(v, "a place_id") for v in _few(values, MOST_PLACES, "place_id")))


def alert(value: str) -> UUID:
    try:
        if len(value) != 36:  # UUID takes braces and more, which no id of ours has
            raise ValueError
        return UUID(value)
    except ValueError:
        raise wrong("alert_id is no id of an alert: it takes a UUID, as GetAlerts answers it") from None


def devices(values: Sequence[str]) -> tuple[str, ...]:
    """Ids of devices to be deleted, each once, at least one."""
    found = tuple(dict.fromkeys(device(v, "a device_id") for v in _few(values, MOST_DELETED, "device_ids")))
    if not found:
        raise wrong("device_ids is empty; it takes the devices whose readings are to be deleted")
    return found


def series_wanted(values: Iterable[pb.Series]) -> tuple[SeriesWanted, ...]:
    """Series to be streamed, each once, at least one."""
    found = {}
    for one in _few(list(values), MOST_STREAMED, "series"):
        after = _time(one.after, "after") if one.HasField("after") else None
        wanted = SeriesWanted(
            device_id=device(one.device_id), sensor=_name(one.key, "the key of a series"), after=after
        )
        found[wanted.device_id, wanted.sensor] = wanted
    if not found:
        raise wrong("series is empty; it takes the device_id and key of each series to be streamed")
    return tuple(found.values())


def _few(values: Sequence[Any], most: int, name: str) -> Sequence[Any]:
    if len(values) > most:
        raise wrong(f"{name} has {len(values):,} members; it takes at most {most:,}")
    return values


def _name(value: str, name: str) -> str:
    if not value:
        raise wrong(f"{name} is empty; it takes a name of 1 to {NAME_LENGTH} characters")
    if len(value) > NAME_LENGTH:
        raise wrong(f"{name} has {len(value)} characters; it takes at most {NAME_LENGTH}")
    return _plain(value, name)


def _plain(value: str, name: str) -> str:
    if "\0" in value:
        raise wrong(f"{name} holds a NUL character, which no name does")
    if len(value) > 1_000:
        raise wrong(f"{name} has {len(value)} characters; it takes at most 1,000")
    return value


def _choice(known: dict[Any, Any], value: int, name: str) -> Any:
    """None where the field is missing or unspecified."""
    if value and value not in known:
        raise wrong(f"{name} is {value}, which means nothing here; it takes {' or '.join(map(str, known))}")
    return known.get(value)


def _range(
    request: pb.GetReadingsRequest | pb.GetAlertsRequest, *, required: bool
) -> tuple[datetime | None, datetime | None]:
    """[from, to), each None where it may be missing and is."""
    found: list[datetime | None] = []
    for name in ("from", "to"):
        given = request.HasField(name)
        if required and not given:
            raise wrong(f"'{name}' is missing; it takes a time")
        found.append(_time(getattr(request, name), f"'{name}'") if given else None)
    start, end = found
    if start is not None and end is not None and start >= end:
        raise wrong(f"'from' is {start.isoformat()}, which is not before 'to', {end.isoformat()}")
    return start, end


def _time(value: Timestamp, name: str) -> datetime:
    """In whole microseconds, rounded up: a stored time is before the one exactly if before the other."""
    seconds, nanos = int(value.seconds), int(value.nanos)
    if not 0 <= seconds < _LAST_SECOND or not 0 <= nanos < 1_000_000_000:
        raise wrong(f"{name} is no time from 1970 to 9999; seconds count since 1970, nanos stay below 10^9")
    return _EPOCH + timedelta(seconds=seconds, microseconds=-(-nanos // 1000))
