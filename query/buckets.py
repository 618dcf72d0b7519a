"""Readings in buckets of time: average, least and greatest, with the empty buckets between them.

From rollups where these answer exactly the same (docs/rollups.md), from the readings otherwise.

Buckets begin at multiples of their width since 1970-01-01 00:00 UTC, whatever the session's time zone: a
bucket of a day is a day of UTC, and one of a week begins on a Thursday. A day is always 86,400 seconds.
Both ways of asking, with TimescaleDB's gap filling and without, answer the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from query import rolled
from query.readings import TABLE, chosen

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Where time_bucket_gapfill begins to count, a Monday; unlike time_bucket it cannot be told otherwise.
_TIMESCALE_EPOCH = datetime(2000, 1, 3, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class BucketKind(StrEnum):
    """How a database fills gaps."""

    PLAIN = "plain"  # date_bin and generate_series
    TIMESCALE = "timescale"  # time_bucket_gapfill


class Bucket(NamedTuple):
    """`time` is where it begins. The others are None where it holds no number."""

    time: datetime
    avg: float | None
    min: float | None
    max: float | None


_KIND = """
    select exists (select from pg_extension where extname = 'timescaledb')
        and current_setting('timescaledb.license', true) = 'timescale'
"""
# A full join, although every filled bucket is in the series: it cannot be planned as a loop within a loop,
# however wrong the planner is about a partition that was never analyzed. The array keeps it from expecting
# 200 sensors, and from compiling the query for as many.
# Not avg(): it sums squares too, so that a single 1e200 would fail the whole answer.
_PLAIN = sql.SQL(
    """
    with filled as materialized (
        select sensor_type, date_bin({width}, "timestamp", {first}) as bucket,
            sum(value) / count(*) as avg, min(value) as min, max(value) as max
        from {table}
        where device_id = %(device)s {chosen} and "timestamp" >= {start} and "timestamp" < {end}
          and value is not null
        group by 1, 2
    )
    select sensor_type, avg, min, max
    from (
        select sensor_type, bucket
        from unnest(array(select distinct sensor_type::text from filled)) as sensor_type
        cross join generate_series({first}, {last}, {width}) as bucket
    ) as every
    full join filled using (sensor_type, bucket)
    order by sensor_type, bucket
    """
)
# Shifted to where gap filling counts from.
_TIMESCALE = sql.SQL(
    """
    select sensor_type, avg, min, max
    from (
        select sensor_type,
            time_bucket_gapfill({width}, "timestamp" - {shift}, {start} - {shift}, {end} - {shift})
                as bucket,
            sum(value) / count(*) as avg, min(value) as min, max(value) as max
        from {table}
        where device_id = %(device)s {chosen} and "timestamp" >= {start} and "timestamp" < {end}
          and value is not null
        group by sensor_type, bucket
    ) as filled
    order by sensor_type, bucket
    """
)


def kind_of(connection: psycopg.Connection[Any]) -> BucketKind:
    """What this database can do: the Apache edition of TimescaleDB refuses to fill gaps."""
    row = connection.execute(_KIND).fetchone()
    return BucketKind.TIMESCALE if row and row[0] else BucketKind.PLAIN


def first_bucket(start: datetime, interval_sec: int) -> datetime:
    """Where the bucket begins that holds `start`. Pure."""
    width = timedelta(seconds=interval_sec)
    return _EPOCH + (start - _EPOCH) // width * width


def bucket_count(start: datetime, end: datetime, interval_sec: int) -> int:
    """How many buckets [start, end) touches. Pure."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)  # two of one zone compare by the wall clock
    if start >= end:
        return 0
    width = timedelta(seconds=interval_sec)
    return (end - _MICROSECOND - first_bucket(start, interval_sec)) // width + 1


def buckets(
    connection: psycopg.Connection[Any],
    kind: BucketKind,
    device_id: str,
    sensors: Sequence[str],
    start: datetime,
    end: datetime,
    interval_sec: int,
    *,
    table: str = TABLE,
) -> dict[str, list[Bucket]]:
    """The numbers of a device measured in [start, end), in every bucket that this range touches.

    The first bucket may begin before `start` and the last one end after `end`; what is measured outside
    does not count. Each of `sensors` is answered, if need be with empty buckets alone; without `sensors`,
    every registered series that has a number in the range. `interval_sec` is at least 1. Whoever must bound
    the answer asks `bucket_count` first; it is that many for each series. Raises `OverflowError` where the
    first bucket would begin before the year 1.
    """
    count = bucket_count(start, end, interval_sec)
    first, width = first_bucket(start, interval_sec), timedelta(seconds=interval_sec)
    starts = [first + number * width for number in range(count)]
    found: dict[str, list[Bucket]] = {sensor: [] for sensor in sensors}
    if count:
        last = starts[-1]
        readings = (_PLAIN if kind is BucketKind.PLAIN else _TIMESCALE).format(
            table=sql.Identifier(table),
            chosen=chosen(sensors),
            width=_seconds(width),
            shift=_seconds((first - _TIMESCALE_EPOCH) % width),
            first=sql.Literal(first),
            last=sql.Literal(last),
            start=sql.Literal(start),
            end=sql.Literal(end),
        )
        asked = {"device": device_id, "sensors": list(sensors)}
        parts = rolled.plan(connection, device_id, sensors, start, end, interval_sec)
        if any(part.table for part in parts):
            query = rolled.grouped(parts, sensors, interval_sec, table)
            found |= _between(starts, connection.execute(query, asked, binary=True))
        if not any(part.table for part in parts) or _too_large(found):
            found |= _by_sensor(starts, connection.execute(readings, asked, binary=True))
    return {
        sensor: filled or [Bucket(time, None, None, None) for time in starts]
        for sensor, filled in found.items()
    }


def _by_sensor(starts: Sequence[datetime], rows: Iterable[Any]) -> dict[str, list[Bucket]]:
    """All buckets of each sensor, in order; anything else raises."""
    return {
        sensor: [
            Bucket(time, avg, low, high) for time, (_, avg, low, high) in zip(starts, filled, strict=True)
        ]
        for sensor, filled in groupby(rows, itemgetter(0))
    }


def _between(starts: Sequence[datetime], rows: Iterable[Any]) -> dict[str, list[Bucket]]:
    """The same from the buckets that hold a number."""
    empty = {time: Bucket(time, None, None, None) for time in starts}
    found = {}
    for sensor, filled in groupby(rows, itemgetter(0)):
        within = {time: Bucket(time.astimezone(UTC), avg, low, high) for _, time, avg, low, high in filled}
        if not within.keys() <= empty.keys():
            raise AssertionError("a bucket that was not asked for")
        found[sensor] = list((empty | within).values())
    return found


def _too_large(found: dict[str, list[Bucket]]) -> bool:
    """Whether rollups hold numbers that they could not add up. The readings themselves may do."""
    return any(one.avg is None and one.min is not None for filled in found.values() for one in filled)


def _seconds(length: timedelta) -> sql.Composed:
    """As an interval of seconds alone: one of days would follow the session's summer time."""
    return sql.SQL("interval {}").format(sql.Literal(f"{length // timedelta(seconds=1)} seconds"))
