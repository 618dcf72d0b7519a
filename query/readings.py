"""Single readings: the newest of each series of a device, those of a range.

Only numbers are answered; states (`value_text`) are passed over. Bounds in time are literals: whatever the
session prepares, partitions and chunks outside of them are neither planned nor locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

TABLE = "sensor_readings"
# How many of a series' newest readings are looked through for a number. A series that has sent more states
# than this since its last number counts as one of states; without a bound, each look would read all of it.
NEWEST_CONSIDERED = 100
# The newest reading of most series of a device lies this close before the newest one of the device, so that
# a first look opens few partitions.
_FIRST_LOOK = timedelta(days=1)


class Latest(NamedTuple):
    """The newest number of a series, and when it was measured."""

    sensor: str
    value: float
    time: datetime


class RawPoint(NamedTuple):
    """One number as it was stored, and when it was measured."""

    time: datetime
    value: float


_SENSORS = "select sensor_type from series where device_id = %(device)s order by sensor_type"
_NEWEST_KNOWN = "select max(last_time) from series where device_id = %(device)s"
# One probe of the primary key a series. The inner limit bounds what the outer one may have to pass over.
_LATEST = sql.SQL(
    """
    select s.sensor_type, newest.value, newest."timestamp"
    from series s left join lateral (
        select value, "timestamp" from (
            select r.value, r."timestamp", r.message_id from {table} r
            where r.device_id = s.device_id and r.sensor_type = s.sensor_type {within}
            order by r."timestamp" desc, r.message_id desc limit {considered}
        ) as last
        where value is not null order by "timestamp" desc, message_id desc limit 1
    ) as newest on true
    where s.device_id = %(device)s {chosen}
    order by s.sensor_type
    """
)
_RAW = sql.SQL(
    """
    select sensor_type, "timestamp", value from {table}
    where device_id = %(device)s {chosen} and "timestamp" >= {start} and "timestamp" < {end}
      and value is not null
    order by sensor_type, "timestamp", message_id limit %(most)s
    """
)
_CHOSEN = sql.SQL("and sensor_type = any(%(sensors)s::text[])")
# Named from the registry where the caller names none: before PostgreSQL 18 the primary key finds a range of
# time only within a series.
_REGISTERED = sql.SQL(
    "and sensor_type = any(array(select s.sensor_type::text from series s where s.device_id = %(device)s))"
)
_ANY = sql.SQL("")


def sensors(connection: psycopg.Connection[Any], device_id: str) -> list[str]:
    """The series of a device that the registry knows, in order of their names; empty for an unknown device.

    A series is registered within an instant of its first reading.
    """
    return [sensor for (sensor,) in connection.execute(_SENSORS, {"device": device_id})]


def latest(
    connection: psycopg.Connection[Any],
    device_id: str,
    *,
    table: str = TABLE,
    seen: datetime | None = None,
) -> list[Latest]:
    """The newest number of every registered series of a device, in order of their names.

    Of the table, not of the registry, which may be a minute behind. Of several readings of the same time
    the one with the highest message id. A series without a number among its `NEWEST_CONSIDERED` newest
    readings is left out. `seen`: the time of a reading of the device, if the caller knows of a late one: it
    saves asking the registry where to begin, and changes nothing in the answer.
    """
    if seen is None:
        row = connection.execute(_NEWEST_KNOWN, {"device": device_id}).fetchone()
        seen = row[0] if row else None
    found: dict[str, Latest] = {}
    missing: list[str] | None = None
    if seen is not None:
        within = sql.SQL('and r."timestamp" >= {}').format(sql.Literal(seen - _FIRST_LOOK))
        found, missing = _newest(connection, table, device_id, None, within)
    if missing is None or missing:
        # Quiet for longer than the others, of states, or registered and never heard of.
        found |= _newest(connection, table, device_id, missing, _ANY)[0]
    return [found[sensor] for sensor in sorted(found)]


def _newest(
    connection: psycopg.Connection[Any],
    table: str,
    device: str,
    chosen: list[str] | None,
    within: sql.SQL | sql.Composed,
) -> tuple[dict[str, Latest], list[str]]:
    """What is found of the chosen series, or of all, and the names of those of which nothing is."""
    query = _LATEST.format(
        table=sql.Identifier(table),
        within=within,
        considered=sql.Literal(NEWEST_CONSIDERED),
        chosen=_ANY if chosen is None else _CHOSEN,
    )
    found: dict[str, Latest] = {}
    missing: list[str] = []
    for sensor, value, time in connection.execute(query, {"device": device, "sensors": chosen}):
        if value is None:
            missing.append(sensor)
        else:
            found[sensor] = Latest(sensor, value, time.astimezone(UTC))
    return found, missing


def raw(
    connection: psycopg.Connection[Any],
    device_id: str,
    sensors: Sequence[str],
    start: datetime,
    end: datetime,
    limit: int,
    *,
    table: str = TABLE,
) -> dict[str, list[RawPoint]]:
    """The numbers of a device measured in [start, end), for each series in order of time.

    Each of `sensors` is answered, if need be with no point; without `sensors`, every registered series that
    has one. At most `limit` points over all together: whoever wants to know whether there are more asks for
    one more than it takes.
    """
    query = _RAW.format(
        table=sql.Identifier(table),
        chosen=chosen(sensors),
        start=sql.Literal(start),
        end=sql.Literal(end),
    )
    asked = {"device": device_id, "sensors": list(sensors), "most": limit}
    found: dict[str, list[RawPoint]] = {sensor: [] for sensor in sensors}
    for sensor, time, value in connection.execute(query, asked, binary=True):
        found.setdefault(sensor, []).append(RawPoint(time.astimezone(UTC), value))
    return found


def chosen(sensors: Iterable[str]) -> sql.SQL:
    """The condition that names the series by the parameter `sensors`, or all that are registered."""
    return _CHOSEN if list(sensors) else _REGISTERED
