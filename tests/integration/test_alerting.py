"""Alerts in the batch's own transaction, with several workers at once in a real database."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import psycopg
import pytest

import alert_store
from alerting import Judged
from database import BoundedConnection
from schema import Fate, Reading
from sweep import Sweep
from tests.alerts import add_rule, alerts
from tests.locks import deadlocks, waiting_for_a_lock
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, Rig, batch_of, rig, together

DEVICES = ("a", "b", "c")


def at(second: float, value: float | str, device: str = "kitchen", message: int | None = None) -> Reading:
    """A reading of yesterday at `second`, with a message id of its own for each second."""
    number = int(second * 1000) if message is None else message
    moment, name = YESTERDAY_US + int(second * 1_000_000), number.to_bytes(16, "big")
    if isinstance(value, str):
        return Reading(device, "temperature", moment, name, None, value)
    return Reading(device, "temperature", moment, name, float(value))


def write(one: Rig, *readings: Reading, redelivered: bool = False) -> set[Fate]:
    one.writer._knowledge._next_look = 0.0  # not by notification, which may take a moment
    outcome = one.writer.write(batch_of(readings, redelivered=redelivered))
    return {settled.fate for settled in outcome.settled}


def states(database: Database) -> list[str]:
    return [alert.status for alert in alerts(database)]


def only_savepoint(connection: BoundedConnection, *, exclusive: bool) -> None:
    """As `alert_store.lock`, without the lock."""
    connection.execute("savepoint sluice_judge")


class Held:
    """Stops one worker between judging and COMMIT, until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, one: Rig) -> None:
        self.judged, self.go = threading.Event(), threading.Event()
        judge = one.writer._judge

        def held(*arguments: Any) -> Judged:
            found = judge(*arguments)
            if not self.judged.is_set():
                self.judged.set()
                assert self.go.wait(20)
            return found

        monkeypatch.setattr(one.writer, "_judge", held)


@pytest.fixture
def one(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        yield made


@pytest.fixture
def two(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        yield made


def test_an_alert_has_the_owner_of_a_device_that_was_silent_for_long(database: Database, one: Rig) -> None:
    """A worker has only those in memory that were heard of lately."""
    database.rows(
        "insert into devices (device_id, owner, last_seen) values ('kitchen', 'home', '2020-01-01')"
    )
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    assert database.rows("select device_id, place_id from alerts") == [("kitchen", "home")]


@pytest.mark.parametrize("locked", [True, False], ids=["with the lock", "without it"])
def test_an_old_violation_opens_nothing_that_a_newer_reading_in_flight_has_cleared(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    """The one interleaving that the advisory lock is for. Without the lock the alert never ends."""
    add_rule(database, id="hot", kind="max", value=30)
    # The chunk of that day, and the registry's row: making them is a lock of its own.
    write(two, at(1, 20))
    if not locked:
        monkeypatch.setattr(alert_store, "lock", only_savepoint)
    held = Held(monkeypatch, one)
    quiet = InBackground(lambda: write(one, at(9, 20)))
    assert held.judged.wait(20)
    opens = InBackground(lambda: write(two, at(5, 31)))
    wait_until(lambda: opens.done or waiting_for_a_lock(database))
    assert opens.done is not locked
    held.go.set()
    assert (quiet.result(), opens.result()) == ({Fate.STORED}, {Fate.STORED})
    assert states(database) == ([] if locked else ["active"])


@pytest.mark.parametrize("locked", [True, False], ids=["with the lock", "without it"])
def test_a_clearing_reading_ends_an_alert_that_is_being_opened(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    """The same two the other way round."""
    add_rule(database, id="hot", kind="max", value=30)
    # The chunk of that day, and the registry's row: making them is a lock of its own.
    write(two, at(1, 20))
    if not locked:
        monkeypatch.setattr(alert_store, "lock", only_savepoint)
    held = Held(monkeypatch, one)
    opens = InBackground(lambda: write(one, at(5, 31)))
    assert held.judged.wait(20)
    clears = InBackground(lambda: write(two, at(9, 20)))
    wait_until(lambda: clears.done or waiting_for_a_lock(database))
    held.go.set()
    opens.result()
    clears.result()
    assert states(database) == (["resolved"] if locked else ["active"])


def test_two_that_open_the_same_alert_at_once_open_one(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    two.writer.start()
    held = Held(monkeypatch, one)
    first = InBackground(lambda: write(one, at(5, 31)))
    assert held.judged.wait(20)
    second = InBackground(lambda: write(two, at(6, 33)))
    wait_until(lambda: waiting_for_a_lock(database))
    held.go.set()
    first.result()
    second.result()
    (alert,) = alerts(database)
    assert (alert.status, alert.violations, alert.peak) == ("active", 2, 33)
    assert (one.stats.alerts_opened, two.stats.alerts_opened) == (1, 0)


def test_batches_that_open_nothing_do_not_wait_for_each_other(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    two.writer.start()
    held = Held(monkeypatch, one)
    first = InBackground(lambda: write(one, at(5, 20)))
    assert held.judged.wait(20)
    write(two, at(6, 20))
    assert not first.done
    held.go.set()
    first.result()


CONCURRENT_RULES: list[dict[str, Any]] = [
    {"id": "over", "kind": "max", "value": 6.0},
    {"id": "far", "kind": "max", "value": 7.0, "hysteresis": 3.0},
    {"id": "under", "kind": "min", "value": 3.0},
    {"id": "wide", "kind": "min", "value": 2.0, "hysteresis": 2.0},
]


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_at_the_end_an_alert_is_open_exactly_where_the_newest_reading_says_so(
    database: Database, workers: int
) -> None:
    for rule in CONCURRENT_RULES:
        add_rule(database, **rule, device_pattern="*")
    with ExitStack() as stack:
        rigs = [stack.enter_context(rig(database)) for _ in range(workers)]

        def work(number: int) -> None:
            chance = random.Random(number)
            for turn in range(240 // workers):
                readings = [_any_reading(chance, number, turn, n) for n in range(chance.randint(1, 6))]
                again = chance.random() < 0.2
                write(rigs[number], *readings, redelivered=again)

        together([lambda n=n: work(n) for n in range(workers)])  # type: ignore[misc]
        assert [one.stats.errors for one in rigs] == [0] * workers
        assert sum(one.stats.alerts_opened for one in rigs) > 20, "the rules hardly ever opened an alert"
    assert deadlocks(database) == 0
    _check_open(database)
    opened, resolved = database.rows("select count(*), count(resolved_at) from alerts")[0]
    told = sum(one.stats.alerts_opened for one in rigs), sum(one.stats.alerts_resolved for one in rigs)
    assert told == (opened, resolved)


def _any_reading(chance: random.Random, worker: int, turn: int, number: int) -> Reading:
    second = turn + number / 10 - chance.choice([0, 0, 0, 5])
    message = (worker * 1000 + turn) * 10 + number
    return at(100 + second, float(chance.randint(0, 9)), chance.choice(DEVICES), message)


def _check_open(database: Database) -> None:
    newest = dict(
        database.rows(
            "select distinct on (device_id) device_id, value from sensor_readings"
            " order by device_id, timestamp desc, message_id desc"
        )
    )
    found = {
        (rule, device)
        for rule, device in database.rows(
            "select threshold_id, device_id from alerts where status <> 'resolved'"
        )
    }
    for rule in CONCURRENT_RULES:
        for device, value in newest.items():
            sign = 1 if rule["kind"] == "max" else -1
            beyond = sign * (value - rule["value"])
            is_open = (rule["id"], device) in found
            if beyond > 0:
                assert is_open, (rule, device, value)
            elif beyond <= -rule.get("hysteresis", 0):
                assert not is_open, (rule, device, value)


def test_whoever_wrongly_thinks_an_alert_open_gives_the_shared_lock_back_and_queues(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    write(two, at(2, 20))
    taken: list[bool] = []
    lock: Callable[..., None] = alert_store.lock

    def noted(connection: BoundedConnection, *, exclusive: bool) -> None:
        taken.append(exclusive)
        lock(connection, exclusive=exclusive)

    monkeypatch.setattr(alert_store, "lock", noted)
    write(one, at(3, 32))
    assert taken == [False, True]
    assert states(database) == ["resolved", "active"]


def test_two_that_fall_back_at_the_same_time_do_not_deadlock(
    database: Database, one: Rig, two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the shared lock and want the exclusive one: an upgrade in place would be a deadlock."""
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    write(two, at(2, 32))
    with rig(database) as third:
        write(third, at(3, 20))
    both = threading.Barrier(2)
    since = alert_store.opened_since
    met = threading.local()

    def meet(connection: BoundedConnection, seen: int | None) -> Any:
        if not getattr(met, "yes", False):
            met.yes = True
            both.wait(20)
        return since(connection, seen)

    monkeypatch.setattr(alert_store, "opened_since", meet)
    together([lambda: write(one, at(4, 33)), lambda: write(two, at(5, 34))])
    assert (one.stats.errors, two.stats.errors) == (0, 0)
    assert states(database) == ["resolved", "active"]


def test_a_worker_frozen_with_the_lock_frees_the_others_in_time(
    database: Database, two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    two.writer.start()
    with rig(database, timeout_sec=1.0) as frozen:
        held = Held(monkeypatch, frozen)
        stuck = InBackground(lambda: write(frozen, at(1, 31)))
        assert held.judged.wait(20)
        began = time.monotonic()
        write(two, at(2, 32))
        assert time.monotonic() - began < 5
        assert two.stats.errors == 0
        held.go.set()
        assert stuck.result() == {Fate.STORED}
        assert frozen.stats.errors > 0
    (alert,) = alerts(database)
    assert (alert.status, alert.violations, alert.first) == ("active", 1, at(2, 32).timestamp_us)


def test_a_stronger_limit_ends_an_alert_and_a_weaker_one_opens_one_at_the_next_reading(
    database: Database, one: Rig
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    database.rows("update thresholds set value = 40")
    write(one, at(2, 35))
    assert states(database) == ["resolved"]
    database.rows("update thresholds set value = 30")
    write(one, at(3, 35))
    assert states(database) == ["resolved", "active"]


def sweep_once(database: Database) -> None:
    with BoundedConnection.connect(database.url) as connection:
        sweep = Sweep(
            "sensor_readings",
            "test",
            publish=False,
            caught_up_at=time.monotonic,
            now=lambda: datetime.now(UTC),
        )
        sweep.take(connection)
        connection.commit()
        sweep.run(lambda: connection)


@pytest.mark.parametrize("swept", [True, False], ids=["swept between", "not swept"])
def test_a_rule_that_is_switched_off_and_on_again(database: Database, one: Rig, swept: bool) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    database.rows("update thresholds set enabled = false")
    write(one, at(2, 32))
    if swept:
        sweep_once(database)
    database.rows("update thresholds set enabled = true")
    write(one, at(3, 33))
    assert states(database) == (["resolved", "active"] if swept else ["active"])


def test_a_deleted_rule_moves_nothing_and_one_of_the_same_id_begins_anew(
    database: Database, one: Rig
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31))
    database.rows("delete from thresholds")
    write(one, at(2, 32))
    sweep_once(database)
    add_rule(database, id="hot", kind="max", value=10)
    write(one, at(3, 12))
    assert [(a.status, a.violations) for a in alerts(database)] == [("resolved", 1), ("active", 1)]


KINDS: dict[str, dict[str, Any]] = {
    "max": {"value": 30.0},
    "min": {"value": 50.0},
    "rate": {"value": 0.5, "window_sec": 60.0},
    "silence": {"value": 60.0},
    "equals": {"value_text": "31"},
    "differs": {"value_text": "ok"},
}
NONE = {"value": None, "value_text": None, "window_sec": None, "debounce_count": 1}


@pytest.mark.parametrize("pending", [False, True], ids=["active", "pending"])
@pytest.mark.parametrize(("before", "after"), list(permutations(["max", "rate", "silence", "equals"], 2)))
def test_a_kind_that_changes_while_an_alert_is_open_stops_no_worker(
    database: Database, one: Rig, before: str, after: str, pending: bool
) -> None:
    count = 9 if pending and before != "silence" else 1
    add_rule(database, id="rule", kind=before, **KINDS[before] | {"debounce_count": count})
    write(one, at(1, 20), at(2, 31), at(3, "31"), at(4, 33) if before != "equals" else at(4, "31"))
    if before == "silence":
        database.rows("update series set last_seen = now() - interval '100 s'")
        one.writer._registry._dirty.clear()
        database.rows("update sensor_readings set created_at = now() - interval '100 s'")
        database.rows("insert into duties values ('sweep', 'x', now() - interval '1 s', now())")
        sweep_once(database)
    assert states(database) == ["pending" if count > 1 else "active"]
    columns = NONE | KINDS[after] | {"kind": after}
    names = ", ".join(f"{name} = %s" for name in columns)
    database.rows(f"update thresholds set {names}", *columns.values())
    assert write(one, at(100, 20), at(101, "31")) == {Fate.STORED}
    assert write(one, at(102, 99), at(103, "fine")) == {Fate.STORED}
    sweep_once(database)
    assert database.rows(
        "select count(*) from alerts a join thresholds t on t.id = a.threshold_id"
        " where a.status <> 'resolved' and a.threshold_type <> t.kind"
    ) == [(0,)]


def test_readings_that_were_deleted_and_come_again_do_not_double_their_alert(
    database: Database, one: Rig
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 31), at(2, 20))
    (before,) = database.rows("select id, status from alerts")
    database.rows("delete from sensor_readings")
    assert write(one, at(1, 31)) == {Fate.STORED}  # would open the alert of the same id
    assert write(one, at(2, 20)) == {Fate.STORED}
    assert database.rows("select id, status from alerts") == [before]
    write(one, at(3, 31))
    assert states(database) == ["resolved", "active"]


def test_the_same_batch_delivered_twice_changes_nothing(database: Database, one: Rig) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    batch = [at(1, 31), at(2, 33), at(3, 20), at(4, 40)]
    write(one, *batch)
    before = database.rows("select * from alerts order by number")
    assert write(one, *batch, redelivered=True) == {Fate.DUPLICATE}
    assert database.rows("select * from alerts order by number") == before


def test_rates_beyond_what_a_double_holds_are_judged_and_kept(database: Database, one: Rig) -> None:
    add_rule(database, id="rises", kind="rate", value=1.0, window_sec=60)
    add_rule(database, id="falls", kind="rate", value=-1.0, window_sec=60, hysteresis=0.5)
    write(one, at(1, -1.7e308), at(2, 1.7e308), at(3, -1.7e308))
    found = {(alert.rule, alert.status, alert.peak) for alert in alerts(database)}
    # the oldest of the window is the same low value, so after the rise the rate is zero again
    assert found == {("rises", "resolved", math.inf)}
    write(one, at(100, 1.7e308), at(101, -1.7e308))
    assert ("falls", "active", -math.inf) in {(a.rule, a.status, a.peak) for a in alerts(database)}


def test_values_at_the_ends_of_the_range_are_judged(database: Database, one: Rig) -> None:
    add_rule(database, id="low", kind="max", value=-1.7e308, hysteresis=1.0)
    write(one, at(1, 1.7e308))
    write(one, at(2, -1.7e308))
    assert states(database) == ["active"]  # at the limit, within the hysteresis


def test_a_failed_attempt_is_judged_once(database: Database, one: Rig) -> None:
    """The connection is cut at COMMIT: the second attempt goes through staging and finds what is there."""
    add_rule(database, id="hot", kind="max", value=30)
    write(one, at(1, 20))
    database.rows(
        "create function cut() returns trigger language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$"
    )
    database.rows(
        "create constraint trigger cut after insert on alerts deferrable initially deferred"
        " for each row execute function cut()"
    )
    write_it = InBackground(lambda: write(one, at(2, 31)))
    wait_until(lambda: one.stats.errors > 0)
    database.rows("drop trigger cut on alerts")
    assert write_it.result() == {Fate.STORED}
    assert [(a.status, a.violations) for a in alerts(database)] == [("active", 1)]
    assert one.stats.alerts_opened == 1


def test_late_readings_before_a_million_newer_ones_are_judged_fast(
    database: Database, one: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rule(database, id="hot", kind="max", value=30)
    late = [[at(part * 0.5 + n / 1000, 31.0, "kitchen") for n in range(500)] for part in range(20)]
    alone = [[reading._replace(device_id="hall") for reading in part] for part in late]
    add_rule(database, id="hall", device_pattern="hall", kind="max", value=30)
    write(one, at(0, 20))  # makes the partition
    write(one, at(86_000, 20, "hall"))
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "insert into sensor_readings (timestamp, device_id, sensor_type, value, message_id)"
            " select to_timestamp(%s) + n * interval '80 ms', 'kitchen', 'temperature', 20,"
            " gen_random_uuid() from generate_series(300, 1000300) n",
            [YESTERDAY_US / 1e6],
        )
    took = {}
    for name, parts in (("one newer", alone), ("a million newer", late)):
        began = time.monotonic()
        for part in parts:
            write(one, *part)
        took[name] = (time.monotonic() - began) / len(parts)
    assert states(database) == []
    with capsys.disabled():
        each = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in took.items())
        print(f"\n500 late violating readings a batch: {each}")
    assert took["a million newer"] < 10 * took["one newer"] + 0.05
