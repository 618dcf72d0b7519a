"""What the tests of reading back share: rows put in by INSERT, and buckets told without a database.

`Contract` is what every kind of database is held to, with rollups that are there, late, and not there yet.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import psycopg

from late import Late
from partitions import Partitions
from query import queries, rolled
from query.queries import Bucket, BucketKind, Summary
from schema import Reading
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
    # As a worker does: where it is late, what was summed up is noted as wrong.
    stored = [Reading(row.device, row.sensor, _micros(row.time), b"", row.value, row.text) for row in rows]
    Late().note(connection, stored)  # type: ignore[arg-type]
    register(connection, rows)
    connection.commit()


def register(connection: psycopg.Connection[Any], rows: Iterable[Row]) -> None:
    newest = {(row.device, row.sensor): row.time for row in sorted(rows, key=lambda row: row.time)}
    for (device, sensor), time in newest.items():
        connection.execute(
            "insert into series (device_id, sensor_type, last_time) values (%s, %s, %s)"
            " on conflict do nothing",
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
    "minutes": Question("d1", ALL, timedelta(minutes=-100), timedelta(minutes=77, seconds=13), 60),
    "minutes within minutes": Question("d1", ALL, timedelta(seconds=-599), timedelta(seconds=601), 60),
    "five minutes": Question("d1", ALL, timedelta(hours=-30), timedelta(hours=17, seconds=1), 300),
    "half days": Question("d1", ALL, timedelta(days=-2, seconds=-1), timedelta(days=2, seconds=1), 43_200),
    "days within days": Question("d1", ALL, timedelta(hours=-40), timedelta(hours=40, minutes=1), 86_400),
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


ZONES = ("UTC", "Europe/Berlin", "America/St_Johns")


class Contract:
    """The same answers whatever is summed up. `sum_up` brings the rollups up to date, whoever keeps them;
    `connection` is in one snapshot a transaction. `thorough`: each check in all time zones, not in
    one of them in turn.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        kind: TableKind,
        sum_up: Callable[[], None],
        *,
        thorough: bool = True,
    ) -> None:
        self._thorough = thorough
        self._checks = 0
        self._connection = connection
        self._kind = kind
        self._sum_up = sum_up
        self._rows: list[Row] = []

    def hold(self) -> None:
        """Readings that are there, come late, are deleted; between them, what is summed up and what not."""
        night = readings_of_a_night()
        early = [row for row in night if row.time < SUMMER_TIME + 4 * _HOUR]
        self._put(early[::2], "nothing summed up")
        self.sum_up_and_check("summed up")
        assert self.tables_asked() >= {"readings_hour", "readings_minute", "readings_day"}
        self._put(early[1::2], "late")
        self.sum_up_and_check("late, summed up")
        self._put([row for row in night if row not in early], "later")
        self.sum_up_and_check("later, summed up")
        self._delete(3)
        self.check("some deleted")
        self.sum_up_and_check("some deleted, summed up")
        self._delete(10_000)
        self.check("deleted")
        self.sum_up_and_check("deleted, summed up")

    def sum_up_and_check(self, when: str) -> None:
        self._connection.rollback()
        self._sum_up()
        self.check(when)

    def check(self, when: str) -> None:
        self._checks += 1
        for zone in ZONES if self._thorough else [ZONES[self._checks % len(ZONES)]]:
            self._connection.rollback()
            self._connection.execute("select set_config('timezone', %s, true)", [zone])
            for name, asked in QUESTIONS.items():
                for way in {BucketKind.PLAIN, queries.kind_of(self._connection)}:
                    found = answer(self._connection, way, asked)
                    assert found == told(self._rows, asked), f"{when}: {name}, {way}, {zone}"
                for sensor in asked.sensors:
                    assert self._history(asked, sensor) == summaries(self._rows, asked, sensor), when
        self._connection.rollback()

    def tables_asked(self) -> set[str]:
        """Where the answers to all questions come from."""
        found: set[str] = set()
        for asked in QUESTIONS.values():
            start, end = SUMMER_TIME + asked.start, SUMMER_TIME + asked.end
            parts = rolled.plan(self._connection, "d1", [], start, end, asked.interval_sec)
            found |= {part.table for part in parts}
        self._connection.rollback()
        return found

    def _history(self, asked: Question, sensor: str) -> list[Summary]:
        start, end = SUMMER_TIME + asked.start, SUMMER_TIME + asked.end
        return queries.history(self._connection, asked.device, sensor, start, end, asked.interval_sec)

    def _put(self, rows: list[Row], when: str) -> None:
        self._rows += rows
        put(self._connection, self._kind, rows)
        self.check(when)

    def _delete(self, steps: int) -> None:
        """Of d1, some readings or all; what is left is read back."""
        self._connection.rollback()
        for _ in range(steps):
            if not queries.delete_readings(self._connection, ["d1"], 40):
                while queries.delete_rollups(self._connection, "d1", 40):
                    self._connection.commit()
                break
            self._connection.commit()
        self._connection.execute("select set_config('timezone', 'UTC', true)")
        left = self._connection.execute(
            'select device_id::text, sensor_type::text, "timestamp", value, value_text from sensor_readings'
        )
        self._rows = [Row(*row) for row in left.fetchall()]
        self._connection.rollback()


def summaries(rows: Sequence[Row], question: Question, sensor: str) -> list[Summary]:
    """The history of a series from the definition."""
    start, end = SUMMER_TIME + question.start, SUMMER_TIME + question.end
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.time):
        same = (row.device, row.sensor) == (question.device, sensor)
        if same and row.value is not None and start <= row.time < end:
            found.setdefault(_micros(row.time) // (question.interval_sec * 1_000_000), []).append(row)
    answers = []
    for number, within in sorted(found.items()):
        values = [float(row.value or 0.0) for row in within]
        bucket = _bucket(number * question.interval_sec * 1_000_000, values)
        answers.append(
            Summary(bucket.time, len(values), bucket.avg, min(values), max(values), values[0], values[-1])
        )
    return answers
