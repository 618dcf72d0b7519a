"""The last rows of chosen series, as they were stored: numbers and states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from query.readings import TABLE

SHORT_TEXT = 200  # characters of a state that are answered
# Most series have sent enough within this time, so that a first look opens few partitions.
_FIRST_LOOK = timedelta(days=1)


class Row(NamedTuple):
    """One reading. `unit`: what its metadata calls so."""

    device_id: str
    sensor_type: str
    timestamp: datetime
    value: float | None
    value_text: str | None
    unit: str | None


_LAST = sql.SQL(
    """
    select device, sensor, last."timestamp", last.value, left(last.value_text, {short}),
        left(last.unit, 20)
    from unnest(%(devices)s::text[], %(sensors)s::text[]) as wanted (device, sensor)
    cross join lateral (
        select r."timestamp", r.value, r.value_text, r.metadata->>'unit' as unit,
            row_number() over (order by r."timestamp" desc, r.message_id desc) as number
        from {table} r
        where r.device_id = device and r.sensor_type = sensor and r."timestamp" >= {start}
        order by r."timestamp" desc, r.message_id desc limit %(most)s
    ) as last
    where last.number <= %(least)s or last."timestamp" >= {after}
    order by device collate "C", sensor collate "C", last."timestamp", last.number desc
    """
)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)


def last_rows(
    connection: psycopg.Connection[Any],
    series: Sequence[tuple[str, str]],
    least: int,
    *,
    now: datetime,
    after: datetime | None = None,
    most: int | None = None,
    table: str = TABLE,
) -> list[Row]:
    """The newest `least` rows of each series, and with `after` all since then, at most `most` of each.

    Sorted by series and time. `now` only chooses where to look first.
    """
    found = _look(connection, series, least, now - _FIRST_LOOK, after, most, table)
    counts: dict[tuple[str, str], int] = {}
    for row in found:
        counts[row[:2]] = counts.get(row[:2], 0) + 1
    # Quiet for longer, young, or with a gap that is older than the first look.
    gap = after is not None and after < now - _FIRST_LOOK
    rest = [one for one in series if gap or counts.get(one, 0) < least]
    if not rest:
        return found
    again = set(rest)
    kept = [row for row in found if row[:2] not in again]
    more = _look(connection, rest, least, _BEGINNING, after, most, table)
    return sorted([*kept, *more], key=lambda row: row[:2]) if kept else more


def rows_since(
    connection: psycopg.Connection[Any],
    series: tuple[str, str],
    start: datetime,
    most: int,
    *,
    table: str = TABLE,
) -> list[Row]:
    """The newest `most` rows of a series measured from `start` on, in order of time."""
    return _look(connection, [series], most, start, None, most, table)


def _look(
    connection: psycopg.Connection[Any],
    series: Iterable[tuple[str, str]],
    least: int,
    start: datetime,
    after: datetime | None,
    most: int | None,
    table: str,
) -> list[Row]:
    pairs = list(series)
    query = _LAST.format(
        table=sql.Identifier(table),
        short=sql.Literal(SHORT_TEXT),
        start=sql.Literal(start),
        after=sql.Literal(after or _NEVER),
    )
    asked = {
        "devices": [device for device, _ in pairs],
        "sensors": [sensor for _, sensor in pairs],
        "least": least,
        "most": max(least, most or 0) if after else least,
    }
    return [
        Row(device, sensor, time.astimezone(UTC), value, text, unit)
        for device, sensor, time, value, text, unit in connection.execute(query, asked)
    ]
