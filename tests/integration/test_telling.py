"""What readers hear of new readings: what is stored, once, and without holding up whoever stores."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

import config
import telling
from live import Many, Newest, News, Told, Touched
from live_listener import Following, Listener, listening
from metrics import Stats
from ops import migrate
from retry import StopFlag
from schema import Fate, Reading
from standalone.servers import Postgres
from tests.support import Daemon, Database, add, everything_settled, wait_until
from tests.writing import InBackground, Rig, batch_of, reading, rig

Full = psycopg.errors.ProgramLimitExceeded
_numbers = itertools.count(1_000)


@pytest.fixture
def one(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        yield made


def hears(listener: Listener, count: int, seconds: float = 10.0) -> list[Told]:
    """What comes until there are `count` of it."""
    heard: list[Told] = []

    def enough() -> bool:
        heard.extend(listener.hear(0.0))
        return len(heard) >= count

    wait_until(enough, seconds, f"{count} notifications")
    return heard


def quiet(listener: Listener, database: Database) -> bool:
    """Whether nothing was told before a mark that is sent now."""
    database.rows("select pg_notify('sluice_readings', 'mark')")
    return hears(listener, 1) == [Many()]


def of_one(number: int) -> Reading:
    """Readings of one series."""
    return reading(number, device_id="d", sensor_type="s")


def news(told: Reading, oldest: Reading | None = None) -> News:
    span_us = 0 if oldest is None else told.timestamp_us - oldest.timestamp_us
    return News(*told[:3], told.value, told.value_text, span_us)


def test_a_reader_hears_the_newest_of_each_series_that_was_stored(one: Rig, database: Database) -> None:
    with listening(database.url) as listener:
        batch = [reading(n) for n in range(100)]
        one.writer.write(batch_of(batch))
        (told,) = hears(listener, 1)
        assert isinstance(told, Newest)
        newest = {one[:2]: one for one in batch}
        oldest = {one[:2]: one for one in reversed(batch)}
        assert sorted(told.readings) == sorted(news(one, oldest[one[:2]]) for one in newest.values())
        assert one.stats.notifications_sent == 1


def test_nothing_is_sent_where_nobody_listens(one: Rig, database: Database) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("listen sluice_readings")  # and does not hold the lock
        one.writer.write(batch_of([reading(1)]))
        connection.execute("select pg_notify('sluice_readings', 'mark')")
        assert [notice.payload for notice in connection.notifies(timeout=10, stop_after=1)] == ["mark"]
    assert one.stats.notifications_sent == 0


def test_a_reader_that_comes_later_or_leaves_is_noticed_within_a_second(
    one: Rig, database: Database
) -> None:
    numbers = iter(range(1_000_000))

    def store() -> int:
        one.writer.write(batch_of([reading(next(numbers))]))
        return one.stats.notifications_sent

    assert store() == 0
    with listening(database.url):
        began = time.monotonic()
        wait_until(store)
        assert time.monotonic() - began < telling.LOOK_SEC + 3.0

    def silent() -> bool:
        before = one.stats.notifications_sent
        return store() == before

    wait_until(silent, telling.LOOK_SEC + 2.0)


def test_a_reader_of_another_database_is_none_of_ours(
    one: Rig, database: Database, plain_database: Database
) -> None:
    with listening(plain_database.url):
        one.writer.write(batch_of([reading(1)]))
    assert one.stats.notifications_sent == 0


def test_what_was_there_already_is_not_told_again(one: Rig, database: Database) -> None:
    with listening(database.url) as listener:
        one.writer.write(batch_of([of_one(1), of_one(2)]))
        assert hears(listener, 1) == [Newest((news(of_one(2), of_one(1)),))]
        # The newest is there, an older one is not: what this transaction has stored is the older one.
        again = [of_one(0), of_one(1), of_one(2)]
        one.writer.write(batch_of(again, redelivered=True))
        assert hears(listener, 1) == [Newest((news(of_one(0)),))]
        one.writer.write(batch_of(again, redelivered=True))
        assert quiet(listener, database)


def test_each_transaction_of_a_batch_tells_its_own(database: Database) -> None:
    with rig(database, batch_size=10) as one, listening(database.url) as listener:
        one.writer.write(batch_of([of_one(n) for n in range(25)]))
        each = [(9, 0), (19, 10), (24, 20)]  # the newest and the oldest
        assert hears(listener, 3) == [Newest((news(of_one(n), of_one(o)),)) for n, o in each]


def test_more_than_fits_is_told_in_fewer_words(one: Rig, database: Database) -> None:
    with listening(database.url) as listener:
        one.writer.write(
            batch_of([reading(n, device_id=f"d{n:04}", sensor_type="s") for n in range(1_500)])
        )
        told = hears(listener, 3)
        assert all(isinstance(one, Touched) for one in told)
        assert sum(len(one.series) for one in told if isinstance(one, Touched)) == 1_500


@contextmanager
def following(url: str) -> Iterator[tuple[Following, list[Told]]]:
    """A reader in a thread of its own, and what it has heard so far."""
    stop, heard = StopFlag(2.0), list[Told]()
    reader = Following(url, stop, Stats(), heard.append)
    running = InBackground(reader.run)
    try:
        yield reader, heard
    finally:
        stop.set()
        running.result()


def times(heard: list[Told]) -> list[int]:
    return [one.timestamp_us for told in heard if isinstance(told, Newest) for one in told.readings]


def test_a_reader_hears_of_an_entry_within_a_second(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    worker = daemon(database, redis_url)
    worker.wait_for("worker_started")
    with following(database.url) as (_, heard):
        wait_until(lambda: len(heard) == 2)  # connected, and known to every worker
        add(client, "mqtt_stream:d:door", [{"value": '"open"', "timestamp": "1700000000"}])
        wait_until(lambda: len(heard) == 3)  # the stream is new: it has to be found first
        took = []
        for number in (1, 2, 3):  # the quickest counts: the machine may be busy
            began = time.monotonic()
            entry = {"value": '"closed"', "timestamp": str(1_700_000_000 + number)}
            add(client, "mqtt_stream:d:door", [entry])
            wait_until(lambda: len(heard) == 3 + number)  # noqa: B023  called in this very turn
            took.append(time.monotonic() - began)
        assert min(took) < 1.0
    assert heard[2:4] == [
        Newest((News("d", "door", 1_700_000_000_000_000, None, "open"),)),
        Newest((News("d", "door", 1_700_000_001_000_000, None, "closed"),)),
    ]


def test_a_worker_that_is_killed_tells_nothing_twice_and_the_next_one_tells_the_newest(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    entries = [{"value": str(n), "timestamp": str(1_700_000_000 + n)} for n in range(3_000)]
    with following(database.url) as (_, heard):
        add(client, "mqtt_stream:d:t", entries)
        worker = daemon(database, redis_url, batch_size=50, consumer_name="one")
        wait_until(lambda: len(times(heard)) > 5)
        worker.kill()
        assert len(times(heard)) < 55, "it was killed too late to interrupt anything"
        daemon(database, redis_url, batch_size=50, consumer_name="one")
        wait_until(lambda: everything_settled(client, 3_000))
        wait_until(lambda: times(heard) and max(times(heard)) == 1_700_002_999_000_000)
    assert len(times(heard)) == len(set(times(heard)))


def test_a_reader_that_lost_its_connection_comes_back_and_says_so(database: Database) -> None:
    with following(database.url) as (reader, heard), rig(database) as one:
        wait_until(lambda: heard == [Many(), Many()])
        database.rows(
            "select pg_terminate_backend(pid) from pg_locks"
            " where locktype = 'advisory' and mode = 'ShareLock' and pid <> pg_backend_pid()"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        wait_until(lambda: len(heard) >= 3)
        assert heard[2] == Many()
        wait_until(lambda: reader.connected)
        one.writer.write(batch_of([of_one(1)]))
        wait_until(lambda: times(heard))


@pytest.fixture(scope="module")
def cramped(server_folder: Path) -> Iterator[tuple[Database, str]]:
    """A database on a server whose queue of notifications is small, and its address over TCP."""
    host = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250}.77"  # loopback, and nobody else's
    options = ["fsync=off", "max_notify_queue_pages=64", f"listen_addresses={host}"]
    server = Postgres(server_folder / "cramped", options)
    server.start()
    try:
        migrate.upgrade(config.load(database_url=server.url, enable_timescale=False, retention_days=0))
        yield Database(server.url, timescale=False), f"postgresql://postgres@{host}/sluice"
    finally:
        server.stop()


def fill(database: Database, most: int = 10_000) -> None:
    """Notify until the queue is full, or `most` times."""
    with psycopg.connect(database.url, autocommit=True) as connection, contextlib.suppress(Full):
        for number in range(most):
            connection.execute("select pg_notify('sluice_readings', %s)", [f"{number:07000}"])


def usage(database: Database) -> float:
    """Asking makes the server throw away what everybody has taken."""
    return float(database.rows("select pg_notification_queue_usage()")[0][0])


def test_a_frozen_reader_holds_up_nobody(
    cramped: tuple[Database, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes nothing, and the server cannot throw away what it has not taken."""
    database, _ = cramped
    monkeypatch.setattr(telling, "LOOK_SEC", 0.0)
    with rig(database) as one, listening(database.url):
        assert told_again(one)
        fill(database)
        assert usage(database) > 0.9
        assert not told_again(one)
        assert one.stats.errors == 0
    wait_until(lambda: usage(database) < 0.1)


def told_again(one: Rig) -> bool:
    before = one.stats.notifications_sent
    one.writer.write(batch_of([reading(next(_numbers))]))
    return one.stats.notifications_sent > before


def test_a_queue_that_is_full_at_commit_costs_no_reading(
    cramped: tuple[Database, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL reports it in the class of errors that rows make."""
    database, _ = cramped
    monkeypatch.setattr(telling, "LOOK_SEC", 3_600.0)  # it has looked, and does not see the queue fill
    with rig(database) as one, listening(database.url):
        assert told_again(one)
        fill(database)
        before = database.count()
        outcome = one.writer.write(batch_of([reading(next(_numbers)) for _ in range(100)], own_id=True))
        assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
        assert database.count() == before + 100
        assert one.stats.errors == 1
        assert not told_again(one)
    wait_until(lambda: usage(database) < 0.1)


def test_a_reader_that_takes_nothing_is_disconnected_by_the_server(
    cramped: tuple[Database, str],
) -> None:
    database, over_tcp = cramped
    asked = "select count(*) from pg_stat_activity where client_addr is not null"
    with listening(over_tcp, hung_sec=1.0):
        assert database.rows(asked) == [(1,)]

        def gone() -> bool:
            fill(database, 100)
            return database.rows(asked) == [(0,)]

        wait_until(gone)
    wait_until(lambda: usage(database) < 0.1)
