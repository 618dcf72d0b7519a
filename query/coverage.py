"""What the rollups hold by now, and what of it late readings or deletions have made wrong.

Where workers keep the rollups, their notes say it; where TimescaleDB does, its own list of what it has yet
to refresh, which is exact: each transaction adds to it what it changes. To be asked in one snapshot with
what is read afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from query.pieces import EPOCH, Coverage, Range, Rollup
from tables import ROLLUPS

WIDTHS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))
_LEVELS = ("minute", "hour", "day")
_END = datetime(9999, 12, 31, tzinfo=UTC)
_MOST_NOTES = 5_000
_DAY = timedelta(days=1)

_STATE = """
    select keeper, rolled_before, (select jsonb_object_agg(level, extract(epoch from complete_from)::bigint)
        from retention where complete_from is not null),
        to_regclass('_timescaledb_catalog.continuous_aggs_materialization_ranges') is not null
    from rollup_state
"""
_NOTED = """
    select distinct hour from rollup_dirty
    where device_id = %(device)s and (%(all)s or sensor_type = any(%(sensors)s::text[]))
      and hour >= %(start)s and hour < %(end)s
    order by hour limit %(most)s
"""
# Microseconds since 1970, both included. A rollup is wrong where what it is made from was changed, where
# that is wrong itself, where it is about to be refreshed or is being refreshed, and beyond its watermark.
# Before `kept` a policy drops it, or the readings (level 0). The views of timescaledb_information say the
# same and take 20 ms for it.
_AGGREGATES = """
    with level as (
        select l.n, c.mat_hypertable_id as id, c.raw_hypertable_id as source
        from unnest(%(rollups)s::text[]) with ordinality as l (name, n)
        join pg_class r on r.oid = to_regclass(l.name) join pg_namespace s on s.oid = r.relnamespace
        join _timescaledb_catalog.continuous_agg c
            on c.user_view_schema = s.nspname and c.user_view_name = r.relname
    )
    select n, 'dirty', lowest_modified_value, greatest_modified_value
    from level join _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log
        on hypertable_id = source
    union all
    select n, 'dirty', lowest_modified_value, greatest_modified_value
    from level join _timescaledb_catalog.continuous_aggs_materialization_invalidation_log
        on materialization_id = id
    union all
    select n, 'until', watermark, watermark
    from level join _timescaledb_catalog.continuous_aggs_watermark on mat_hypertable_id = id
    union all
    select case when j.hypertable_id = level.id then n else 0 end, 'kept', since, since
    from level join _timescaledb_config.bgw_job j
        on j.hypertable_id = level.id or (n = 1 and j.hypertable_id = source),
        cast(extract(epoch from now() - (j.config ->> 'drop_after')::interval) * 1000000 as bigint) as since
    where j.proc_name = 'policy_retention'
"""
_RANGES = """
    union all
    select n, 'dirty', lowest_modified_value, greatest_modified_value
    from level join _timescaledb_catalog.continuous_aggs_materialization_ranges on materialization_id = id
"""


def look(
    connection: psycopg.Connection[Any],
    device_id: str,
    sensors: Sequence[str],
    start: datetime,
    end: datetime,
) -> Coverage:
    """What there is to be asked about [start, end) of these series; without `sensors`, of the device."""
    row = connection.execute(_STATE).fetchone()
    if row is None:
        return Coverage()
    keeper, rolled, complete, has_ranges = row
    starts = {level: EPOCH + timedelta(seconds=since) for level, since in (complete or {}).items()}
    if keeper == "timescaledb":
        return _of_aggregates(connection, starts, has_ranges=has_ranges)
    raw_start = starts.get("raw", EPOCH)
    asked = {
        "device": device_id,
        "sensors": list(sensors),
        "all": not sensors,
        # A day is wrong where one of its hours is.
        "start": max(raw_start, _shifted(start, -_DAY)),
        "end": _shifted(end, _DAY),
        "most": _MOST_NOTES,
    }
    hours = [hour.astimezone(UTC) for (hour,) in connection.execute(_NOTED, asked)]
    dirty = _joined([(hour, hour + WIDTHS[1]) for hour in hours])
    if len(hours) == _MOST_NOTES:
        dirty.append((hours[-1], _END))
    until = EPOCH if rolled is None else rolled.astimezone(UTC)
    return _coverage(starts, [(until, dirty)] * 3)


def _of_aggregates(
    connection: psycopg.Connection[Any], starts: dict[str, datetime], *, has_ranges: bool
) -> Coverage:
    query = _AGGREGATES + (_RANGES if has_ranges else "")
    until = [EPOCH for _ in ROLLUPS]
    wrong: list[list[Range]] = [[] for _ in ROLLUPS]
    for level, what, low, high in connection.execute(query, {"rollups": list(ROLLUPS)}):
        if what == "dirty":
            wrong[level - 1].append((_time(low), _time(high + 1)))
        elif what == "until":
            until[level - 1] = _time(low)
        else:
            name = ("raw", *_LEVELS)[level]
            kept = EPOCH - (EPOCH - _time(low)) // _DAY * _DAY
            starts[name] = max(starts.get(name, EPOCH), kept)
    below: list[Range] = []
    holds: list[tuple[datetime, list[Range]]] = []
    for end, dirty in zip(until, wrong, strict=True):  # what is wrong in minutes is wrong in hours and days
        below = _joined([*below, *dirty])
        holds.append((end, below))
    return _coverage(starts, holds)


def _coverage(starts: dict[str, datetime], holds: Sequence[tuple[datetime, list[Range]]]) -> Coverage:
    """`holds`: until when each rollup goes, and where it is wrong; finest first. What is wrong of dropped
    readings is not made right any more.
    """
    raw_start = starts.get("raw", EPOCH)
    rollups = [
        Rollup(
            table,
            width,
            starts.get(level, EPOCH),
            until,
            [(max(low, raw_start), high) for low, high in dirty if high > raw_start],
        )
        for table, width, level, (until, dirty) in zip(ROLLUPS, WIDTHS, _LEVELS, holds, strict=True)
    ]
    return Coverage(rollups[::-1], raw_start)


def _joined(ranges: list[Range]) -> list[Range]:
    """The same, in order, and what touches is one."""
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def _time(micros: int) -> datetime:
    """Infinities, and what no datetime holds, as the first and the last that one asks about."""
    if micros <= 0:
        return EPOCH
    return min(EPOCH + timedelta(microseconds=min(micros, 250_000_000_000_000_000)), _END)


def _shifted(moment: datetime, by: timedelta) -> datetime:
    return min(max(moment, EPOCH + _DAY), _END - _DAY) + by
