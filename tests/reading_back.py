"""What the tests of reading back share: rows put in by INSERT, and buckets told without a database."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import psycopg

from partitions import Partitions
from query import queries
from query.queries import Bucket, BucketKind
from schema_check import TableKind
from tests.support import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Berlin's night of the change to summer time: at 01:00 UTC the clocks go from 2 to 3.
SUMMER_TIME = datetime(2025, 3, 30, 1, tzinfo=UTC)
INSERT = """
    insert into sensor_readings (device_id, sensor_type, "timestamp", value, value_text, message_id)
    select * from unnest(
        %s::text[], %s::text[], %s::timestamptz[], %s::float8[], %s::text[], %s::uuid[]
    )
"""


class Row(NamedTuple):
    """One stored reading."""

    device: str
    sensor: str
    time: datetime
    value: float | None
    text: str | None = None


def put(connection: psycopg.Connection[Any], kind: TableKind, rows: Sequence[Row]) -> None:
    """Insert readings, with their partitions and their series as a worker would have them; commits."""
    if kind is TableKind.PARTITIONED:
        days = {(row.time - EPOCH).days for row in rows}
        Partitions("sensor_readings", 20.0).ensure(connection, days)  # type: ignore[arg-type]
    devices, sensors, times, values, texts = (list(column) for column in zip(*rows, strict=True))
    numbers = [None if value is None else float(value) for value in values]
    columns = [devices, sensors, times, numbers, texts]
    connection.execute(INSERT, [*columns, [uuid.UUID(int=number) for number in range(len(rows))]])
    register(connection, rows)
    connection.commit()


def register(connection: psycopg.Connection[Any], rows: Iterable[Row]) -> None:
    newest = {(row.device, row.sensor): row.time for row in sorted(rows, key=lambda row: row.time)}
    for (device, sensor), time in newest.items():
        connection.execute(
            "insert into series (device_id, sensor_type, last_time) values (%s, %s, %s)",
            [device, sensor, time],
        )


def readings_of_a_night() -> list[Row]:
    """Two days around a change to summer time: of two sensors with gaps, of states, of another device.

    Values are small multiples of a quarter, so that sums are exact in whatever order they are made.
    """
    rows = []
    for number in range(300):
        if not 100 <= number < 140:
            time = SUMMER_TIME + timedelta(seconds=613 * (number - 150), microseconds=number)
            rows.append(Row("d1", "temperature", time, number % 17 / 4))
            rows.append(Row("d2", "temperature", time, 1000.0))
        if number % 7 == 0:
            rows.append(Row("d1", "mode", SUMMER_TIME + timedelta(minutes=number), None, "auto"))
    for hours in range(-12, 13, 3):  # on the borders, and an instant before
        border = SUMMER_TIME + timedelta(hours=hours)
        rows.append(Row("d1", "humidity", border, -float(hours)))
        rows.append(Row("d1", "humidity", border - timedelta(microseconds=1), 0.5))
        rows.append(Row("d1", "humidity", border + timedelta(seconds=1), None, "broken"))
    return rows


class Question(NamedTuple):
    """Buckets that are asked for, `start` and `end` from the change to summer time."""

    device: str
    sensors: tuple[str, ...]
    start: timedelta
    end: timedelta
    interval_sec: int


ALL: tuple[str, ...] = ()
_HOUR = timedelta(hours=1)
_MICRO = timedelta(microseconds=1)
QUESTIONS = {
    "on borders": Question("d1", ALL, -6 * _HOUR, 6 * _HOUR, 3600),
    "just beyond borders": Question("d1", ALL, -6 * _HOUR - _MICRO, 6 * _HOUR + _MICRO, 3600),
    "just within borders": Question("d1", ALL, -6 * _HOUR + _MICRO, 6 * _HOUR - _MICRO, 3600),
    "ends within buckets": Question("d1", ALL, timedelta(minutes=-100), timedelta(minutes=77), 1800),
    "days over the change": Question("d1", ALL, timedelta(days=-1), timedelta(days=2), 86_400),
    "weeks": Question("d1", ALL, timedelta(days=-20), timedelta(days=20), 7 * 86_400),
    "a bucket that holds all": Question("d1", ALL, -_HOUR, _HOUR, 10_000_000),
    "the longest bucket": Question("d1", ALL, -_HOUR, _HOUR, 2**31 - 1),
    "an interval that divides nothing": Question("d1", ALL, -6 * _HOUR, 6 * _HOUR, 1013),
    "seconds": Question("d1", ("humidity",), timedelta(seconds=-90), timedelta(seconds=90), 1),
    "an empty range": Question("d1", ("humidity",), timedelta(0), timedelta(0), 60),
    "an end before the start": Question("d1", ("humidity",), _HOUR, -_HOUR, 60),
    "one instant": Question("d1", ("humidity",), timedelta(0), _MICRO, 60),
    "nothing in the range": Question("d1", ALL, timedelta(days=100), timedelta(days=101), 3600),
    "a sensor with nothing": Question("d1", ("humidity",), timedelta(days=9), timedelta(days=10), 3600),
    "known and unknown sensors": Question("d1", ("none", "temperature", "none"), -_HOUR, _HOUR, 600),
    "states": Question("d1", ("mode",), -_HOUR, _HOUR, 600),
    "an unknown device": Question("nobody", ALL, -_HOUR, _HOUR, 600),
    "an unknown device's sensor": Question("nobody", ("temperature",), -_HOUR, _HOUR, 600),
}


def answer(
    connection: psycopg.Connection[Any], way: BucketKind, question: Question
) -> dict[str, list[Bucket]]:
    """What the database answers."""
    start, end = SUMMER_TIME + question.start, SUMMER_TIME + question.end
    return queries.buckets(
        connection, way, question.device, question.sensors, start, end, question.interval_sec
    )


def told(rows: Sequence[Row], question: Question) -> dict[str, list[Bucket]]:
    """The answer from the definition, bucket by bucket in whole microseconds."""
    start, end = (SUMMER_TIME + offset for offset in (question.start, question.end))
    width = question.interval_sec * 1_000_000
    values: dict[str, dict[int, list[float]]] = {sensor: {} for sensor in question.sensors}
    for row in rows:
        asked = row.sensor in question.sensors or not question.sensors
        if row.device == question.device and asked and row.value is not None and start <= row.time < end:
            within = values.setdefault(row.sensor, {})
            within.setdefault(_micros(row.time) // width, []).append(row.value)
    numbers = range(_micros(start) // width, (_micros(end) - 1) // width + 1) if start < end else range(0)
    return {
        sensor: [_bucket(number * width, within.get(number, [])) for number in numbers]
        for sensor, within in values.items()
    }


def _bucket(micros: int, values: Sequence[float]) -> Bucket:
    time = EPOCH + timedelta(microseconds=micros)
    if not values:
        return Bucket(time, None, None, None)
    return Bucket(time, float(sum(map(Fraction, values)) / len(values)), min(values), max(values))


def _micros(time: datetime) -> int:
    return (time - EPOCH) // _MICRO


def kind_of(database: Database) -> TableKind:
    """What the schema has made of the readings in a test's database."""
    return TableKind.HYPERTABLE if database.timescale else TableKind.PARTITIONED
