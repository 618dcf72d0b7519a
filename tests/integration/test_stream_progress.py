"""What a caller that streams is told, whatever the order in which workers commit: each reading once."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import sql

import database as db
import live
import query.progress
from database import BoundedConnection
from live import Many, Newest, News, Series, Told, Touched
from query import queries
from query.arguments import SeriesWanted
from query.progress import ANYTHING, Due, Progress
from query.queries import EVER, Arrival, Wanted
from query.streams import Hub, Subscription
from schema import DAY_US, Reading
from tests import querying
from tests.querying import store
from tests.support import Database
from tests.writing import YESTERDAY_US

# Of these three hours, not of yesterday: what is said of a series that is quiet is not the matter here.
BEGIN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
BEGIN_US = int(BEGIN.timestamp()) * 1_000_000
TEMPERATURE, DOOR = ("kitchen", "temperature"), ("kitchen", "door")
SERIES = (TEMPERATURE, DOOR)
MOST = 1_000


def at(number: int, value: float | None = None, **changes: Any) -> Reading:
    """A reading of the kitchen's temperature, so many seconds after the begin."""
    made = querying.at(number, value, **changes)
    return made._replace(timestamp_us=made.timestamp_us - YESTERDAY_US + BEGIN_US)


def wanted(*series: Series, after: datetime | None = None) -> list[SeriesWanted]:
    return [SeriesWanted(device_id=device, sensor=sensor, after=after) for device, sensor in series]


def some(series: Series, seconds: float, value: float | str) -> Reading:
    number, text = (None, value) if isinstance(value, str) else (value, None)
    moment = BEGIN_US + int(seconds * 1e6)
    return Reading(*series, moment, uuid.uuid4().bytes, number, text)


class Worker:
    """Stores readings in a transaction that stays open until `commit`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.pending: list[Reading] = []

    def put(self, readings: list[Reading]) -> None:
        self.pending += readings
        with self._connection.cursor() as cursor:
            cursor.executemany(
                "insert into sensor_readings"
                " (device_id, sensor_type, timestamp, message_id, value, value_text)"
                " values (%s, %s, %s, %s, %s, %s)",
                [
                    (*one[:2], BEGIN + us(one), uuid.UUID(bytes=one.message_id), *one[4:6])
                    for one in readings
                ],
            )

    def commit(self) -> list[Told]:
        """What readers are told."""
        self._connection.commit()
        stored, self.pending = sorted(self.pending, key=lambda one: one.key), []
        return [live.understood(payload) for payload in live.payloads(stored)]


def us(one: Reading) -> timedelta:
    return timedelta(microseconds=one.timestamp_us - BEGIN_US)


class Caller(Protocol):
    def look(self, due: dict[Series, Due]) -> list[tuple[Series, Arrival]]: ...


class Careful:
    """As the service does it; now and then a look fails and is repeated."""

    def __init__(self, connection: BoundedConnection, fails: Callable[[], bool]) -> None:
        self.connection = connection
        self._fails = fails
        self.progress = Progress("sensor_readings")
        db.start_clock(connection, 60)
        self.progress.begin(connection, wanted(*SERIES))
        connection.commit()
        self.skipped = 0

    def look(self, due: dict[Series, Due]) -> list[tuple[Series, Arrival]]:
        if self._fails():
            self.progress.look(self.connection, due, MOST)
            self.connection.rollback()
        told = []
        for found in self.progress.look(self.connection, due, MOST):
            self.skipped += self.progress.took(found)
            told += [(found.series, one) for one in found.arrivals]
        self.connection.commit()
        self.progress.forget()
        return told


class Naive:
    """Takes for new what is newer than the newest that it has told."""

    def __init__(self, connection: BoundedConnection, _fails: Callable[[], bool]) -> None:
        self.connection = connection
        db.start_clock(connection, 60)
        self._reached = dict.fromkeys(SERIES, BEGIN - timedelta(seconds=1))

    def look(self, due: dict[Series, Due]) -> list[tuple[Series, Arrival]]:
        told = []
        for series in due:
            rows = self.connection.execute(
                "select timestamp, value, value_text, message_id from sensor_readings"
                " where (device_id, sensor_type) = (%s, %s) and timestamp > %s order by timestamp",
                (*series, self._reached[series]),
            )
            for time, value, text, message in rows:
                self._reached[series] = time
                told.append((series, Arrival(time, value, text, message.bytes, time)))
        self.connection.commit()
        return told


def said_less(told: list[Told], chance: random.Random) -> list[Told]:
    """As it was said, or in fewer words."""
    words = chance.choice(["as it was", "touched", "many"])
    if words == "as it was":
        return told
    if words == "many":
        return [Many()]
    news = [one for part in told if isinstance(part, Newest) for one in part.readings]
    return [Touched(tuple(one[:2] for one in news))]


def play(
    database: Database, seed: int, make: Callable[..., Caller]
) -> tuple[list[tuple[Series, datetime, object]], list[tuple[Series, datetime, object]]]:
    """Two workers store and commit, a caller looks, in an order of chance: what was stored and told."""
    chance = random.Random(seed)
    stored: list[Reading] = []
    heard: list[tuple[Series, Arrival]] = []
    hub = Hub()
    store(database, [some(series, 0, -1.0) for series in SERIES])  # of before the stream
    with ExitStack() as opened:
        connections = [opened.enter_context(psycopg.connect(database.url)) for _ in range(2)]
        reader = opened.enter_context(db.connect(database.url, 60))
        workers = [Worker(one) for one in connections]
        subscription: Subscription = opened.enter_context(hub.subscribed(SERIES))
        if chance.random() < 0.5:  # began before the stream, and will be committed after it has begun
            stored += put(workers[1], chance)
        caller = make(reader, lambda: chance.random() < 0.2)
        for _ in range(30):
            worker = chance.choice(workers)
            match chance.choice(["put", "put", "commit", "look"]):
                case "put":
                    stored += put(worker, chance)
                case "commit":
                    for told in said_less(worker.commit(), chance):
                        hub.hear(told)
                case _:
                    heard += caller.look(subscription.take(0))
        for worker in workers:
            for told in worker.commit():
                hub.hear(told)
        heard += caller.look(subscription.take(0))
    return (
        sorted((one[:2], BEGIN + us(one), one.value_text or one.value) for one in stored),
        sorted((series, one.time, one.text or one.value) for series, one in heard if one.value != -1.0),
    )


def put(worker: Worker, chance: random.Random) -> list[Reading]:
    """Some readings of the same two minutes, in any order; some share a time."""
    made = []
    for _ in range(chance.randint(1, 4)):
        series = chance.choice(SERIES)
        number = chance.randint(1, 1_000)
        value: float | str = f"state {number}" if series == DOOR else float(number)
        made.append(some(series, chance.randint(1, 100), value))
    worker.put(made)
    return made


@pytest.fixture
def ready(database: Database) -> Database:
    """With the partitions that are needed."""
    store(database, [at(n, device_id="somebody") for n in (0, 10_000)])
    return database


@pytest.mark.parametrize("seed", range(20))
def test_each_reading_is_told_once_whatever_the_order_of_commits(ready: Database, seed: int) -> None:
    stored, told = play(ready, seed, Careful)
    assert told == stored


def test_who_goes_by_the_newest_time_alone_misses_readings(ready: Database) -> None:
    missed = 0
    for seed in range(5):
        stored, told = play(ready, seed, Naive)
        missed += len(told) < len(stored)
        ready.rows("delete from sensor_readings")
    assert missed, "the test above proves nothing"


@contextmanager
def following(database: Database, *series: Series, **options: Any) -> Iterator[Careful]:
    with db.connect(database.url, 60) as connection:
        made = Careful(connection, lambda: False)
        made.progress = Progress("sensor_readings")
        made.progress.begin(connection, wanted(*(series or SERIES), **options))
        connection.commit()
        yield made


def due_of(*readings: Reading) -> dict[Series, Due]:
    newest, oldest = max(readings, key=lambda one: one[2]), min(readings, key=lambda one: one[2])
    news = News(*newest[:3], newest.value, None, newest.timestamp_us - oldest.timestamp_us)
    return {TEMPERATURE: query.progress.due_of(news)}


def values(told: list[tuple[Series, Arrival]]) -> list[object]:
    return [one.text or one.value for _, one in told]


def test_what_is_too_late_is_left_out_and_the_next_reading_says_so(ready: Database) -> None:
    store(ready, [at(10_000)])
    with following(ready) as caller:
        for late, answer in ((6_400, [6_400]), (6_399, [])):  # an hour older than the newest; a second more
            store(ready, [at(late)])
            assert values(caller.look(due_of(at(late)))) == answer
        assert caller.skipped == 0
        store(ready, [at(10_001)])
        assert values(caller.look(due_of(at(10_001)))) == [10_001]
        assert caller.skipped == 1
        store(ready, [at(5), at(9_000), at(10_002)])  # a part of what a transaction stores is too late
        assert values(caller.look(due_of(at(5), at(10_002)))) == [9_000, 10_002]
        assert caller.skipped == 2


def test_a_device_whose_clock_was_ahead_makes_nobody_late(ready: Database) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=3)
    ahead_us = int(ahead.timestamp() * 1e6)
    now_us = ahead_us - 3 * 3_600_000_000
    store(ready, [at(0)._replace(timestamp_us=ahead_us)])
    with following(ready) as caller:
        one = at(0, 7.0)._replace(timestamp_us=now_us, message_id=b"m" * 16)
        store(ready, [one])
        assert values(caller.look(due_of(one))) == [7.0]
        assert caller.skipped == 0


def test_what_was_stored_before_is_not_told_and_a_replay_tells_it_once(ready: Database) -> None:
    store(ready, [at(n) for n in range(10)])
    with following(ready) as caller:
        assert caller.look(dict.fromkeys(SERIES, ANYTHING)) == []
    with following(ready, TEMPERATURE, after=BEGIN + timedelta(seconds=6)) as caller:
        assert values(caller.look(caller.progress.replaying)) == [7, 8, 9]
        assert caller.progress.replaying == {}
        store(ready, [at(3)._replace(message_id=b"x" * 16)])  # the same time as one that is there
        assert values(caller.look({TEMPERATURE: ANYTHING})) == [3]
        assert caller.look({TEMPERATURE: ANYTHING}) == []


def test_too_much_at_once_is_cut_to_the_newest_and_nothing_of_it_comes_later(ready: Database) -> None:
    with following(ready) as caller:
        batch = [at(n) for n in range(MOST + 1)]
        store(ready, batch)
        assert values(caller.look(due_of(*batch))) == [MOST]
        assert caller.skipped == 1
        store(ready, [at(20)._replace(message_id=b"x" * 16), at(MOST + 1)])
        assert values(caller.look({TEMPERATURE: ANYTHING})) == [20, MOST + 1]
        assert caller.skipped == 1


def test_memory_is_bounded_and_costs_only_transactions_that_take_long(
    ready: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query.progress, "MOST_REMEMBERED", 100)
    with following(ready) as caller:
        for first in range(0, 1_000, 40):
            batch = [at(n) for n in range(first, first + 40)]
            store(ready, batch)
            assert values(caller.look(due_of(*batch))) == list(range(first, first + 40))
            assert caller.progress.remembered <= 100
        assert caller.look({TEMPERATURE: ANYTHING}) == []


def test_keys_are_forgotten_when_no_transaction_can_be_that_old(
    ready: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query.progress, "LONGEST", timedelta(0))
    with following(ready) as caller:
        for number in range(3):
            store(ready, [at(number)])
            assert values(caller.look(due_of(at(number)))) == [number]
            assert caller.progress.remembered == 0


def test_unknown_series_are_not_looked_for_in_every_partition(plain_database: Database) -> None:
    days = 40
    store(plain_database, [at(0)._replace(timestamp_us=BEGIN_US - n * DAY_US) for n in range(days)])
    unknown = [("nobody", f"sensor-{n}") for n in range(200)]
    locked = sql.SQL(
        "select count(*) from pg_locks where pid = pg_backend_pid() and relation in"
        " (select inhrelid from pg_inherits where inhparent = 'sensor_readings'::regclass)"
    )
    with db.connect(plain_database.url, 60) as connection:

        def partitions() -> int:
            row = connection.execute(locked).fetchone()
            connection.rollback()
            return int(row[0]) if row else 0

        queries.arrivals(connection, [Wanted(series=unknown[0], start=EVER, most=1)])
        assert partitions() >= days
        for after in (None, BEGIN - timedelta(days=days)):
            progress = Progress("sensor_readings")
            progress.begin(connection, wanted(*unknown, after=after))
            progress.look(connection, dict.fromkeys(unknown, ANYTHING), 50)
            assert partitions() <= 8  # yesterday, today, and those made ahead
