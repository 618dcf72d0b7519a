"""What a chart shows: a range of one series, and the limits that rules set for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from dashboard.wanted import Range
from database import BoundedConnection
from live import Series
from query import queries
from rule_store import RuleStore
from thresholds import Kind

MOST_LIVE = 3_000  # points of readings as they are
_DRAWN = (Kind.MIN, Kind.MAX)  # rules whose limit is a value, and so a line


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A limit, in the sensor's unit."""

    kind: str
    value: float
    severity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """`points`: [milliseconds since 1970, average, least, greatest]; a bucket without a number has None.

    `bucket_sec` 0: readings as they are, whose three numbers are the same.
    """

    range: str
    start_ms: int
    end_ms: int
    bucket_sec: int
    points: list[tuple[int, float | None, float | None, float | None]]
    lines: list[Line]


class Charts:
    """Keeps what need not be asked again: the kind of the database, and the rules.

    May be used by several threads at once.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._kind: queries.BucketKind | None = None
        self._rules = RuleStore()
        self._rules_lock = threading.Lock()

    def chart(self, connection: BoundedConnection, series: Series, wanted: Range, now: datetime) -> Chart:
        start = now - timedelta(seconds=wanted.seconds)
        if wanted.bucket_sec:
            points = self._buckets(connection, series, start, now, wanted.bucket_sec)
        else:
            found = queries.rows_since(connection, series, start, MOST_LIVE, table=self._table)
            points = [(_ms(row.timestamp), row.value, row.value, row.value) for row in found]
        return Chart(
            range=wanted.text,
            start_ms=_ms(start),
            end_ms=_ms(now),
            bucket_sec=wanted.bucket_sec,
            points=points,
            lines=self._lines(connection, series),
        )

    def _buckets(
        self, connection: BoundedConnection, series: Series, start: datetime, end: datetime, width: int
    ) -> list[tuple[int, float | None, float | None, float | None]]:
        """The one place that asks for buckets: whatever answers the same, faster, goes in here."""
        if self._kind is None:
            self._kind = queries.kind_of(connection)
        device, sensor = series
        found = queries.buckets(
            connection, self._kind, device, [sensor], start, end, width, table=self._table
        )
        return [(_ms(one.time), one.avg, one.min, one.max) for one in found[sensor]]

    def _lines(self, connection: BoundedConnection, series: Series) -> list[Line]:
        """The limits of enabled rules that watch this series, each once."""
        with self._rules_lock:
            self._rules.verify(connection)
            watched = self._rules.rules.of(series)
        found = {
            Line(kind=rule.kind.value, value=rule.value, severity=rule.severity.value)
            for rule in (watched.rules if watched else ())
            if rule.kind in _DRAWN and rule.value is not None
        }
        return sorted(found, key=lambda line: (line.value, line.kind, line.severity))


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)
