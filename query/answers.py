"""What the database says, put into the messages that callers get. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from query import collector_pb2 as pb
from query.queries import AlertRow, Arrival, Bucket, Latest, RawPoint
from thresholds import Kind, Severity, Status

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POINT_BYTES = 40  # of a point beside its key
_SECOND = timedelta(seconds=1)
_KINDS = {Kind.MIN: pb.ALERT_THRESHOLD_TYPE_MIN, Kind.MAX: pb.ALERT_THRESHOLD_TYPE_MAX}
_SEVERITIES = {Severity.WARNING: pb.ALERT_SEVERITY_WARNING, Severity.CRITICAL: pb.ALERT_SEVERITY_CRITICAL}
_STATUSES = {Status.ACTIVE: pb.ALERT_STATUS_ACTIVE, Status.RESOLVED: pb.ALERT_STATUS_RESOLVED}


def timestamp(time: datetime) -> Timestamp:
    whole, rest = divmod(time - _EPOCH, _SECOND)
    return Timestamp(seconds=whole, nanos=rest.microseconds * 1000)


def latest(found: Iterable[Latest]) -> pb.GetLatestReadingsResponse:
    return pb.GetLatestReadingsResponse(
        readings=[
            pb.SensorReading(key=one.sensor, value=one.value, time=timestamp(one.time)) for one in found
        ]
    )


def raw(found: Mapping[str, Sequence[RawPoint]], most: int, most_bytes: int) -> pb.GetReadingsResponse:
    """At most `most` points over all series, in their order, and about `most_bytes`, since each repeats its
    key; says whether some were left out.
    """
    answer = pb.GetReadingsResponse()
    for key, points in found.items():
        size = len(key.encode()) + _POINT_BYTES
        kept = points[: max(0, min(most, most_bytes // size))]
        most -= len(kept)
        most_bytes -= len(kept) * size
        answer.truncated |= len(kept) < len(points)
        answer.series.append(
            pb.KeyReadings(
                key=key,
                raw_points=[
                    pb.SensorReading(key=key, value=point.value, time=timestamp(point.time))
                    for point in kept
                ],
            )
        )
    return answer


def buckets(found: Mapping[str, Sequence[Bucket]]) -> pb.GetReadingsResponse:
    """Put together as bytes and then read by protobuf: making thousands of messages one by one takes more
    than twice as long, and half of the time of a call.
    """
    heads: dict[datetime, bytes] = {}
    answer = pb.GetReadingsResponse()
    for key, series in found.items():
        parts = bytearray()
        for time, avg, low, high in series:
            head = heads.get(time)
            if head is None:
                head = heads[time] = _head(time)
            if avg is None or low is None or high is None:
                parts += head
            else:
                parts += _NUMBERS_LENGTH[len(head)]
                parts += head[2:]
                parts += _NUMBERS(0x11, avg, 0x19, low, 0x21, high)
        answer.series.append(pb.KeyReadings.FromString(bytes(parts)))
        answer.series[-1].key = key
    return answer


# The wire format of KeyReadings.points, https://protobuf.dev/programming-guides/encoding: each a field of
# number 2 with its length, in it the time (field 1, its seconds field 1) and three doubles (fields 2 to 4).
_NUMBERS = struct.Struct("<BdBdBd").pack
_NUMBERS_LENGTH = [bytes((0x12, max(0, length - 2) + 27)) for length in range(32)]


def _head(time: datetime) -> bytes:
    """A point that begins at a whole second since 1970 and has no numbers."""
    s = (time - _EPOCH) // _SECOND
    if 1 << 28 <= s < 1 << 35:  # 1978 to 3058: five bytes, in one go
        varint = (
            s & 0x7F | 0x80,
            s >> 7 & 0x7F | 0x80,
            s >> 14 & 0x7F | 0x80,
            s >> 21 & 0x7F | 0x80,
            s >> 28,
        )
        return bytes((0x12, 8, 0x0A, 6, 0x08, *varint))
    digits = []
    while s > 0x7F:
        digits.append(s & 0x7F | 0x80)
        s >>= 7
    digits.append(s)
    return bytes((0x12, len(digits) + 3, 0x0A, len(digits) + 1, 0x08, *digits))


def alert(row: AlertRow) -> pb.Alert:
    """What is no number, such as the value of a rule on states, is 0."""
    return pb.Alert(
        id=str(row.id),
        sensor_id=row.sensor_id or "",
        threshold_id=row.threshold_id,
        device_id=row.device_id,
        place_id=row.place_id,
        key=row.key,
        value=row.value or 0.0,
        threshold_value=row.threshold_value or 0.0,
        threshold_type=_KINDS.get(row.threshold_type, pb.ALERT_THRESHOLD_TYPE_UNSPECIFIED),
        severity=_SEVERITIES[row.severity],
        status=_STATUSES[row.status],
        created_at=timestamp(row.created_at),
        resolved_at=None if row.resolved_at is None else timestamp(row.resolved_at),
    )


def alerts(rows: Iterable[AlertRow], total: int) -> pb.GetAlertsResponse:
    return pb.GetAlertsResponse(items=[alert(row) for row in rows], total=total)


def streamed(device_id: str, sensor: str, one: Arrival, *, skipped: bool) -> pb.StreamReadingsResponse:
    answer = pb.StreamReadingsResponse(
        device_id=device_id, key=sensor, time=timestamp(one.time), skipped=skipped
    )
    if one.value is None:
        answer.text = one.text or ""
    else:
        answer.value = one.value
    return answer
