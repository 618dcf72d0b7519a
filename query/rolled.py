"""Buckets of time from rollups and, where they have none yet, from the readings; one text for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from query import coverage
from query.pieces import EPOCH, Piece, pieces
from query.readings import TABLE, chosen
from tables import ROLLUPS

MINUTE_SEC = 60
_ROLLUP = sql.SQL(
    """
    select sensor_type, bucket as at, null::uuid as tie, count, sum, min, max, first, last
    from {table}
    where device_id = %(device)s {chosen} and bucket >= {start} and bucket < {end}
    """
)
_RAW = sql.SQL(
    """
    select sensor_type, "timestamp" as at, message_id as tie, 1 as count, value as sum,
        value as min, value as max, value as first, value as last
    from {table}
    where device_id = %(device)s {chosen} and "timestamp" >= {start} and "timestamp" < {end}
      and value is not null
    """
)
# A row without a sum has numbers that are too large to add up.
_GROUPED = sql.SQL(
    """
    select sensor_type, date_bin({width}, at, {first}) as bucket,
        case when bool_and(sum is not null) then sum(sum) / sum(count)::float8 end as avg,
        min(min) as min, max(max) as max {more}
    from ({source}) as piece
    group by 1, 2
    """
)
# Where a single rollup has it all, in just these buckets.
_SINGLE = sql.SQL(
    """
    select sensor_type, bucket, sum / count as avg, min, max from {table}
    where device_id = %(device)s {chosen} and bucket >= {start} and bucket < {end}
    """
)
_WIDTHS = {
    name: width // timedelta(seconds=1) for name, width in zip(ROLLUPS, coverage.WIDTHS, strict=True)
}
_ENDS = sql.SQL(
    """, sum(count)::bigint as count, (array_agg(first order by at, tie))[1] as first,
        (array_agg(last order by at, tie))[count(*)::int] as last
    """
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What was measured in a bucket that begins at `time`. `avg` None: the numbers are too large to add up.

    `first` and `last` are the oldest and newest values; of several of one time, one of them.
    """

    time: datetime
    count: int
    avg: float | None
    min: float
    max: float
    first: float
    last: float


def plan(
    connection: psycopg.Connection[Any],
    device_id: str,
    sensors: Sequence[str],
    start: datetime,
    end: datetime,
    interval_sec: int,
) -> list[Piece]:
    """What to ask for each part of [start, end); a single piece, or none, where only readings answer."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if interval_sec % MINUTE_SEC:
        return [Piece("", start, end)]
    return pieces(coverage.look(connection, device_id, sensors, start, end), start, end, interval_sec)


def grouped(parts: Sequence[Piece], sensors: Sequence[str], interval_sec: int, table: str) -> sql.Composed:
    """The statement for buckets that hold a number: sensor, beginning, average, least, greatest; sorted."""
    (one, *others) = parts
    if not others and _WIDTHS.get(one.table) == interval_sec:
        query = _SINGLE.format(
            table=sql.Identifier(one.table),
            chosen=chosen(sensors),
            start=sql.Literal(one.start),
            end=sql.Literal(one.end),
        )
    else:
        query = _grouped(parts, sensors, interval_sec, table, sql.SQL(""))
    return query + sql.SQL(" order by 1, 2")


def history(
    connection: psycopg.Connection[Any],
    device_id: str,
    sensor: str,
    start: datetime,
    end: datetime,
    interval_sec: int,
    *,
    table: str = TABLE,
) -> list[Summary]:
    """The numbers of a series measured in [start, end), summed up in buckets, in order, without empty ones.

    Buckets begin at multiples of `interval_sec`, at least 1, since 1970 UTC. From rollups where the
    interval is a multiple of their width. To be asked in one snapshot (REPEATABLE READ). Raises psycopg
    errors, `NumericValueOutOfRange` where readings that no rollup has yet are too large to add up.
    """
    parts = plan(connection, device_id, [sensor], start, end, interval_sec)
    parts = [one for one in parts if one.start < one.end]
    if not parts:
        return []
    query = _grouped(parts, [sensor], interval_sec, table, _ENDS) + sql.SQL(" order by 2")
    rows = connection.execute(query, {"device": device_id, "sensors": [sensor]}, binary=True)
    return [
        Summary(time.astimezone(UTC), count, avg, low, high, oldest, newest)
        for _, time, avg, low, high, count, oldest, newest in rows
    ]


def _grouped(
    parts: Sequence[Piece],
    sensors: Sequence[str],
    interval_sec: int,
    table: str,
    more: sql.SQL,
) -> sql.Composed:
    source = sql.SQL(" union all ").join(
        (_ROLLUP if one.table else _RAW).format(
            table=sql.Identifier(one.table or table),
            chosen=chosen(sensors),
            start=sql.Literal(one.start),
            end=sql.Literal(one.end),
        )
        for one in sorted(parts, key=lambda one: not one.table)
    )
    width = sql.SQL("interval {}").format(sql.Literal(f"{interval_sec} seconds"))
    return _GROUPED.format(width=width, first=sql.Literal(EPOCH), source=source, more=more)
