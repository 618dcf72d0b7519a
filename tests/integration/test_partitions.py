"""Daily partitions on plain PostgreSQL: made by many workers at once, dropped by one, never in the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Self

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

import database as db
import partitions
from database import BoundedConnection
from partitions import Partitions
from schema import DAY_US, Fate, Reading
from tests.rollups import upkeep_until
from tests.support import Database, wait_until
from tests.writing import InBackground, Rig, batch_of, reading, rig, together

TODAY = datetime.now(UTC).date()
DAY = (TODAY - date(1970, 1, 1)).days
LOCK = "pg_advisory_lock(%s, 'sensor_readings'::regclass::oid::int)"
LOCK_CLASS = 0x51C1CE


@pytest.fixture
def one(plain_database: Database) -> Iterator[Rig]:
    with rig(plain_database) as made:
        yield made


def on_day(day: int, count: int = 10) -> list[Reading]:
    return [
        reading(n, timestamp_us=day * DAY_US + n, message_id=bytes(14) + bytes([n, 1]))
        for n in range(count)
    ]


def attached(database: Database) -> dict[str, bool]:
    """The partitions of the table; True where a detach is pending."""
    query = """
        select child.relname::text, inhdetachpending
        from pg_inherits join pg_class child on child.oid = inhrelid
        where inhparent = 'sensor_readings'::regclass
    """
    return dict(database.rows(query))


def tables(database: Database) -> set[str]:
    found = database.rows("select tablename from pg_tables where tablename like 'sensor\\_readings\\_p%%'")
    return {name for (name,) in found}


def name(day: int) -> str:
    return f"sensor_readings_p{date(1970, 1, 1) + timedelta(days=day):%Y%m%d}"


@contextmanager
def session(database: Database) -> Iterator[BoundedConnection]:
    connection = db.connect(database.url, 20.0)
    try:
        yield connection
    finally:
        connection.close()


def ensure(database: Database, days: set[int], timeout_sec: float = 20.0) -> None:
    """What a worker does that has just started and knows of no partition."""
    with session(database) as connection:
        Partitions("sensor_readings", timeout_sec).ensure(connection, days)


def drop_older(database: Database, oldest: int) -> int:
    with session(database) as connection:
        connection.autocommit = True
        day = date(1970, 1, 1) + timedelta(days=oldest)
        return Partitions("sensor_readings", 20.0).drop_older(connection, day)


class Reader:
    """A session that has read the table and keeps its transaction open."""

    def __init__(self, database: Database) -> None:
        self.connection = psycopg.connect(database.url)
        self.connection.execute("select count(*) from sensor_readings").fetchall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_partitions_are_made_ahead(plain_database: Database) -> None:
    with rig(plain_database, partitions_ahead_days=5) as one:
        one.writer.upkeep()
    assert set(attached(plain_database)) == {name(DAY + n) for n in range(-1, 6)}


def test_partitions_are_made_on_demand_for_days_long_ago_and_far_ahead(
    one: Rig, plain_database: Database
) -> None:
    days = [0, 5000, DAY, DAY + 400]
    outcome = one.writer.write(batch_of([r for day in days for r in on_day(day)]))
    assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
    assert set(attached(plain_database)) == {name(day) for day in days}
    spread = plain_database.rows(
        "select tableoid::regclass::text, count(*) from sensor_readings group by 1"
    )
    assert dict(spread) == {name(day): 10 for day in days}


def test_a_partition_has_the_key_the_check_and_the_defaults_of_the_table(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of(on_day(DAY)))
    with pytest.raises(psycopg.errors.CheckViolation, match="one_value"):
        plain_database.rows(
            f"insert into {name(DAY)} (timestamp, device_id, sensor_type, message_id)"
            f" values ('{TODAY}T12:00Z', 'd', 's', gen_random_uuid())"
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        plain_database.rows(f"insert into {name(DAY)} select * from {name(DAY)}")


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns"])
def test_a_database_with_another_time_zone_and_date_style_gets_utc_days(
    plain_database: Database, zone: str
) -> None:
    this = plain_database.rows("select current_database()")[0][0]
    plain_database.rows(f"alter database \"{this}\" set timezone = '{zone}'")
    plain_database.rows(f"alter database \"{this}\" set datestyle = 'SQL, DMY'")
    for trial in range(2):
        with rig(plain_database) as one:
            first, last = (
                reading(1, timestamp_us=20_000 * DAY_US),
                reading(2, timestamp_us=20_001 * DAY_US - 1),
            )
            outcome = one.writer.write(batch_of([first, last], redelivered=True))
        assert {s.fate for s in outcome.settled} == {Fate.DUPLICATE if trial else Fate.STORED}
    assert set(attached(plain_database)) == {name(20_000)}


@pytest.mark.parametrize("trial", range(3))
def test_eight_workers_make_overlapping_days_at_once(plain_database: Database, trial: int) -> None:
    wanted = [set(range(15_000 + n, 15_012 + n)) for n in range(8)]
    together([lambda days=days: ensure(plain_database, days) for days in wanted])  # type: ignore[misc]
    assert set(attached(plain_database)) == {name(day) for day in set().union(*wanted)}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_who_waited_finds_what_another_has_made_whatever_the_database_s_isolation_is(
    plain_database: Database, isolation: str
) -> None:
    this = plain_database.rows("select current_database()")[0][0]
    plain_database.rows(f"alter database \"{this}\" set default_transaction_isolation = '{isolation}'")
    with psycopg.connect(plain_database.url, autocommit=True) as holder:
        holder.execute(f"select {LOCK}", (LOCK_CLASS,))
        waiting = [InBackground(lambda: ensure(plain_database, {15_000, 15_001})) for _ in range(3)]
        locked = """
            select count(*) from pg_locks join pg_database d on d.oid = database
            where locktype = 'advisory' and not granted and datname = current_database()
        """
        wait_until(lambda: plain_database.rows(locked) == [(3,)])
        holder.execute("select pg_advisory_unlock_all()")
        for one in waiting:
            one.result()
    assert set(attached(plain_database)) == {name(15_000), name(15_001)}


def test_eight_workers_write_overlapping_new_days_at_once_without_an_error(
    plain_database: Database,
) -> None:
    rigs = [Rig(plain_database) for _ in range(8)]
    batches = [
        batch_of(
            [
                reading(n, timestamp_us=(15_000 + w + n % 8) * DAY_US, message_id=bytes([w, n]) + bytes(14))
                for n in range(200)
            ]
        )
        for w in range(8)
    ]
    try:
        together([lambda r=r, b=b: r.writer.write(b) for r, b in zip(rigs, batches, strict=True)])  # type: ignore[misc]
    finally:
        for made in rigs:
            made.writer.close()
    assert plain_database.count() == 1600
    assert [made.stats.errors for made in rigs] == [0] * 8


def test_rows_that_are_not_committed_do_not_keep_others_from_making_partitions(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of(on_day(DAY)))
    with psycopg.connect(plain_database.url) as busy:
        busy.execute(
            "insert into sensor_readings (timestamp, device_id, sensor_type, message_id, value)"
            f" values ('{TODAY}T12:00Z', 'd', 's', gen_random_uuid(), 1)"
        )
        ensure(plain_database, {15_000, 15_001}, timeout_sec=4.0)
        with rig(plain_database, timeout_sec=4.0) as other:
            other.writer.write(batch_of(on_day(15_002)))
            assert other.stats.errors == 0
        busy.commit()
    assert plain_database.count() == 21


def test_partitions_that_are_not_committed_do_not_keep_others_from_writing(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of(on_day(DAY)))
    with psycopg.connect(plain_database.url) as making:
        making.execute("create table half (like sensor_readings including constraints including indexes)")
        making.execute(
            "alter table sensor_readings attach partition half"
            " for values from ('2011-01-26 00:00+00') to ('2011-01-27 00:00+00')"
        )
        with rig(plain_database, timeout_sec=4.0) as other:
            outcome = other.writer.write(batch_of([reading(99, timestamp_us=DAY * DAY_US)]))
            assert other.stats.errors == 0
        assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
        making.rollback()
    assert set(attached(plain_database)) == {name(DAY)}


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
@pytest.mark.parametrize("way", ["dropped", "detached"])
def test_a_partition_taken_away_behind_the_writer_s_back_is_made_again(
    one: Rig, plain_database: Database, way: str, redelivered: bool
) -> None:
    one.writer.write(batch_of(on_day(DAY)))
    statement = {
        "dropped": f"drop table {name(DAY)}",
        "detached": f"alter table sensor_readings detach partition {name(DAY)}",
    }
    plain_database.rows(statement[way])
    more = [reading(n, timestamp_us=DAY * DAY_US + n) for n in range(100, 150)]
    outcome = one.writer.write(batch_of(more, redelivered=redelivered))
    assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
    assert plain_database.count() == (50 if way == "dropped" else 60)


def test_a_monthly_partition_made_by_hand_is_used(one: Rig, plain_database: Database) -> None:
    plain_database.rows(
        "create table march partition of sensor_readings"
        " for values from ('2024-03-01 00:00+00') to ('2024-04-01 00:00+00')"
    )
    first = (date(2024, 3, 1) - date(1970, 1, 1)).days
    outcome = one.writer.write(
        batch_of([r for day in (first, first + 30, first + 31) for r in on_day(day)])
    )
    assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
    assert set(attached(plain_database)) == {"march", "sensor_readings_p20240401"}
    assert plain_database.rows("select count(*) from march") == [(20,)]


def test_retention_drops_what_is_older_and_nothing_else(plain_database: Database) -> None:
    with rig(plain_database, retention_days=10, partitions_ahead_days=0) as one:
        days = [DAY - 1000, DAY - 12, DAY - 11, DAY - 10, DAY - 9, DAY]
        one.writer.write(batch_of([r for day in days for r in on_day(day)]))
        with capture_logs() as logs:
            upkeep_until(one, lambda: plain_database.count() == 30)
    assert set(attached(plain_database)) == {name(DAY - n) for n in (10, 9, 1, 0)}
    assert tables(plain_database) == set(attached(plain_database))
    assert sum(log["partitions"] for log in logs if log["event"] == "partitions_dropped") == 3


def test_a_worker_whose_clock_is_years_ahead_drops_nothing_that_is_young(plain_database: Database) -> None:
    with rig(plain_database, retention_days=10, partitions_ahead_days=0) as one:
        one.writer.write(batch_of([r for day in (DAY - 20, DAY - 5, DAY) for r in on_day(day)]))
        one.now += timedelta(days=4000)
        with capture_logs() as logs:
            upkeep_until(one, lambda: "partitions_dropped" in [log["event"] for log in logs])
    assert {name(DAY - 5), name(DAY)} <= set(attached(plain_database))
    assert plain_database.count() == 20


def test_a_monthly_partition_is_dropped_only_when_its_last_day_is_too_old(
    one: Rig, plain_database: Database
) -> None:
    plain_database.rows(
        "create table march partition of sensor_readings"
        " for values from ('2024-03-01 00:00+00') to ('2024-04-01 00:00+00')"
    )
    after = (date(2024, 4, 1) - date(1970, 1, 1)).days
    assert drop_older(plain_database, after - 1) == 0
    assert drop_older(plain_database, after) == 1


def test_retention_is_done_by_one_worker_at_a_time(one: Rig, plain_database: Database) -> None:
    one.writer.write(batch_of([r for day in range(15_000, 15_004) for r in on_day(day)]))
    with psycopg.connect(plain_database.url) as other:
        other.execute(f"select {LOCK}", [LOCK_CLASS])
        assert drop_older(plain_database, DAY) == 0
        assert len(attached(plain_database)) == 4
    assert sum(together([lambda: drop_older(plain_database, DAY)] * 4)) == 4
    assert attached(plain_database) == {}


def test_the_lock_is_given_back_when_retention_is_done(one: Rig, plain_database: Database) -> None:
    one.writer.write(batch_of(on_day(15_000)))
    with session(plain_database) as connection:
        connection.autocommit = True
        assert Partitions("sensor_readings", 20.0).drop_older(connection, TODAY) == 1
        ensure(plain_database, {15_000}, timeout_sec=4.0)


def cut_off_a_detach(database: Database, day: int) -> None:
    """A DETACH … CONCURRENTLY that waits for a reader, cancelled while it waits."""
    with Reader(database), psycopg.connect(database.url, autocommit=True) as detaching:
        statement = sql.SQL("alter table sensor_readings detach partition {} concurrently")
        waiting = InBackground(lambda: detaching.execute(statement.format(sql.Identifier(name(day)))))
        wait_until(lambda: attached(database).get(name(day)))
        detaching.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.result()
    assert attached(database)[name(day)] is True


@pytest.mark.parametrize("cut", [15_000, 15_001, 15_002])
def test_retention_finishes_a_detach_that_was_cut_off(one: Rig, plain_database: Database, cut: int) -> None:
    """Whichever it was: while one is pending, PostgreSQL detaches no other."""
    one.writer.write(batch_of([r for day in (15_000, 15_001, 15_002, DAY) for r in on_day(day)]))
    cut_off_a_detach(plain_database, cut)
    assert drop_older(plain_database, DAY) == 3
    assert attached(plain_database) == {name(DAY): False}
    assert tables(plain_database) == {name(DAY)}


def test_a_detach_cut_off_by_hand_of_a_partition_that_is_kept_does_not_stop_retention(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of([r for day in (15_000, DAY) for r in on_day(day)]))
    cut_off_a_detach(plain_database, DAY)
    assert drop_older(plain_database, DAY) == 1
    assert name(15_000) not in tables(plain_database)
    one.writer.write(batch_of([reading(1, timestamp_us=DAY * DAY_US + 77)]))
    assert plain_database.count() == 11


def test_a_late_reading_for_a_day_whose_detach_was_cut_off_is_stored(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of(on_day(15_000)))
    cut_off_a_detach(plain_database, 15_000)
    outcome = one.writer.write(batch_of([reading(50, timestamp_us=15_000 * DAY_US + 50)]))
    assert {settled.fate for settled in outcome.settled} == {Fate.STORED}
    assert attached(plain_database) == {name(15_000): False}
    assert plain_database.count() == 11


def test_dropping_while_a_reader_holds_the_table_does_not_keep_anybody_from_writing(
    plain_database: Database,
) -> None:
    with rig(plain_database, retention_days=10) as keeper, rig(plain_database, timeout_sec=6.0) as other:
        keeper.writer.write(batch_of([r for day in (15_000, DAY) for r in on_day(day)]))
        with Reader(plain_database):
            with capture_logs() as logs:
                dropping = InBackground(
                    lambda: upkeep_until(
                        keeper, lambda: "retention_postponed" in [log["event"] for log in logs]
                    )
                )
                wait_until(lambda: any(attached(plain_database).values()), what="a detach that waits")
                outcomes = [
                    other.writer.write(batch_of([reading(50, timestamp_us=DAY * DAY_US + 50)])),
                    other.writer.write(batch_of(on_day(16_000))),
                ]
                dropping.result()
            assert [log["event"] for log in logs].count("retention_postponed") == 1
            # The reader is still there; what was begun on the server must not go on holding the lock.
            outcomes.append(other.writer.write(batch_of(on_day(16_001))))
        assert {s.fate for outcome in outcomes for s in outcome.settled} == {Fate.STORED}
        upkeep_until(keeper, lambda: name(15_000) not in tables(plain_database))
    assert set(attached(plain_database)) >= {name(DAY)}
    assert name(15_000) not in tables(plain_database)


def test_a_table_left_behind_by_a_drop_that_was_cut_off_is_taken_back_with_its_rows(
    one: Rig, plain_database: Database
) -> None:
    one.writer.write(batch_of(on_day(15_000)))
    plain_database.rows(f"alter table sensor_readings detach partition {name(15_000)}")
    with rig(plain_database) as fresh:
        outcome = fresh.writer.write(batch_of(on_day(15_000), redelivered=True))
    assert {settled.fate for settled in outcome.settled} == {Fate.DUPLICATE}
    assert plain_database.count() == 10


def test_upkeep_runs_once_a_minute(plain_database: Database) -> None:
    with rig(plain_database) as one:
        one.writer.upkeep()
        plain_database.rows(f"drop table {name(DAY)}")
        one.writer.upkeep()
    assert name(DAY) not in attached(plain_database)


def test_workers_that_write_while_partitions_are_dropped_lose_nothing(plain_database: Database) -> None:
    """Late data for days past retention, dropped all the time: what is young stays, each row once."""
    over = threading.Event()

    def drop() -> int:
        dropped = 0
        while not over.is_set():
            dropped += drop_older(plain_database, DAY)
        return dropped

    def write(worker: int) -> int:
        stored = 0
        with rig(plain_database) as one:
            for n in range(25):
                late = reading(
                    n, timestamp_us=(15_000 + n % 3) * DAY_US, message_id=bytes([worker, n]) + bytes(14)
                )
                fresh = late._replace(timestamp_us=DAY * DAY_US)
                outcome = one.writer.write(batch_of([late, fresh], own_id=True))
                stored += sum(settled.fate is Fate.STORED for settled in outcome.settled)
        return stored

    dropping = InBackground(drop)
    try:
        assert together([lambda w=w: write(w) for w in range(3)]) == [50, 50, 50]  # type: ignore[misc]
    finally:
        over.set()
    assert dropping.result() > 0
    counts = plain_database.rows("select count(*) from sensor_readings where timestamp >= %s", TODAY)
    assert counts == [(75,)]


@pytest.mark.parametrize(
    ("bound", "days"),
    [
        ("FOR VALUES FROM ('2015-02-04 00:00:00+00') TO ('2015-02-05 00:00:00+00')", 1),
        ("FOR VALUES FROM ('2024-03-01 00:00:00+00') TO ('2024-04-01 00:00:00+00')", 31),
        ("DEFAULT", 0),
        (None, 0),
    ],
)
def test_bounds_are_read_as_days(bound: str | None, days: int) -> None:
    assert len(partitions._days_of(bound)) == days
