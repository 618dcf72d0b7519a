"""Rollups that workers keep: exact however readings come and go, and whoever crashes where."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

import database as db
from database import BoundedConnection
from late import Late
from query import queries
from rolling import Rolling
from schema import DAY_US, Reading
from tests.rollups import (
    LEVELS,
    agree,
    expected,
    is_rolled,
    roll,
    rolled_before,
    rows_of,
)
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, Rig, batch_of, reading, rig, together

HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000
OLD_US = YESTERDAY_US - 3 * DAY_US


def at(number: int, time_us: int, **changes: Any) -> Reading:
    return reading(number, timestamp_us=time_us, **changes)


def many(count: int, start_us: int = OLD_US, step_us: int = 41_000_000) -> list[Reading]:
    """Readings of 21 series, some of them states, over days; values whose sums are exact."""
    return [
        at(n, start_us + n * step_us, value_text="on")
        if n % 11 == 0
        else at(n, start_us + n * step_us, value=n % 29 / 4)
        for n in range(count)
    ]


@pytest.fixture
def worker(plain_database: Database) -> Iterator[Rig]:
    with rig(plain_database) as made:
        made.writer.start()
        yield made


def test_history_is_summed_up_by_minute_hour_and_day(worker: Rig) -> None:
    worker.writer.write(batch_of(many(8000)))
    roll(worker)
    for level in LEVELS:
        found = rows_of(worker.database, level)
        assert found == expected(worker.database, level)
        assert len(found) > 20
    until = rolled_before(worker.database)
    assert until is not None
    assert until > datetime.now(UTC) - timedelta(minutes=8)


def test_gaps_of_years_are_passed_over(worker: Rig) -> None:
    worker.writer.write(batch_of([at(1, 5 * HOUR_US), at(2, YESTERDAY_US), at(3, 20 * 365 * DAY_US)]))
    roll(worker)
    assert agree(worker.database)
    assert len(rows_of(worker.database, "day")) == 3


def test_late_readings_end_up_in_the_rollups(worker: Rig) -> None:
    worker.writer.write(batch_of(many(3000)))
    roll(worker)
    late = [one._replace(message_id=b"x" * 16, value=8.25, value_text=None) for one in many(3000)[::7]]
    worker.writer.write(batch_of(late))
    assert not agree(worker.database)
    roll(worker)
    assert agree(worker.database)


def test_a_batch_that_is_not_late_notes_nothing(worker: Rig) -> None:
    worker.writer.write(batch_of([at(1, YESTERDAY_US)]))
    roll(worker)
    now = int(datetime.now(UTC).timestamp()) * 1_000_000
    worker.writer.write(batch_of([at(n, now + n) for n in range(100)]))
    assert worker.database.rows("select * from rollup_dirty") == []


def test_redelivered_readings_that_are_there_note_nothing(worker: Rig) -> None:
    readings = many(200)
    worker.writer.write(batch_of(readings))
    roll(worker)
    worker.writer.write(batch_of(readings, redelivered=True))
    assert worker.database.rows("select * from rollup_dirty") == []


def test_deleted_readings_leave_the_rollups(worker: Rig) -> None:
    worker.writer.write(batch_of(many(4000)))
    roll(worker)
    with db.connect(worker.database.url, 20.0) as connection:
        assert queries.delete_readings(connection, ["device-3"], 100) == 100
        assert not agree(worker.database)
        while queries.delete_readings(connection, ["device-3"], 100):
            pass
        assert queries.delete_rollups(connection, "device-3", 50) == 50
        while queries.delete_rollups(connection, "device-3", 50):
            pass
    for level in LEVELS:
        assert not [row for row in rows_of(worker.database, level) if row[0] == "device-3"]
    roll(worker)
    assert agree(worker.database)


def test_deleting_a_part_is_made_right_by_summing_up_again(worker: Rig) -> None:
    worker.writer.write(batch_of(many(4000)))
    roll(worker)
    with db.connect(worker.database.url, 20.0) as connection:
        for _ in range(3):
            queries.delete_readings(connection, ["device-3"], 70)
    roll(worker)
    assert agree(worker.database)


def test_numbers_too_large_to_add_up_end_nobody(worker: Rig) -> None:
    huge = [at(n, OLD_US + n * 1000, value=1.7e308, device_id="d", sensor_type="s") for n in range(3)]
    worker.writer.write(batch_of([*huge, at(9, OLD_US + 2 * HOUR_US, device_id="d", sensor_type="s")]))
    roll(worker)
    rows = worker.database.rows("select count, sum, min, max from readings_day")
    assert rows == [(4, None, 9.0, 1.7e308)]
    assert worker.database.rows("select count, sum from readings_hour order by bucket")[1] == (1, 9.0)


# What was dropped by retention


def test_rollups_outlive_the_readings_and_are_not_summed_up_again(plain_database: Database) -> None:
    with rig(plain_database, retention_days=3) as one:
        one.writer.start()
        one.writer.write(batch_of(many(12_000)))
        roll(one)
        before = {level: rows_of(plain_database, level) for level in LEVELS}
        keep(one)
        assert oldest(plain_database) >= today() - timedelta(days=3)
        # A late reading of a day that was dropped: its partition is made anew, and dropped again.
        one.writer.write(batch_of([at(99_999, OLD_US + 7, value=1.0)]))
        roll(one)
        keep(one)
        assert {level: rows_of(plain_database, level) for level in LEVELS} == before
    assert len(before["day"]) > len(expected(plain_database, "day"))


def keep(one: Rig) -> None:
    """The next time that partitions are looked after."""
    one.hurry(61.0)
    one.writer.upkeep()


def today() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def oldest(database: Database) -> datetime:
    found: datetime = database.rows("select min(timestamp) from sensor_readings")[0][0]
    return found


def test_readings_that_are_not_summed_up_yet_are_not_dropped(plain_database: Database) -> None:
    with rig(plain_database, retention_days=1, caught_up_at=lambda: float("-inf")) as one:
        one.writer.start()
        one.writer.write(batch_of(many(500)))
        for _ in range(3):
            keep(one)
        assert plain_database.count() == 500


# Crashes


class Crash(Exception):
    pass


@pytest.mark.parametrize("late", [False, True], ids=["history", "late"])
def test_a_crash_between_any_two_statements_costs_nothing(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    with rig(plain_database) as one:
        one.writer.start()
        one.writer.write(batch_of(many(600)))
        if late:
            roll(one)
            again = [r._replace(message_id=b"y" * 16, value=0.5, value_text=None) for r in many(600)[::5]]
            one.writer.write(batch_of(again))
    crashes = 0
    for left in range(1, 400):
        if not crash_after(plain_database, monkeypatch, left):
            break
        crashes += 1
    assert crashes > 10
    with rig(plain_database) as one:
        roll(one)
    assert agree(plain_database)


def crash_after(database: Database, monkeypatch: pytest.MonkeyPatch, left: int) -> bool:
    """Roll on a connection of its own that is cut before statement or COMMIT number `left`; False if it was
    done before that.
    """
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == left:
                raise Crash
            return call(*arguments, **options)

        return run

    rolling = Rolling("sensor_readings", "crashing", caught_up_at=lambda: 0.0, clock=lambda: 0.0)
    with db.connect(database.url, 20.0) as connection, monkeypatch.context() as patched:
        patched.setattr(connection, "execute", counted(connection.execute))
        patched.setattr(connection, "commit", counted(connection.commit))

        def begin() -> BoundedConnection:
            return connection

        try:
            for _ in range(4):
                rolling._forward(begin, 0.0)
                rolling._repair(begin)
        except Crash:
            return True
        finally:
            connection.close()
    return not is_rolled(database)


# Many workers


def write_slowly(connection: psycopg.Connection) -> None:
    """A reading of yesterday, in a transaction that is yet to be committed."""
    connection.execute(
        "insert into sensor_readings (device_id, sensor_type, timestamp, value, message_id)"
        " values ('slow', 's', %s, 1, gen_random_uuid())",
        [datetime.fromtimestamp(YESTERDAY_US / 1e6, UTC)],
    )


def test_the_border_waits_for_a_transaction_that_wrote_before_it_moved(plain_database: Database) -> None:
    with rig(plain_database) as one, psycopg.connect(plain_database.url) as slow:
        one.writer.start()
        one.writer.write(batch_of([at(1, YESTERDAY_US)]))
        write_slowly(slow)  # has asked for no border yet
        for _ in range(5):
            one.writer.upkeep()
            one.hurry()
        assert plain_database.rows("select rolled_before < late_before from rollup_state") == [(True,)]
        slow.commit()
        roll(one)
    assert agree(plain_database)
    assert [row for row in rows_of(plain_database, "day") if row[0] == "slow"]


def write_at_random(database: Database, seed: int, stop: threading.Event) -> int:
    """A worker that stores readings of the last hours, most of them late, with pauses before COMMIT."""
    chance, number = random.Random(seed), 0
    with rig(database, holder=f"worker-{seed}") as one:
        one.writer.start()
        now = int(datetime.now(UTC).timestamp()) * 1_000_000
        while not stop.is_set():
            readings = []
            for _ in range(chance.randrange(1, 40)):
                number += 1
                time_us = now - chance.randrange(20 * HOUR_US)
                identity = (seed * 1_000_000 + number).to_bytes(16, "big")
                value = chance.randrange(64) / 4
                readings.append(
                    at(chance.randrange(12), time_us, value=value)._replace(message_id=identity)
                )
            one.writer.write(batch_of(readings))
            one.hurry()
            one.writer.upkeep()
    return number


def race(database: Database) -> bool:
    """Two workers write at random while they roll; whether the rollups are exact in the end."""
    stop = threading.Event()
    workers = [InBackground(partial(write_at_random, database, seed, stop)) for seed in (1, 2)]
    wait_until(lambda: database.count() > 4000, 60.0)
    stop.set()
    assert sum(one.result(30.0) for one in workers) == database.count()
    with rig(database, holder="last") as one:
        roll(one)
    return agree(database)


def test_two_workers_with_late_readings_at_random_leave_exact_rollups(plain_database: Database) -> None:
    assert race(plain_database)


def test_without_notes_the_same_race_leaves_wrong_rollups(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Late, "note", lambda *_: None)
    assert not race(plain_database)


def test_a_border_that_moves_without_waiting_leaves_wrong_rollups(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive counterpart of waiting: what a slow transaction stores behind the border is lost."""
    monkeypatch.setattr(Rolling, "_waits", lambda *_: False)
    with rig(plain_database) as one, psycopg.connect(plain_database.url) as slow:
        one.writer.start()
        one.writer.write(batch_of([at(1, YESTERDAY_US)]))
        write_slowly(slow)
        roll(one)
        slow.commit()
        roll(one)
    assert not agree(plain_database)


def test_two_workers_at_once_roll_once(plain_database: Database) -> None:
    with rig(plain_database, holder="a") as one, rig(plain_database, holder="b") as two:
        for worker in (one, two):
            worker.writer.start()
        one.writer.write(batch_of(many(3000)))
        together([lambda: roll(one), lambda: roll(two)])
    assert agree(plain_database)
