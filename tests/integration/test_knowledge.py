"""What workers hear of changes that are made by SQL: each statement, each connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import database as adapter
from database import BoundedConnection
from knowledge import Knowledge
from registry import Registry
from rule_store import RuleStore
from tests.alerts import add_rule
from tests.support import Database, wait_until

RELOAD_SEC = 60.0
MANY = (
    "insert into thresholds (id, device_pattern, sensor_pattern, kind, value)"
    " select 'r' || n, 'd' || n, 'x', 'max', n from generate_series(1, %s) n"
)


class Worker:
    """What one worker knows, on a connection that a test can replace."""

    def __init__(self, database: Database) -> None:
        self.now = 1_000.0
        self.store = RuleStore()
        self.registry = Registry()
        self.knowledge = Knowledge(self.store, self.registry, RELOAD_SEC, lambda: self.now)
        self._database = database
        self.connection = self.connect()
        self.refresh()

    def connect(self) -> BoundedConnection:
        self.connection = adapter.connect(self._database.url, 30)
        return self.connection

    def refresh(self) -> None:
        self.knowledge.refresh(self.connection)

    def hears(self, condition: Callable[[], object]) -> None:
        """Ask as a worker does before each batch, until it has heard."""

        def heard() -> object:
            self.refresh()
            return condition()

        wait_until(heard)

    @property
    def ids(self) -> set[str]:
        return set(self.store.rules._by_id)


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    made = Worker(database)
    yield made
    made.connection.close()


def test_each_kind_of_statement_is_heard(database: Database, worker: Worker) -> None:
    add_rule(database, id="a", kind="max", value=1)
    worker.hears(lambda: worker.ids == {"a"})
    database.rows("update thresholds set value = 2")
    worker.hears(lambda: worker.store.rules._by_id["a"].value == 2)
    database.rows("update thresholds set enabled = false")
    worker.hears(lambda: not worker.ids)
    database.rows("update thresholds set enabled = true")
    worker.hears(lambda: worker.ids == {"a"})
    database.rows("delete from thresholds")
    worker.hears(lambda: not worker.ids)
    add_rule(database, id="b", kind="max", value=1)
    worker.hears(lambda: worker.ids == {"b"})
    database.rows("truncate thresholds")
    worker.hears(lambda: not worker.ids)


def test_an_upsert_is_heard(database: Database, worker: Worker) -> None:
    upsert = (
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, value)"
        " values ('a', 'd', 's', 'max', %s)"
        " on conflict (id) do update set value = excluded.value"
    )
    for value in (1.0, 2.0):
        database.rows(upsert, value)
        worker.hears(lambda value=value: (of := worker.store.rules.get("a")) and of.value == value)  # type: ignore[misc]


@pytest.mark.parametrize("count", [20, 21, 3000])
def test_few_and_many_rows_of_one_statement_are_heard(
    database: Database, worker: Worker, count: int
) -> None:
    database.rows(MANY, count)
    worker.hears(lambda: len(worker.ids) == count)
    database.rows("update thresholds set value = -7")
    worker.hears(lambda: {rule.value for rule in worker.store.rules._by_id.values()} == {-7.0})
    database.rows("delete from thresholds")
    worker.hears(lambda: not worker.ids)


def test_a_statement_that_touches_nothing_says_nothing(database: Database, worker: Worker) -> None:
    database.rows("update thresholds set value = 2")
    database.rows("delete from thresholds")
    assert list(worker.connection.notifies(timeout=0.3)) == []
    worker.connection.rollback()


ODD_IDS = ['"', "\\", "a,b", "[1]", "*", "'", "\n", "é" * 100, "\x01" * 100, "🌡" * 100, "x" * 100]


def test_ids_of_any_characters_are_heard(database: Database, worker: Worker) -> None:
    for odd in ODD_IDS:
        add_rule(database, id=odd, kind="max", value=1)
    worker.hears(lambda: worker.ids == set(ODD_IDS))
    database.rows("update thresholds set enabled = false where id <> '*'")
    worker.hears(lambda: worker.ids == {"*"})


def test_long_ids_of_one_statement_do_not_outgrow_a_notification(
    database: Database, worker: Worker
) -> None:
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, value)"
        " select repeat(chr(1), 98) || n, 'd', 's', 'max', 1 from generate_series(10, 29) n"
    )
    worker.hears(lambda: len(worker.ids) == 20)


def test_a_series_with_an_odd_name_is_heard(database: Database, worker: Worker) -> None:
    for device in ('"', "\\", "é" * 100, "\x01" * 100):
        database.rows("insert into series (device_id, sensor_type) values (%s, %s)", device, device)
        database.rows("update series set active = false where device_id = %s", device)
        worker.hears(lambda device=device: (device, device) in worker.registry._inactive)  # type: ignore[misc]


def test_a_new_connection_learns_what_was_missed_and_listens_again(
    database: Database, worker: Worker
) -> None:
    worker.connection.close()
    add_rule(database, id="a", kind="max", value=1)
    worker.connect()
    worker.refresh()
    assert worker.ids == {"a"}
    add_rule(database, id="b", kind="max", value=1)
    worker.hears(lambda: worker.ids == {"a", "b"})


def test_a_lost_notification_is_made_good_at_the_periodic_look(database: Database, worker: Worker) -> None:
    database.rows("alter table thresholds disable trigger announce_insert")
    add_rule(database, id="a", kind="max", value=1)
    worker.refresh()
    worker.now += RELOAD_SEC - 0.1
    worker.refresh()
    assert worker.ids == set()
    worker.now += 0.1
    worker.refresh()
    assert worker.ids == {"a"}


def test_what_was_announced_while_other_statements_ran_is_heard(database: Database, worker: Worker) -> None:
    add_rule(database, id="a", kind="max", value=1)
    for _ in range(5):
        worker.connection.execute("select pg_sleep(0.02)")
    worker.connection.rollback()
    worker.refresh()
    assert worker.ids == {"a"}


def test_a_change_that_is_rolled_back_is_not_heard(database: Database, worker: Worker) -> None:
    with pytest.raises(Exception, match="thresholds_kind_known"):
        add_rule(database, id="a", kind="none", value=1)
    worker.refresh()
    assert worker.ids == set()


def test_rules_made_anew_with_versions_from_the_start_are_found_by_the_look(
    database: Database, worker: Worker
) -> None:
    add_rule(database, id="a", kind="max", value=1)
    worker.hears(lambda: worker.ids == {"a"})
    worker.connection.close()
    database.rows("truncate thresholds restart identity")
    add_rule(database, id="b", kind="max", value=1)
    worker.connect()
    worker.refresh()
    assert worker.ids == {"b"}


def test_a_look_at_rules_that_have_not_changed_reads_none_of_them(
    database: Database, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):  # hashes with and without the highest bit
        add_rule(database, id=f"rule {number} é", kind="max", value=1)
    worker.hears(lambda: len(worker.ids) == 300)
    worker.connection.close()
    monkeypatch.setattr(RuleStore, "load", lambda *_: pytest.fail("everything was read again"))
    worker.connect()
    worker.refresh()
    assert len(worker.ids) == 300
