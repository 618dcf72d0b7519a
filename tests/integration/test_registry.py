"""The registry in a real database: newest values, what is new, and several workers at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import database as adapter
import registry as module
from database import BoundedConnection
from db_writer import DatabaseWriter
from registry import FLUSH_SEC, FORGET_SEC, LONGEST_SEC, SHARE, Registry
from schema import DeviceStatus, Fate, Reading, Reason
from tests.locks import deadlocks, waiting_for_a_lock
from tests.support import Database, wait_until
from tests.writing import InBackground, Rig, batch_of, reading, rig, together


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def connection(database: Database) -> Iterator[BoundedConnection]:
    with adapter.connect(database.url, 30) as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def one(clock: Clock, connection: BoundedConnection) -> Registry:
    made = Registry(clock=clock)
    made.load(connection)
    connection.commit()
    return made


def flush(registry: Registry, connection: BoundedConnection, took: float = 0.0) -> None:
    registry.flush(connection)
    connection.commit()
    registry.flushed(took)


def of(device: str, number: int, **changes: Any) -> Reading:
    return reading(number, **{"device_id": device, "sensor_type": "x"} | changes)


def series(database: Database, columns: str) -> list[tuple[Any, ...]]:
    return database.rows(f"select {columns} from series order by device_id, sensor_type")


def test_each_series_keeps_its_newest_value_and_time(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    one.note([of("a", 1), of("a", 2), of("b", 3, value_text="open")])
    flush(one, connection)
    assert series(database, "device_id, last_value, last_value_text") == [
        ("a", 2.0, None),
        ("b", None, "open"),
    ]
    one.note([of("b", 4)])
    flush(one, connection)
    assert series(database, "device_id, last_value, last_value_text") == [
        ("a", 2.0, None),
        ("b", 4.0, None),
    ]
    assert database.rows("select device_id from devices order by 1") == [("a",), ("b",)]


@pytest.mark.parametrize("together_", [True, False], ids=["in one flush", "in two"])
def test_an_older_reading_moves_when_it_was_seen_and_not_its_value(
    database: Database, one: Registry, connection: BoundedConnection, clock: Clock, together_: bool
) -> None:
    one.note([of("a", 5)])
    if not together_:
        flush(one, connection)
    database.rows("update series set last_seen = now() - interval '1 hour', first_seen = last_seen")
    clock.now += 30
    one.note([of("a", 4)])
    flush(one, connection)
    recent = "last_seen > now() - interval '20 s'"
    assert series(database, f"last_value, {recent}, first_seen <= now()") == [(5.0, True, True)]


def test_many_notes_of_a_series_are_one_row_of_one_flush(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    for number in range(1000):
        one.note([of("a", number)])
    assert len(one._dirty) == 1
    flush(one, connection)
    assert series(database, "last_value") == [(999.0,)]


def test_it_is_written_about_once_a_second_and_later_where_writing_takes_long(
    one: Registry, connection: BoundedConnection, clock: Clock
) -> None:
    flushes = 0
    for _ in range(1000):  # ten seconds of batches
        one.note([of("a", 1)])
        if clock() >= one.due_at:
            flush(one, connection)
            flushes += 1
        clock.now += 0.01
    assert 12 <= flushes <= 14
    for took, pause in ((0.001, FLUSH_SEC), (0.1, 0.1 / SHARE), (9.0, LONGEST_SEC)):
        one.flushed(took)
        one.note([of("a", 1)])
        assert one.due_at - clock() == pytest.approx(pause)


def test_nothing_noted_is_never_due(one: Registry) -> None:
    assert one.due_at == float("inf")


def test_only_what_is_new_is_urgent(one: Registry, connection: BoundedConnection) -> None:
    one.note([of("a", 1)])
    assert one.urgent
    flush(one, connection)
    one.note([of("a", 2)])
    assert not one.urgent
    one.note_status(DeviceStatus("a", True, 1))
    assert one.urgent


def test_a_status_goes_by_its_time(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    one.note_status(DeviceStatus("a", True, 2_000_000))
    one.note_status(DeviceStatus("a", False, 1_000_000))
    flush(one, connection)
    one.note_status(DeviceStatus("a", False, 1_500_000, "attic"))
    flush(one, connection)
    assert database.rows("select status, owner from devices") == [("online", "attic")]


def test_an_owner_that_another_worker_has_changed_stays_changed(
    database: Database, one: Registry, connection: BoundedConnection, clock: Clock
) -> None:
    """This worker heard of the owner once, long ago; it may not write it over the new one."""
    one.note_owner("a", "old")
    one.note([of("a", 1)])
    flush(one, connection)
    two = Registry(clock=clock)
    two.load(connection)
    two.note_owner("a", "new")
    two.note([of("a", 2)])
    flush(two, connection)
    one.note([of("a", 3)])
    flush(one, connection)
    assert database.rows("select owner from devices") == [("new",)]
    assert series(database, "owner") == [("new",)]


def test_an_owner_is_kept_for_the_first_readings_and_given_to_new_series(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    one.note_owner("a", "attic")
    one.note([of("b", 1)])
    flush(one, connection)  # nothing of `a` yet
    one.note([of("a", 2)])
    flush(one, connection)
    one.note([of("a", 3, sensor_type="y")])
    flush(one, connection)
    assert series(database, "device_id, owner") == [("a", "attic"), ("a", "attic"), ("b", "")]


def test_a_flush_that_failed_is_written_by_the_next(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    one.note([of("a", 1)])
    with psycopg.connect(database.url) as other:
        other.execute("lock table series")
        connection.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            one.flush(connection)
        connection.rollback()
    one.note([of("b", 2)])
    flush(one, connection)
    assert series(database, "device_id, last_value") == [("a", 1.0), ("b", 2.0)]


def test_a_flood_of_new_series_keeps_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 1000)
    registry = Registry()
    for number in range(20):
        registry.note([of(f"d{number:02}-{n:04}", n) for n in range(300)])
        registry.flushed(0)
        assert len(registry._known) <= 1300


GONE = """
    with gone as (
        insert into devices (device_id, owner, last_seen)
        select 'gone-' || n, 'attic', now() - make_interval(days => n) from generate_series(2, 300) as n
        returning device_id, last_seen
    ) insert into series (device_id, sensor_type, last_seen) select device_id, 'x', last_seen from gone
"""
HEARD = GONE.replace("gone-", "heard-").replace("days => n", "secs => n")


def test_what_was_not_heard_of_for_long_is_in_the_table_and_not_in_memory(
    database: Database, connection: BoundedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.rows(GONE)
    database.rows(HEARD)
    registry = Registry()
    registry.load(connection)
    assert len(registry._known) == len(registry._devices) == len(registry._owners) == 299
    monkeypatch.setattr(module, "_MOST_LOADED", 10)
    registry.load(connection)
    assert registry._known == {(f"heard-{n}", "x") for n in range(2, 12)}
    assert len(registry._owners) == 10
    registry.note([of("gone-300", 1)])  # it is back
    flush(registry, connection)
    assert database.rows("select owner, last_value from series where device_id = 'gone-300'") == [
        ("attic", 1.0)
    ]
    assert database.rows("select owner from devices where device_id = 'gone-300'") == [("attic",)]


def test_once_a_day_who_is_silent_is_forgotten(
    database: Database, one: Registry, connection: BoundedConnection, clock: Clock
) -> None:
    one.note([of("silent", 1), of("there", 1)])
    flush(one, connection)
    database.rows("update series set last_seen = now() - interval '2 days' where device_id = 'silent'")
    clock.now += FORGET_SEC - 1
    one.verify(connection)
    assert one._known == {("silent", "x"), ("there", "x")}
    clock.now += 1
    one.verify(connection)
    assert one._known == {("there", "x")}


def test_owners_of_devices_of_which_nothing_is_stored_do_not_pile_up(
    database: Database, one: Registry, connection: BoundedConnection
) -> None:
    """A device whose readings are all refused, and another one after each of its starts."""
    one.note_owner("a", "attic")
    one.note([of("a", 1)])
    for number in range(50):
        one.note_owner(f"refused-{number}", "cellar")
    one.verify(connection)
    assert one._new_owners == one._owners.keys() == {"a"}
    flush(one, connection)
    one.note_owner("refused-7", "cellar")  # it is accepted now
    one.note([of("refused-7", 1)])
    flush(one, connection)
    assert series(database, "device_id, owner") == [("a", "attic"), ("refused-7", "cellar")]


def test_a_registered_series_that_was_silent_for_long_is_no_unknown_one(database: Database) -> None:
    database.rows(GONE)
    with rig(database, accept_unknown_series=False) as worker:
        assert fates(worker, of("gone-300", 1), of("nobody", 1)) == [Fate.STORED, Fate.DEAD_LETTERED]


def test_a_new_series_is_in_the_table_before_its_entry_is_acknowledged(database: Database) -> None:
    with rig(database) as worker:
        worker.writer.write(batch_of([of("a", 1)]))
        assert series(database, "device_id, last_value") == [("a", 1.0)]


def test_a_crash_between_the_rows_and_the_registry_is_repaired_by_redelivery(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashed(*_: object, **__: object) -> None:
        raise SystemExit

    with rig(database) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "flush", crashed)
            with pytest.raises(SystemExit):
                worker.writer.write(batch_of([of("a", 1)]))
        worker.writer._registry._dirty.clear()
        worker.writer._session.drop()
    assert (database.count(), series(database, "device_id")) == (1, [])
    with rig(database) as worker:
        worker.writer.write(batch_of([of("a", 1)], redelivered=True))
    assert series(database, "device_id, last_value") == [("a", 1.0)]


def test_close_writes_what_is_noted(database: Database) -> None:
    with rig(database) as worker:
        worker.writer.write(batch_of([of("a", 1)]))
        worker.writer.write(batch_of([of("a", 2)]))
        assert series(database, "last_value") == [(1.0,)]
    assert series(database, "last_value") == [(2.0,)]


def test_what_was_noted_outlives_a_lost_connection(database: Database) -> None:
    with rig(database) as worker:
        worker.writer.write(batch_of([of("a", 1)]))
        worker.writer.write(batch_of([of("a", 2)]))
        database.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'sluice'"
        )

        def written() -> bool:
            worker.writer.upkeep()
            return series(database, "last_value") == [(2.0,)]

        wait_until(written)


def test_a_row_that_somebody_has_locked_holds_up_no_reading(database: Database) -> None:
    """A forgotten BEGIN; UPDATE series in somebody's psql must not stop the ingest."""
    with rig(database) as worker, psycopg.connect(database.url) as other:
        worker.writer.write(batch_of([of("a", 1)]))
        other.execute("select 1 from series for update")
        worker.writer.write(batch_of([of("a", 2)]))
        worker.writer._housekeeping._pieces[0].due_at = lambda: 0.0
        with capture_logs() as logs:
            worker.writer.upkeep()
        assert [log["what"] for log in logs if log["event"] == "housekeeping_put_off"] == ["registry"]
        assert worker.writer.write(batch_of([of("a", 3), of("new", 1)])).readings_stored == 2
        assert series(database, "device_id, last_value") == [("a", 1.0), ("new", 1.0)]
        other.commit()
    assert series(database, "last_value") == [(3.0,), (1.0,)]


def test_an_owner_that_another_worker_wrote_later_stays(database: Database) -> None:
    with rig(database) as one, rig(database) as two:
        one.writer.start()
        two.writer.start()
        one.writer._registry.note_owner("a", "p1")
        one.writer.write(batch_of([of("a", 1)]))
        database.rows("update devices set owner = 'p2'")
        one.writer.write(batch_of([of("a", 2)]))
    assert database.rows("select owner from devices") == [("p2",)]


@pytest.mark.parametrize("payload", ["x", "5", "[1]", '[["a"]]', '["a"]', "{}", "", '["a", "b", "c"]', "*"])
def test_whatever_somebody_notifies_no_worker_ends(database: Database, payload: str) -> None:
    with rig(database) as worker:
        worker.writer.start()
        for channel in ("sluice_series", "sluice_thresholds"):
            database.rows("select pg_notify(%s, %s)", channel, payload)
        assert worker.writer.write(batch_of([of("a", 1)])).readings_stored == 1
        worker.writer._learn()
        assert worker.writer.write(batch_of([of("a", 2)])).readings_stored == 1


def test_eight_workers_on_the_same_series_in_other_orders_never_deadlock(database: Database) -> None:
    names = [f"d{number:04}" for number in range(1000)]
    with ExitStack() as stack:
        rigs = [stack.enter_context(rig(database)) for _ in range(8)]

        def work(number: int) -> None:
            chance = random.Random(number)
            for turn in range(4):
                mixed = names[:]
                chance.shuffle(mixed)
                message = (number * 10 + turn).to_bytes(16, "big")
                rigs[number].writer.write(batch_of([of(d, turn, message_id=message) for d in mixed]))
                rigs[number].writer._housekeeping._write_registry(rigs[number].writer._session.begin)

        together([lambda n=n: work(n) for n in range(8)])  # type: ignore[misc]
        assert [one.stats.errors for one in rigs] == [0] * 8
    assert deadlocks(database) == 0
    assert series(database, "count(*) over ()")[0] == (1000,)
    assert database.rows("select distinct last_value from series") == [(3.0,)]


def test_workers_that_flush_the_same_rows_wait_in_turn(database: Database) -> None:
    with rig(database) as worker, psycopg.connect(database.url) as other:
        worker.writer.write(batch_of([of("a", 1), of("b", 1)]))
        other.execute("select 1 from series where device_id = 'a' for update")
        worker.writer.write(batch_of([of("a", 2), of("b", 2)]))  # the readings wait for nobody
        begin = worker.writer._session.begin
        flushed = InBackground(lambda: worker.writer._housekeeping._write_registry(begin))
        wait_until(lambda: waiting_for_a_lock(database))
        other.execute("set lock_timeout = '2s'")
        other.execute("select 1 from series where device_id = 'b' for update")  # free: `a` comes first
        other.commit()
        flushed.result()
        assert worker.stats.errors == 0


def fates(worker: Rig, *readings: Reading) -> list[Fate]:
    return [settled.fate for settled in worker.writer.write(batch_of(readings)).settled]


def learned(worker: Rig, condition: Callable[[Registry], object]) -> None:
    """Wait for a notification to have been heard."""

    def heard() -> object:
        worker.writer._learn()
        return condition(worker.writer._registry)

    wait_until(heard)


def test_readings_of_a_series_that_is_switched_off_are_skipped_beside_others(database: Database) -> None:
    with rig(database) as worker:
        fates(worker, of("a", 1), of("b", 1))
        database.rows("update series set active = false where device_id = 'a'")
        learned(worker, lambda registry: registry._inactive)
        assert fates(worker, of("a", 2), of("b", 2), of("c", 2)) == [Fate.SKIPPED, Fate.STORED, Fate.STORED]
        database.rows("update series set active = true")
        learned(worker, lambda registry: not registry._inactive)
        assert fates(worker, of("a", 2)) == [Fate.STORED]
    assert database.count() == 5


def test_unknown_series_are_rejected_until_somebody_registers_them(database: Database) -> None:
    with rig(database, accept_unknown_series=False) as worker:
        outcome = worker.writer.write(batch_of([of("a", 1)]))
        (settled,) = outcome.settled
        assert settled.rejection is not None
        assert (settled.fate, settled.rejection.reason) == (Fate.DEAD_LETTERED, Reason.UNKNOWN_SERIES)
        database.rows("insert into series (device_id, sensor_type) values ('a', 'x')")
        assert fates(worker, of("a", 1), of("b", 1)) == [Fate.STORED, Fate.DEAD_LETTERED]
        database.rows("delete from series")
        learned(worker, lambda registry: ("a", "x") not in registry._known)
        assert fates(worker, of("a", 2)) == [Fate.DEAD_LETTERED]
    assert database.count() == 1


LEARNING: dict[str, Callable[[DatabaseWriter], None]] = {
    "by a look on the next connection": lambda writer: writer._session.drop(),
    "by the periodic look": lambda writer: setattr(writer._knowledge, "_next_look", 0.0),
}


@pytest.mark.parametrize("how", LEARNING)
@pytest.mark.parametrize("accept", [True, False], ids=["accepting unknown", "rejecting unknown"])
def test_a_change_whose_notification_was_lost_is_learned(
    database: Database, how: str, accept: bool
) -> None:
    database.rows("insert into series (device_id, sensor_type) values ('a', 'x')")
    with rig(database, accept_unknown_series=accept) as worker:
        assert fates(worker, of("a", 1)) == [Fate.STORED]
        database.rows("alter table series disable trigger all")
        database.rows("update series set active = false")
        assert fates(worker, of("a", 2)) == [Fate.STORED]
        LEARNING[how](worker.writer)
        assert fates(worker, of("a", 3)) == [Fate.SKIPPED]
