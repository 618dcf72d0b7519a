"""Device events in the database: any order leaves the same, and devices go in bounded steps."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import database as db
import event_store
import removal
from database import BoundedConnection
from housekeeping import REFUSED_SEC
from partitions import Partitions
from schema import DAY_US, DeviceEvent, EventKind, Reading
from staging import copy_rows
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, reading, rig, together

CREATED, UPDATED, DELETED, GONE = EventKind
OLD_US = YESTERDAY_US - 60 * DAY_US
RULES = """
    select id, device_pattern, sensor_pattern, kind, severity, value, sensor_id from thresholds order by id
"""
APPLIED = "select subject, ms::text, rank, seq::text from applied_events order by subject"


@pytest.fixture
def connection(database: Database) -> Iterator[BoundedConnection]:
    with db.connect(database.url, 20.0) as made:
        yield made


def put(kind: EventKind, ms: int, value: float = 1.0, device: str = "d1", **changes: Any) -> DeviceEvent:
    """A threshold event of the rule t1."""
    whole = DeviceEvent(kind, (ms, 0), (device,), "t1", "temp", "max", value, "warning", "s1")
    if kind is DELETED:
        whole = DeviceEvent(kind, (ms, 0), (device,), "t1")
    return whole._replace(**changes)


def gone(ms: int, *devices: str) -> DeviceEvent:
    return DeviceEvent(GONE, (ms, 0), devices or ("d1",))


def apply_all(connection: BoundedConnection, events: Sequence[DeviceEvent]) -> list[bool]:
    return [event_store.apply(connection, event, 20.0) for event in events]


def finish(
    connection: BoundedConnection, table: str = "sensor_readings", rows: int = 10_000
) -> list[float]:
    """Take all steps; the seconds of each."""
    took: list[float] = []
    more = True
    while more:
        began = time.monotonic()
        more = event_store.deletion_step(connection, table, 20.0, rows)
        took.append(time.monotonic() - began)
        assert len(took) < 1000, "the deletion does not come to an end"
    return took


def wipe(session: psycopg.Connection[Any]) -> None:
    for table in ("thresholds", "applied_events", "device_deletions", "alerts", "series", "devices"):
        session.execute(f"delete from {table}")


HISTORIES = {
    "a rule that lives": [put(CREATED, 1), put(UPDATED, 2, 2.0), put(UPDATED, 3, 3.0)],
    "a rule that was deleted": [put(CREATED, 1), put(UPDATED, 2, 2.0), put(DELETED, 3)],
    "a rule that came back": [put(CREATED, 1), put(DELETED, 2), put(CREATED, 3, 3.0)],
    "a device that was deleted": [put(CREATED, 1), put(UPDATED, 2, 2.0), gone(3), put(DELETED, 4)],
    "a device that came back": [put(CREATED, 1), gone(2), put(CREATED, 3, 3.0), put(UPDATED, 4, 4.0)],
    "all in one millisecond": [put(CREATED, 5), put(UPDATED, 5, 2.0), put(DELETED, 5), gone(5)],
    "a device and its rule in one millisecond": [put(CREATED, 5), put(UPDATED, 5, 2.0), gone(5)],
    "two of one millisecond": [put(UPDATED, 5, 1.0), put(UPDATED, 5, 2.0, moment=(5, 1))],
    "a rule that moved away": [
        put(CREATED, 1), put(UPDATED, 2, 2.0, "d2"), gone(3), put(UPDATED, 4, 4.0, "d2")
    ],
    "a rule that moved to its end": [put(CREATED, 1), put(UPDATED, 4, 2.0, "d2"), gone(5, "d2", "d3")],
    "numbers of 64 bits": [
        put(UPDATED, 2**64 - 2), put(UPDATED, 2**64 - 1, 2.0, moment=(2**64 - 1, 2**64 - 1))
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", ["after each event", "at the end"])
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_whatever_the_order_of_events_they_leave_the_same_behind(
    database: Database, connection: BoundedConnection, history: list[DeviceEvent], steps: str
) -> None:
    ends: list[Any] = []
    with psycopg.connect(database.url, autocommit=True) as session:

        def rows(query: str) -> list[Any]:
            return session.execute(query).fetchall()

        for order in itertools.permutations(history):
            wipe(session)
            for event in order:
                event_store.apply(connection, event, 20.0)
                if steps == "after each event":
                    finish(connection)
            finish(connection)
            ends.append((rows(RULES), rows(APPLIED)))
            assert rows("select device_id from device_deletions") == []
            assert apply_all(connection, order) == [False] * len(history), (
                "delivered again, nothing changes"
            )
            assert (rows(RULES), rows(APPLIED)) == ends[-1]
            assert rows("select device_id from device_deletions") == []
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a rule that lives", 3.0),
        ("a rule that was deleted", None),
        ("a rule that came back", 3.0),
        ("a device that was deleted", None),
        ("a device that came back", 4.0),
        ("all in one millisecond", None),
        ("a device and its rule in one millisecond", None),
        ("two of one millisecond", 2.0),
        ("a rule that moved away", 4.0),
        ("a rule that moved to its end", None),
        ("numbers of 64 bits", 2.0),
    ],
)
def test_what_events_leave_behind_is_what_the_last_one_says(
    database: Database, connection: BoundedConnection, name: str, value: float | None
) -> None:
    apply_all(connection, HISTORIES[name])
    finish(connection)
    assert [row[5] for row in database.rows(RULES)] == ([] if value is None else [value])


def test_four_workers_apply_the_same_events_at_the_same_time(database: Database) -> None:
    events = [
        put((CREATED, UPDATED)[n % 2], n, float(n), f"d{n % 3}", threshold_id=f"t{n % 7}")
        for n in range(60)
    ] + [gone(30 + n, *(f"d{m}" for m in range(n % 3 + 1))) for n in range(6)]

    def worker(start: int) -> list[bool]:
        with db.connect(database.url, 20.0) as connection:
            order = events[start:] + events[:start]
            return apply_all(connection, order if start % 2 else order[::-1])

    together([partial(worker, start) for start in (0, 17, 34, 51)])
    with db.connect(database.url, 20.0) as connection:
        finish(connection)
        rules, applied = database.rows(RULES), database.rows(APPLIED)
        with psycopg.connect(database.url, autocommit=True) as session:
            wipe(session)
        apply_all(connection, sorted(events, key=lambda event: (event.moment[0], event.kind.value)))
        finish(connection)
    assert (database.rows(RULES), database.rows(APPLIED)) == (rules, applied)


def test_a_rule_cannot_slip_in_beside_the_deletion_of_its_device(
    database: Database, connection: BoundedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is about to commit a rule when another deletes the device, and finishes, if it can."""

    def delete() -> None:
        with db.connect(database.url, 20.0) as other:
            apply_all(other, [gone(5)])
            finish(other)

    commit = connection.commit
    running: list[InBackground[None]] = []

    def late() -> None:
        monkeypatch.setattr(connection, "commit", commit)
        running.append(InBackground(delete))
        waits = "select 1 from pg_locks where not granted and database = (select oid from pg_database where"
        wait_until(lambda: running[0].done or database.rows(f"{waits} datname = current_database())"))
        commit()

    monkeypatch.setattr(connection, "commit", late)
    assert apply_all(connection, [put(CREATED, 3)]) == [True]
    running[0].result()
    assert database.rows(RULES) == []


def test_an_event_tells_what_it_says_and_leaves_the_rest_as_users_have_set_it(
    database: Database, connection: BoundedConnection
) -> None:
    assert apply_all(connection, [put(CREATED, 1)]) == [True]
    assert database.rows(RULES) == [("t1", "d1", "temp", "max", "warning", 1.0, "s1")]
    database.rows(
        "update thresholds set hysteresis = 0.5, debounce_count = 3, debounce_sec = 9, enabled = false"
    )
    changed = put(UPDATED, 2, 7.0, sensor_type="hum", bound="min", severity="critical", sensor_id=None)
    assert apply_all(connection, [changed]) == [True]
    assert database.rows(RULES) == [("t1", "d1", "hum", "min", "critical", 7.0, None)]
    assert database.rows("select hysteresis, debounce_count, debounce_sec, enabled from thresholds") == [
        (0.5, 3, 9.0, False)
    ]


def test_a_rule_that_a_user_made_another_kind_becomes_what_the_event_says(
    database: Database, connection: BoundedConnection
) -> None:
    apply_all(connection, [put(CREATED, 1)])
    database.rows("update thresholds set kind = 'rate', window_sec = 60")
    apply_all(connection, [put(UPDATED, 2, 2.0)])
    database.rows("update thresholds set kind = 'equals', value = null, value_text = 'open'")
    apply_all(connection, [put(UPDATED, 3, 3.0)])
    assert database.rows("select kind, value, value_text, window_sec from thresholds") == [
        ("max", 3.0, None, None)
    ]


def test_an_event_that_the_database_refuses_leaves_nothing_and_the_connection_usable(
    database: Database, connection: BoundedConnection
) -> None:
    database.rows("alter table thresholds add constraint mine check (value < 100)")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        event_store.apply(connection, put(CREATED, 1, 200.0), 20.0)
    assert db.is_row_fault(caught.value)
    assert database.rows(APPLIED) == []
    assert apply_all(connection, [put(CREATED, 1, 50.0)]) == [True]


# Devices


def days_of_old(database: Database, connection: BoundedConnection, days: int) -> None:
    """Where they are to be made first: partitions for this many days from OLD_US on."""
    if not database.timescale:
        first = OLD_US // DAY_US
        Partitions("sensor_readings", 60.0).ensure(connection, set(range(first, first + days)))


def copy(connection: BoundedConnection, readings: Sequence[Reading]) -> None:
    db.begin(connection, 60.0)
    copy_rows(connection, "sensor_readings", sorted(readings, key=lambda one: one.key))
    connection.commit()


def fill(database: Database, device: str, sensors: int, days: int, a_day: int) -> int:
    """Readings of `device`, as many a day in each of `days` days; how many in all."""
    whole = [
        reading(
            n,
            device_id=device,
            sensor_type=f"s{n % sensors}",
            timestamp_us=OLD_US + n // a_day * DAY_US + n % a_day * (DAY_US // a_day),
        )
        for n in range(days * a_day)
    ]
    with db.connect(database.url, 60.0) as connection:
        days_of_old(database, connection, days)
        for start in range(0, len(whole), 10_000):
            copy(connection, whole[start : start + 10_000])
    return len(whole)


def surround(database: Database, device: str) -> None:
    """All else that a device may have."""
    database.rows("insert into devices (device_id, status) values (%s, 'online')", device)
    database.rows(
        "insert into series (device_id, sensor_type) values (%s, 's0'), (%s, 's1')", device, device
    )
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, value) values"
        " (%s || '-exact', %s, '*', 'max', 1)",
        device,
        device,
    )
    for _ in range(3):
        database.rows(
            "insert into alerts (id, threshold_id, device_id, sensor_type, threshold_type, severity,"
            " status, first_time, last_time, created_at, resolved_at) values (gen_random_uuid(), 'x', %s,"
            " 's0', 'max', 'warning', 'resolved', now(), now(), now(), now())",
            device,
        )


def left(database: Database, device: str) -> dict[str, int]:
    counts = {
        table: database.rows(f"select count(*) from {table} where device_id = %s", device)[0][0]
        for table in ("alerts", "sensor_readings", "series", "devices", "device_deletions")
    }
    rules = database.rows("select count(*) from thresholds where device_pattern = %s", device)[0][0]
    return {**counts, "thresholds": rules}


NOTHING = dict.fromkeys(
    ("alerts", "sensor_readings", "series", "devices", "device_deletions", "thresholds"), 0
)


@pytest.mark.parametrize("rows", [1, 7, 100, 10_000])
def test_a_deleted_device_loses_all_it_has_and_others_nothing(
    database: Database, connection: BoundedConnection, rows: int
) -> None:
    for device in ("a", "b", "c"):
        fill(database, device, sensors=2, days=2, a_day=10)
        surround(database, device)
    before = left(database, "a")
    assert before == {
        **NOTHING,
        "alerts": 3,
        "sensor_readings": 20,
        "series": 2,
        "devices": 1,
        "thresholds": 1,
    }
    assert apply_all(connection, [gone(1, "b", "nobody")]) == [True]
    finish(connection, rows=rows)
    assert left(database, "b") == NOTHING
    assert left(database, "a") == left(database, "c") == before


def test_a_step_at_a_time_the_order_is_alerts_readings_rules_series_device_job(
    database: Database, connection: BoundedConnection
) -> None:
    fill(database, "d1", sensors=2, days=1, a_day=4)
    surround(database, "d1")
    apply_all(connection, [gone(1)])
    seen: list[tuple[int, ...]] = []
    while event_store.deletion_step(connection, "sensor_readings", 20.0, rows=1):
        now = left(database, "d1")
        order = ("alerts", "sensor_readings", "thresholds", "series", "devices", "device_deletions")
        seen.append(tuple(now[table] for table in order))
    for counts in seen:
        begun = [n for n, count in enumerate(counts) if count]
        assert begun == list(range(begun[0] if begun else 6, 6)), counts
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == (0, 0, 0, 0, 0, 0)
    assert len(set(seen)) >= 10


def test_patterns_and_rules_of_other_devices_survive(
    database: Database, connection: BoundedConnection
) -> None:
    for rule, pattern in (("one", "d*"), ("two", "*"), ("three", "d?"), ("four", "d1"), ("five", "d10")):
        database.rows(
            "insert into thresholds (id, device_pattern, sensor_pattern, kind, value)"
            " values (%s, %s, 't', 'max', 1)",
            rule,
            pattern,
        )
    apply_all(connection, [gone(1, "d1", "d*")])
    finish(connection)
    assert database.rows("select id from thresholds order by id") == [
        ("five",),
        ("one",),
        ("three",),
        ("two",),
    ]


def test_rows_that_others_have_locked_are_met_again_at_the_next_step(
    database: Database, connection: BoundedConnection
) -> None:
    surround(database, "d1")
    apply_all(connection, [gone(1)])
    for table in ("alerts", "thresholds", "series", "devices"):
        with psycopg.connect(database.url) as other:
            other.execute(f"select from {table} for update")
            for _ in range(3):
                began = time.monotonic()
                assert event_store.deletion_step(connection, "sensor_readings", 20.0)
                assert time.monotonic() - began < 10
            assert left(database, "d1")["device_deletions"] == 1
            assert database.rows(f"select count(*) from {table}") != [(0,)]
    finish(connection)
    assert left(database, "d1") == NOTHING


def test_a_deletion_that_another_worker_has_in_hand_is_left_to_it(
    database: Database, connection: BoundedConnection
) -> None:
    apply_all(connection, [gone(1, "d1"), gone(2, "d2")])
    with psycopg.connect(database.url) as other:
        other.execute("select from device_deletions where device_id = 'd1' for update")
        finish(connection)
        assert database.rows("select device_id from device_deletions") == [("d1",)]
    finish(connection)
    assert database.rows("select device_id from device_deletions") == []


def test_a_deletion_that_was_cut_off_is_taken_up_again(
    database: Database, connection: BoundedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, "d1", sensors=1, days=2, a_day=50)
    apply_all(connection, [gone(1)])
    assert event_store.deletion_step(connection, "sensor_readings", 20.0, rows=30)
    with db.connect(database.url, 20.0) as doomed:
        monkeypatch.setattr(doomed, "commit", doomed.close)  # as a process that dies before its COMMIT
        event_store.deletion_step(doomed, "sensor_readings", 20.0, rows=30)
    assert left(database, "d1")["sensor_readings"] == 70
    assert left(database, "d1")["device_deletions"] == 1
    finish(connection, rows=30)
    assert left(database, "d1") == NOTHING


def test_a_device_that_something_of_the_users_refers_to_stays_is_told_now_and_then_and_holds_up_no_other(
    database: Database, connection: BoundedConnection
) -> None:
    for device in ("d1", "d2"):
        surround(database, device)
    database.rows("create table rooms (device text references devices)")
    database.rows("insert into rooms values ('d1')")
    apply_all(connection, [gone(1, "d1"), gone(2, "d2")])

    def told(seconds: int) -> list[Any]:
        with capture_logs() as logs:
            for _ in range(seconds):
                worker.hurry(1.0)
                worker.writer.upkeep()
        return [log["constraint"] for log in logs if log["event"] == "deletion_refused"]

    with rig(database) as worker:
        assert told(20) == ["rooms_device_fkey"]
        assert left(database, "d2") == NOTHING
        assert left(database, "d1")["devices"] == 1
        worker.hurry(REFUSED_SEC)
        assert told(2) == ["rooms_device_fkey"]
        database.rows("drop table rooms")
        assert told(20) == []
    assert left(database, "d1") == NOTHING


def test_readings_of_the_same_time_go_however_many_there_are(
    database: Database, connection: BoundedConnection
) -> None:
    fill(database, "d1", sensors=1, days=1, a_day=1)
    database.rows(
        'insert into sensor_readings select "timestamp", device_id, sensor_type, value, value_text,'
        " metadata, gen_random_uuid() from sensor_readings, generate_series(1, 99)"
    )
    apply_all(connection, [gone(1)])
    finish(connection, rows=10)
    assert left(database, "d1") == NOTHING


def test_a_day_of_many_series_goes_in_steps_of_a_bounded_number_of_statements(
    database: Database, connection: BoundedConnection
) -> None:
    fill(database, "d1", sensors=250, days=1, a_day=750)
    apply_all(connection, [gone(1)])
    assert event_store.deletion_step(connection, "sensor_readings", 20.0, rows=740)
    assert left(database, "d1")["sensor_readings"] == 750 - 3 * removal.MAX_DELETES
    finish(connection, rows=740)
    assert left(database, "d1") == NOTHING


class Writing:
    """Another connection that COPYs readings of another device into the same days, until told to stop."""

    def __init__(self, database: Database, device: str) -> None:
        self.rows = self.batches = 0
        self.longest = 0.0
        self._database = database
        self._device = device
        self._stop = threading.Event()

    def run(self) -> None:
        with db.connect(self._database.url, 60.0) as connection:
            while not self._stop.is_set():
                first = self.batches * 100
                batch = [
                    reading(n, device_id=self._device, timestamp_us=OLD_US + n % 40 * DAY_US + n)
                    for n in range(first, first + 100)
                ]
                began = time.monotonic()
                copy(connection, batch)
                self.longest = max(self.longest, time.monotonic() - began)
                self.rows += len(batch)
                self.batches += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        running = InBackground(self.run)
        try:
            wait_until(lambda: self.batches > 2 or running.done)
            yield
            batches = self.batches
            wait_until(lambda: self.batches > batches or running.done)
        finally:
            self._stop.set()
        running.result()


def test_a_device_of_50_000_readings_goes_in_bounded_steps_while_others_are_written(
    database: Database, connection: BoundedConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(database, "d1", sensors=4, days=40, a_day=1250)
    apply_all(connection, [gone(1)])
    writing = Writing(database, "d2")
    sizes: list[int] = []
    took: list[float] = []
    with writing.going_on():
        while left(database, "d1")["device_deletions"]:
            before = left(database, "d1")["sensor_readings"]
            began = time.monotonic()
            assert event_store.deletion_step(connection, "sensor_readings", 20.0)
            took.append(time.monotonic() - began)
            sizes.append(before - left(database, "d1")["sensor_readings"])
    assert left(database, "d1") == NOTHING
    assert left(database, "d2")["sensor_readings"] == writing.rows > 0
    assert sum(sizes) == 50_000
    assert max(sizes) <= 10_000
    assert len(sizes) <= 10
    assert max(took) < 5.0
    with capsys.disabled():
        print(
            f"\n50,000 readings of 40 days: {len(took)} steps, longest {max(took):.3f} s,"
            f" {writing.batches} COPYs meanwhile, longest {writing.longest:.3f} s"
        )


@pytest.fixture
def columnstore(database: Database, connection: BoundedConnection) -> None:
    if not database.timescale:
        pytest.skip("needs TEST_DATABASE_URL, the address of a server with TimescaleDB")
    row = connection.execute("show timescaledb.license").fetchone()
    connection.rollback()
    if row != ("timescale",):
        pytest.skip("the server of TEST_DATABASE_URL runs TimescaleDB's Apache edition")


def compress(database: Database) -> None:
    database.rows("select compress_chunk(chunk, true) from show_chunks('sensor_readings') chunk")
    query = "select count(*) from timescaledb_information.chunks where not is_compressed"
    assert database.rows(query) == [(0,)]


@pytest.mark.parametrize(("days", "a_day"), [(40, 1250), (1, 50_000)], ids=["40 days", "one day"])
def test_a_device_goes_out_of_compressed_chunks_within_the_limit_of_a_transaction(
    columnstore: None,
    database: Database,
    connection: BoundedConnection,
    capsys: pytest.CaptureFixture[str],
    days: int,
    a_day: int,
) -> None:
    """The limit is set lower here than servers have it. Newer versions drop whole batches without
    decompressing them, older ones do not.
    """
    fill(database, "d1", sensors=4, days=days, a_day=a_day)
    fill(database, "d2", sensors=4, days=days, a_day=100)
    compress(database)
    connection.execute("set timescaledb.max_tuples_decompressed_per_dml_transaction = 15000")
    connection.commit()
    with pytest.raises(psycopg.Error, match="tuple decompression limit exceeded"):
        connection.execute("update sensor_readings set value = 1 where device_id = 'd1'")
    connection.rollback()
    apply_all(connection, [gone(1)])
    writing = Writing(database, "d3")
    with writing.going_on():
        took = finish(connection)
    assert left(database, "d1") == NOTHING
    assert left(database, "d2")["sensor_readings"] == days * 100
    assert left(database, "d3")["sensor_readings"] == writing.rows
    assert max(took) < 5.0
    with capsys.disabled():
        print(
            f"\n50,000 readings in {days} compressed chunks: {len(took)} steps, longest {max(took):.3f} s,"
            f" {writing.batches} COPYs meanwhile, longest {writing.longest:.3f} s"
        )


def test_readings_beyond_all_partitions_with_bounds_are_found_too(plain_database: Database) -> None:
    """In a default partition, which somebody made by hand."""
    database = plain_database
    database.rows("create table the_rest partition of sensor_readings default")
    with db.connect(database.url, 20.0) as connection:
        days_of_old(database, connection, 2)
        moments = (1, OLD_US + 1, OLD_US + 5 * DAY_US, YESTERDAY_US + 40_000 * DAY_US)
        copy(connection, [reading(n, device_id="d1", timestamp_us=us) for n, us in enumerate(moments)])
        apply_all(connection, [gone(1)])
        finish(connection)
    assert left(database, "d1") == NOTHING


def test_a_deletion_locks_few_of_many_partitions(plain_database: Database) -> None:
    """Locks are few in all the server: a statement over thousands of partitions dies of their number."""
    database = plain_database
    with db.connect(database.url, 60.0) as connection:
        days_of_old(database, connection, 400)
        moments = (OLD_US, OLD_US + 200 * DAY_US, OLD_US + 399 * DAY_US)
        copy(connection, [reading(n, device_id="d1", timestamp_us=us) for n, us in enumerate(moments)])
        apply_all(connection, [gone(1)])
        held: list[int] = []
        commit = connection.commit

        def counting() -> None:
            row = connection.execute(
                "select count(*) from pg_locks where pid = pg_backend_pid()"
            ).fetchone()
            held.append(row[0] if row else 0)
            commit()

        connection.commit = counting  # type: ignore[method-assign]
        finish(connection)
    assert left(database, "d1") == NOTHING
    assert 0 < max(held) < 150
