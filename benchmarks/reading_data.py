"""What benchmarks.reading reads: a quarter of a year of readings, made in the database itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

import database
from partitions import Partitions
from standalone.children import Child

DAYS = 90
DEVICES, SENSORS = 100, 10
_CONNECTIONS = 2
_ROLLUPS = ("readings_minute", "readings_hour", "readings_day")

# A day of all series, in the order of the key, so that the index grows at its end.
_DAY = """
    insert into sensor_readings (device_id, sensor_type, "timestamp", value, message_id)
    select 'dev-' || lpad((s / 10)::text, 3, '0'), 'sensor-' || s %% 10,
        %(day)s::timestamptz + (n + s / 1000.0) * interval '1 day' / %(each)s,
        20 + 5 * sin(n / 40.0) + s %% 7 + random(), gen_random_uuid()
    from generate_series(0, 999) as s cross join generate_series(0, %(each)s - 1) as n
"""
_REGISTER = """
    insert into series (device_id, sensor_type, last_time, last_seen)
    select 'dev-' || lpad((s / 10)::text, 3, '0'), 'sensor-' || s %% 10, %(end)s, %(end)s
    from generate_series(0, 999) as s
    on conflict do nothing
"""

_ROLLED = "select coalesce(bool_or(rolled_before >= %s and target is null), false) from rollup_state"


def device(number: int) -> str:
    return f"dev-{number % DEVICES:03}"


def sensor(number: int) -> str:
    return f"sensor-{number % SENSORS}"


def load(url: str, rows: int, end: datetime) -> int:
    """Store about so many readings of the 90 days before `end`, midnight UTC; how many they are.

    The table must be empty, or the same readings come again.
    """
    each = max(1, rows // (DEVICES * SENSORS * DAYS))
    days = [end - timedelta(days=number) for number in range(DAYS, 0, -1)]
    with database.connect(url, 3600) as connection:
        if not _is_hypertable(connection):
            numbers = {int(day.timestamp()) // 86_400 for day in days}
            Partitions("sensor_readings", 3600).ensure(connection, numbers)
        connection.execute(_REGISTER, {"end": end - timedelta(seconds=60)})
        connection.commit()
    _together([partial(_fill, url, days[n::_CONNECTIONS], each) for n in range(_CONNECTIONS)])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum (analyze) sensor_readings")
        connection.execute("vacuum (analyze) series")
        connection.execute("checkpoint")
    return each * DEVICES * SENSORS * DAYS


def rollups(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """The rollups that there are, finest first."""
    return [
        name
        for name in _ROLLUPS
        if connection.execute("select to_regclass(%s) is not null", [name]).fetchone() == (True,)
    ]


def roll_up(url: str, redis_url: str, home: Path, end: datetime) -> float:
    """Seconds until the rollups hold all readings before `end`: by a worker that has nothing else to do, or
    by TimescaleDB. 0 where there are no rollups.
    """
    began = time.perf_counter()
    with psycopg.connect(url, autocommit=True) as connection:
        there = rollups(connection)
        if not there:
            return 0.0
        if _is_hypertable(connection):
            for name in there:
                connection.execute("call refresh_continuous_aggregate(%s, null, %s)", [name, end])
        else:
            worker = Child("worker", home, os.environ | {"DATABASE_URL": url, "REDIS_URL": redis_url})
            try:
                while connection.execute(_ROLLED, [end]).fetchone() != (True,):
                    if not worker.running:
                        raise SystemExit(f"the worker ended: {worker.said()[-2000:]}")
                    time.sleep(0.2)
            finally:
                worker.end()
        for name in there:
            connection.execute(sql.SQL("vacuum (analyze) {}").format(sql.Identifier(name)))
    return time.perf_counter() - began


def midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _fill(url: str, days: list[datetime], each: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("set synchronous_commit = off")
        for day in days:
            connection.execute(_DAY, {"day": day, "each": each})
            connection.commit()


def _is_hypertable(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = connection.execute(
        "select relkind = 'p' from pg_class where oid = 'sensor_readings'::regclass"
    ).fetchone()
    return row != (True,)


def _together(calls: list[Callable[[], None]]) -> None:
    """Each in a thread; raises what one of them raises."""
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
