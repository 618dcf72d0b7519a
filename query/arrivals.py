"""What has come to be stored of chosen series: readings and states, whatever their order in time.

The primary key finds a range of measured time; within it `created_at`, the begin of the transaction that
stored a row, by the database's clock, tells what cannot have been there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from live import Series
from query.readings import TABLE

EVER = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

MOST_TEXT = 1_000  # characters of a state; the rest is cut off


class Arrival(NamedTuple):
    """One reading. `key` tells it from all others of its series; `stored`: when its transaction began."""

    time: datetime
    value: float | None
    text: str | None
    key: bytes
    stored: datetime


class Known(NamedTuple):
    """What the registry knows of a series, up to a minute late: the time of its newest reading, and when
    the last one arrived.
    """

    newest: datetime | None = None
    arrived: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which readings of a series: measured in [start, end], stored at `stored` or later, at most `most`.

    Those measured at `passed` or before count only if they were stored at `passed_stored` or later.
    """

    series: Series
    start: datetime
    end: datetime = NEVER
    stored: datetime = EVER
    passed: datetime = EVER
    passed_stored: datetime = EVER
    most: int


_KNOWN = """
    select device_id, sensor_type, last_time, last_seen from series
    where (device_id, sensor_type) in (
        select * from unnest(%(devices)s::text[], %(sensors)s::text[])
    )
"""
# One range of the primary key a series, and the bounds of all as literals: what lies outside of them is
# neither planned nor locked.
_ARRIVALS = sql.SQL(
    """
    select now(), asked.number, found.*
    from unnest(
        %(devices)s::text[], %(sensors)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
        %(stored)s::timestamptz[], %(passed)s::timestamptz[], %(passed_stored)s::timestamptz[],
        %(most)s::int[]
    ) with ordinality
        as asked (device, sensor, start, "end", stored, passed, passed_stored, most, number)
    left join lateral (
        select r."timestamp", r.value, left(r.value_text, {characters}) as text,
            timestamptz_send(r."timestamp") || uuid_send(r.message_id) as key, r.created_at
        from {table} r
        where r.device_id = asked.device and r.sensor_type = asked.sensor
          and r."timestamp" >= asked.start and r."timestamp" <= asked."end"
          and r."timestamp" >= {first} and r."timestamp" <= {last}
          and r.created_at >= asked.stored
          and (r."timestamp" > asked.passed or r.created_at >= asked.passed_stored)
        order by r."timestamp" {order}, r.message_id {order} limit asked.most
    ) as found on true
    order by asked.number, found.key
    """
)


def stored_now(connection: psycopg.Connection[Any]) -> datetime:
    """When the transaction that is open began, by the database's clock."""
    row = connection.execute("select now()").fetchone()
    if row is None:
        raise AssertionError("one row")
    time: datetime = row[0]
    return time.astimezone(UTC)


def known(connection: psycopg.Connection[Any], series: Iterable[Series]) -> dict[Series, Known]:
    """Those of the series that are registered: each is within an instant of its first reading."""
    devices, sensors = _columns(series)
    found = connection.execute(_KNOWN, {"devices": devices, "sensors": sensors})
    return {
        (device, sensor): Known(*(None if time is None else time.astimezone(UTC) for time in times))
        for device, sensor, *times in found
    }


def arrivals(
    connection: psycopg.Connection[Any],
    wanted: Sequence[Wanted],
    *,
    newest: bool = False,
    table: str = TABLE,
) -> tuple[datetime, list[list[Arrival]]]:
    """When the transaction that looks began, and for each wanted what is stored, in order of time.

    `newest`: the last `most`, not the first. At least one is wanted.
    """
    devices, sensors = _columns(one.series for one in wanted)
    asked = {
        "devices": devices,
        "sensors": sensors,
        "starts": [one.start for one in wanted],
        "ends": [one.end for one in wanted],
        "stored": [one.stored for one in wanted],
        "passed": [one.passed for one in wanted],
        "passed_stored": [one.passed_stored for one in wanted],
        "most": [one.most for one in wanted],
    }
    query = _ARRIVALS.format(
        table=sql.Identifier(table),
        first=sql.Literal(min(one.start for one in wanted)),
        last=sql.Literal(max(one.end for one in wanted)),
        characters=sql.Literal(MOST_TEXT),
        order=sql.SQL("desc" if newest else "asc"),
    )
    found: list[list[Arrival]] = [[] for _ in wanted]
    looked = EVER
    for began, number, time, value, text, key, stored in connection.execute(query, asked, binary=True):
        looked = began
        if key is not None:
            found[number - 1].append(Arrival(time.astimezone(UTC), value, text, key, stored))
    return looked.astimezone(UTC), found


def _columns(series: Iterable[Series]) -> tuple[list[str], list[str]]:
    rows = list(series)
    return [device for device, _ in rows], [sensor for _, sensor in rows]
