"""The sweep in a real database: silences, orphans, repair, and one worker at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

import alert_store
import database as adapter
from database import BoundedConnection
from query import queries
from schema import Reading
from sweep import GAP_SEC, INTERVAL_SEC, LEASE_SEC, LONGEST_SEC, PAGE, Sweep, Swept
from tests.alerts import add_rule
from tests.locks import deadlocks, waiting_for_a_lock
from tests.support import Database, wait_until
from tests.writing import InBackground, batch_of, reading, rig


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Sweeper:
    """One worker's sweep, in a session of its own."""

    def __init__(
        self, database: Database, connection: BoundedConnection, holder: str, **options: Any
    ) -> None:
        self.clock = Clock()
        self.behind = 0.0
        self.connection = connection
        self.sweep = Sweep(
            "sensor_readings",
            holder,
            publish=True,
            caught_up_at=lambda: self.clock() - self.behind,
            clock=self.clock,
            now=lambda: datetime.now(UTC),
            **options,
        )

    def begin(self) -> BoundedConnection:
        adapter.begin(self.connection, 20)
        return self.connection

    def take(self) -> bool:
        taken = self.sweep.take(self.connection)
        self.connection.commit()
        return taken

    def once(self, took: float = 0.0) -> Swept:
        """One sweep as the housekeeping does it; afterwards the clock stands where the next is due."""
        swept = self.sweep.run(self.begin)
        self.clock.now += took
        self.sweep.done(took, swept)
        self.clock.now = self.sweep.due_at
        return swept


@contextmanager
def sweeper(database: Database, holder: str = "one") -> Iterator[Sweeper]:
    connection = adapter.connect(database.url, 30)
    try:
        yield Sweeper(database, connection, holder)
    finally:
        connection.close()


@pytest.fixture
def one(database: Database) -> Iterator[Sweeper]:
    with sweeper(database) as made:
        assert made.take()
        database.rows("update duties set done_until = now()")  # somebody has listened until now
        yield made


def add_series(
    database: Database, device: str, sensor: str = "temperature", silent: float = 0, **more: Any
) -> None:
    """A series whose last reading came `silent` seconds ago."""
    columns = {"device_id": device, "sensor_type": sensor} | more
    marks = ", ".join(["%s"] * len(columns))
    database.rows(
        f"insert into series ({', '.join(columns)}, last_seen)"
        f" values ({marks}, now() - make_interval(secs => %s))",
        *columns.values(),
        silent,
    )


def open_alerts(database: Database) -> list[tuple[Any, ...]]:
    return database.rows(
        "select threshold_id, device_id, sensor_type from alerts where status <> 'resolved'"
        " order by 1, 2, 3"
    )


def silence(database: Database, name: str, seconds: float = 60, **columns: Any) -> str:
    return add_rule(database, **{"id": name, "kind": "silence", "value": seconds} | columns)


def recent(device: str, number: int = 1) -> Reading:
    """A reading of now."""
    now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    return reading(number, device_id=device, sensor_type="temperature", timestamp_us=now_us)


def test_silence_is_told_once_by_exact_and_by_pattern_rules(database: Database, one: Sweeper) -> None:
    silence(database, "exact")
    silence(database, "pattern", device_pattern="kit*")
    silence(database, "longer", seconds=3600)
    add_series(database, "kitchen", silent=61)
    add_series(database, "kit_2", silent=59)
    add_series(database, "hall", silent=9999)
    assert one.once() == Swept(silent=2, due=True)
    told = [("exact", "kitchen", "temperature"), ("pattern", "kitchen", "temperature")]
    assert open_alerts(database) == told
    assert one.once() == Swept()
    ((value, status, due),) = database.rows(
        "select distinct value >= 61 and value < 90, status, created_due from alerts"
    )
    assert (value, status, due) == (True, "active", True)


def test_a_pattern_means_its_characters(database: Database, one: Sweeper) -> None:
    silence(database, "under", device_pattern="a_*")
    silence(database, "percent", device_pattern="%?")
    for device in ("a_b", "axb", "%1", "x1"):
        add_series(database, device, silent=100)
    one.once()
    assert [row[:2] for row in open_alerts(database)] == [("percent", "%1"), ("under", "a_b")]


def test_a_series_that_never_sent_counts_from_when_its_rule_was_made(
    database: Database, one: Sweeper
) -> None:
    silence(database, "new")
    silence(database, "any", device_pattern="*")
    assert one.once().silent == 0
    database.rows("update thresholds set created_at = now() - interval '61 s'")
    assert one.once().silent == 1
    assert open_alerts(database) == [("new", "kitchen", "temperature")]


def test_switched_off_series_and_disabled_rules_are_not_silent(database: Database, one: Sweeper) -> None:
    silence(database, "off")
    silence(database, "off too", device_pattern="k*")
    silence(database, "disabled", device_pattern="hall", enabled=False)
    add_series(database, "kitchen", silent=100, active=False)
    add_series(database, "hall", silent=100)
    assert one.once().silent == 0


def test_a_silence_resolved_by_hand_stays_so_until_the_device_has_spoken(
    database: Database, one: Sweeper
) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=3600)
    assert one.once().silent == 1
    ((alert,),) = database.rows("select id from alerts")
    queries.resolve_alert(one.connection, alert, datetime.now(UTC))
    assert one.once() == Swept()
    database.rows("update series set last_seen = now() - interval '61 s'")  # it spoke, a minute ago
    assert one.once().silent == 1
    assert open_alerts(database) == [("quiet", "kitchen", "temperature")]


def test_a_backlog_is_time_in_which_nobody_listened(database: Database, one: Sweeper) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100)
    one.behind = 41.0
    assert one.once().silent == 0
    one.behind = 38.0
    assert one.once().silent == 1


def test_a_gap_is_taken_off_until_the_series_was_silent_long_enough_beside_it(
    database: Database, one: Sweeper
) -> None:
    silence(database, "quiet")
    one.once()
    # Listened until 70 s ago, then not for 70 s.
    database.rows("update duties set done_until = now() - interval '70 s'")
    add_series(database, "kitchen", silent=100)
    assert one.once().silent == 0
    database.rows("update series set last_seen = now() - interval '125 s'")
    assert one.once().silent == 0  # 55 s before the gap
    database.rows("update series set last_seen = now() - interval '131 s'")
    assert one.once().silent == 1


def test_a_pause_below_the_limit_is_no_gap(database: Database, one: Sweeper) -> None:
    silence(database, "quiet")
    one.once()
    one.clock.now += 60
    gaps = "select gaps from duties"
    before = database.rows(gaps)
    database.rows("update duties set done_until = now() - make_interval(secs => %s)", GAP_SEC - 1)
    one.once()
    assert database.rows(gaps) == before
    database.rows("update duties set done_until = now() - make_interval(secs => %s)", GAP_SEC + 1)
    one.once()
    assert database.rows(gaps) != before


def test_every_gap_counts_not_only_the_last(database: Database, one: Sweeper) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=3700)
    database.rows("update duties set done_until = now() - interval '3650 s'")
    one.once()  # an hour in which nobody listened
    database.rows("update duties set done_until = now() - interval '11 s'")
    assert one.once().silent == 0
    database.rows("update series set last_seen = now() - interval '3720 s'")
    assert one.once().silent == 1


def test_nothing_is_written_down_while_no_rule_is_about_silence(database: Database, one: Sweeper) -> None:
    before = database.rows("select * from duties")
    one.clock.now += 60
    one.once()
    assert database.rows("select * from duties") == before


def test_a_slow_sweep_pauses_no_longer_than_half_its_lease(one: Sweeper) -> None:
    one.once()
    before = one.clock.now
    one.sweep.done(2.0, Swept())
    assert INTERVAL_SEC < one.sweep.due_at - before <= LONGEST_SEC < LEASE_SEC / 2


def test_one_worker_at_a_time_and_another_when_its_lease_is_over(database: Database) -> None:
    with sweeper(database, "one") as one, sweeper(database, "two") as two:
        assert one.take()
        assert not two.take()
        assert one.take()
        database.rows("update duties set held_until = now() - interval '1 s'")
        assert two.take()
        one.clock.now += LEASE_SEC / 2 + 1
        assert not one.take()
        two.sweep.give_back(two.connection)
        two.connection.commit()
        one.clock.now += LEASE_SEC
        assert one.take()


def test_of_two_workers_one_sweeps_and_the_other_goes_on_when_it_ends(database: Database) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100)
    database.rows("insert into duties values ('sweep', 'before', now() - interval '1 s', now())")
    with rig(database, holder="one") as one, rig(database, holder="two") as two:
        one.writer.start()
        two.writer.start()
        one.writer.upkeep()
        two.writer.upkeep()
        assert (one.stats.alerts_opened, two.stats.alerts_opened) == (1, 0)
        assert database.rows("select holder from duties where name = 'sweep'") == [("one",)]
        one.writer.close()
        database.rows("update thresholds set enabled = false")

        def resolved() -> bool:
            two.writer.upkeep()
            return two.stats.alerts_resolved == 1

        wait_until(resolved)


def test_a_reading_ends_the_silence_at_once(database: Database, one: Sweeper) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100)
    one.once()
    with rig(database, publish_alerts=True) as worker:
        worker.writer.write(batch_of([recent("kitchen")]))
        assert worker.stats.alerts_resolved == 1
    ((status, lasted, due),) = database.rows("select status, last_value > 99, resolved_due from alerts")
    assert (status, lasted, due) == ("resolved", True, True)


@pytest.mark.parametrize("told", [True, False], ids=["told before", "not told"])
def test_a_silence_that_ended_before_the_registry_heard_of_it_is_not_told(
    database: Database, one: Sweeper, told: bool
) -> None:
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100)
    with rig(database) as worker:
        worker.writer.start()
        if told:
            one.once()
        worker.writer.write(batch_of([recent("kitchen")]))
        assert one.once().silent == 0
        assert open_alerts(database) == []


def test_a_crash_that_lost_the_last_arrivals_does_not_tell_a_silence_early(
    database: Database, one: Sweeper
) -> None:
    """The repaired registry knows when the reading came, not only what it said."""
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100, last_time=datetime(2026, 1, 1, tzinfo=UTC))
    with rig(database) as worker:
        worker.writer.start()
        worker.writer.write(batch_of([recent("kitchen")]))
        worker.writer._session.drop()  # a crash: what was noted is gone
        worker.writer._registry._dirty.clear()
    database.rows("update sensor_readings set created_at = created_at - interval '20 s'")
    assert one.once().repaired == 1
    assert one.once().silent == 0
    assert database.rows("select last_seen > now() - interval '50 s' from series") == [(True,)]


ORPHANING = {
    "the rule is deleted": "delete from thresholds",
    "the rule is disabled": "update thresholds set enabled = false",
    "the pattern is another": "update thresholds set device_pattern = 'ha*'",
    "the kind is another": "update thresholds set kind = 'min'",
    "the series is switched off": "update series set active = false",
}


@pytest.mark.parametrize("how", ORPHANING)
def test_an_alert_ends_when(database: Database, one: Sweeper, how: str) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    add_rule(database, id="hot-pending", kind="max", value=30, debounce_count=5)
    with rig(database) as worker:
        worker.writer.write(batch_of([replaced(1, 31.0)]))
    assert len(open_alerts(database)) == 2
    assert one.once() == Swept()
    database.rows(ORPHANING[how])
    assert one.once() == Swept(orphaned=1, due=True)
    assert database.rows("select threshold_id, status, resolved_due from alerts") == [
        ("hot", "resolved", True)
    ]


def replaced(number: int, value: float, device: str = "kitchen") -> Reading:
    return reading(number, value, device_id=device, sensor_type="temperature")


def test_ending_orphans_and_telling_silences_cannot_deadlock_with_a_batch(
    database: Database, one: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has the advisory lock and wants an alert that the sweep ends, which wants the lock too."""
    add_rule(database, id="hot", kind="max", value=30)
    silence(database, "quiet", device_pattern="attic")
    add_series(database, "attic", silent=100)
    with rig(database) as worker:
        worker.writer.write(batch_of([replaced(1, 31.0)]))
        fetch, may_go_on, locked = alert_store.fetch_open, threading.Event(), threading.Event()

        def stopped(*arguments: Any) -> Any:
            locked.set()
            assert may_go_on.wait(10)
            return fetch(*arguments)

        monkeypatch.setattr(alert_store, "fetch_open", stopped)
        write = InBackground(lambda: worker.writer.write(batch_of([replaced(2, 32.0)])))
        assert locked.wait(10)
        database.rows("delete from thresholds where id = 'hot'")
        swept = InBackground(one.once)
        wait_until(lambda: swept.done or waiting_for_a_lock(database))
        may_go_on.set()
        write.result()
        found = swept.result()
        assert (found.silent, found.orphaned) == (1, 1)
        assert worker.stats.errors == 0
    one.connection.close()
    assert deadlocks(database) == 0


def test_orphans_are_locked_in_the_order_in_which_batches_lock_alerts(
    database: Database, one: Sweeper
) -> None:
    """Pending ones with the others: a batch locks its alerts by key, whatever their status."""
    add_rule(database, id="a-pending", kind="max", value=30, debounce_count=5)
    add_rule(database, id="b-active", kind="max", value=30)
    with rig(database) as worker:
        worker.writer.write(batch_of([replaced(1, 31.0)]))
    database.rows("delete from thresholds")
    take = "select 1 from alerts where threshold_id = %s for update"
    with psycopg.connect(database.url) as batch:
        batch.execute(take, ["a-pending"])
        swept = InBackground(one.once)
        wait_until(lambda: waiting_for_a_lock(database))
        batch.execute("set lock_timeout = '2s'")
        batch.execute(take, ["b-active"])  # the sweep waits for the first and has not locked the second
    assert swept.result().orphaned == 1
    assert database.rows("select count(*) from alerts") == [(1,)]


def test_a_silence_rule_is_seen_by_both_when_a_batch_and_the_sweep_meet(
    database: Database, one: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep found it silent; before it has the lock a batch commits a reading: nothing is told."""
    silence(database, "quiet")
    add_series(database, "kitchen", silent=100)
    add_rule(database, id="hot", kind="max", value=30)
    lock: Callable[..., None] = alert_store.lock
    with rig(database) as worker:
        worker.writer.start()

        def late(connection: BoundedConnection, *, exclusive: bool) -> None:
            monkeypatch.setattr(alert_store, "lock", lock)
            worker.writer.write(batch_of([recent("kitchen")]))
            lock(connection, exclusive=exclusive)

        monkeypatch.setattr(alert_store, "lock", late)
        assert one.once().silent == 0
    assert database.rows("select count(*) from alerts where threshold_id = 'quiet'") == [(0,)]


def test_repair_goes_through_all_pages_and_begins_again(database: Database, one: Sweeper) -> None:
    count = 2 * PAGE + 200
    database.rows(
        "insert into series (device_id, sensor_type, last_seen)"
        " select 'd' || lpad(n::text, 5, '0'), 'x', now() from generate_series(1, %s) n",
        count,
    )
    with rig(database) as worker:
        worker.writer.start()
        many = [reading(n, device_id=f"d{n:05}", sensor_type="x") for n in range(1, count + 1)]
        worker.writer.write(batch_of(many))
        worker.writer._registry._dirty.clear()
    # The first flush has written them all: as if it had not, and some time ago.
    database.rows("update series set last_time = null, last_value = null")
    database.rows("update sensor_readings set created_at = created_at - interval '20 s'")
    assert [one.once().repaired for _ in range(4)] == [PAGE, PAGE, 200, 0]
    assert database.rows("select count(*) from series where last_value is null") == [(0,)]
    database.rows("update series set last_time = null, last_value = null where device_id = 'd00001'")
    assert [one.once().repaired for _ in range(3)].count(1) == 1
    assert database.rows("select last_value from series where device_id = 'd00001'") == [(1.0,)]


def test_repair_of_an_exact_number_of_pages_begins_again_too(database: Database, one: Sweeper) -> None:
    database.rows(
        "insert into series (device_id, sensor_type) select 'd' || n, 'x' from generate_series(1, %s) n",
        PAGE,
    )
    one.once()
    assert one.sweep._after != ("", "")
    one.once()
    assert one.sweep._after == ("", "")


def test_repair_never_puts_an_older_value_over_a_newer_one(database: Database, one: Sweeper) -> None:
    with rig(database) as worker:
        worker.writer.write(batch_of([replaced(1, 31.0)]))
    database.rows("update series set last_time = now(), last_value = 7")
    assert one.once().repaired == 0
    assert database.rows("select last_value from series") == [(7.0,)]


def test_a_sweep_over_many_series_and_rules_stays_short(
    database: Database, one: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    database.rows(
        "insert into series (device_id, sensor_type, last_seen)"
        " select 'd' || n, 'x', now() from generate_series(1, 10000) n"
    )
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, value)"
        " select 'r' || n, 'd' || n, 'x', 'silence', 3600 from generate_series(1, 990) n union all"
        " select 'p' || n, 'd' || n || '?*', '*', 'silence', 3600 from generate_series(1, 10) n"
    )
    database.rows("analyze series, thresholds")
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert one.once() == Swept()
        took.append(time.monotonic() - began)
    with capsys.disabled():
        print(
            f"\n10,000 series, 990 exact and 10 pattern silence rules: "
            f"a sweep {sorted(took)[2] * 1e3:.0f} ms"
        )
    assert min(took) < 2.0
