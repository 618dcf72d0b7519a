"""Scenarios: a fault, played to Sluice and to a naive worker, with one and the same check at the end.

    @fault("worker killed in mid load", how="SIGKILL, six times")
    def test_a_worker_killed_…(stage_of: StageOf, database: Database, redis_url: str) -> None:
        stage = stage_of(database, redis_url)
        with stage.source() as source:
            stage.worker("one").kill()
            …
        stage.accounted(source.acknowledged)

A scenario that promises `NOTHING_LOST` runs twice: with Sluice, and with `tests/naive.py`, which has to
fail the check. What a naive worker survives proves nothing, and fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
import redis

import redis_client
from redis_servers import RedisServers
from tests.forge import Forge, daemons
from tests.setups import settings_of
from tests.source import BEGIN, Source
from tests.support import (
    Daemon,
    Database,
    add,
    books,
    everything_settled,
    wait_until,
)

NOTHING_LOST = "nothing lost, nothing twice"
REPORT = "SLUICE_FAULTS_REPORT"  # names the file that gets a JSON line for each check
NAIVE_PATIENCE_SEC = 10.0
NAIVE_STILL_SEC = 2.0


_WITHOUT_KEY = """
    do $$ begin
        execute (select format('alter table sensor_readings drop constraint %I', conname)
                 from pg_constraint where conrelid = 'sensor_readings'::regclass and contype = 'p');
        if exists (select 1 from pg_partitioned_table where partrelid = 'sensor_readings'::regclass) then
            create table sensor_readings_any partition of sensor_readings default;
        end if;
    end $$
"""


def fault(name: str, *, how: str, promise: str = NOTHING_LOST) -> pytest.MarkDecorator:
    """This test is a scenario: a row of the table. `how`: how the fault is injected.

    Who promises `NOTHING_LOST` promises just that: it is what the naive worker plays too.
    """
    claims = any(part in promise for part in NOTHING_LOST.split(", "))
    assert not claims or promise == NOTHING_LOST, f"{name}: it would claim it, and have no twin to show it"
    return pytest.mark.fault(name=name, how=how, promise=promise)


class NaiveFell(Exception):
    """The naive worker lost or doubled something, as it should."""


class Stage:
    """Where a scenario is played. `naive`: to the naive worker."""

    def __init__(
        self,
        start: Callable[..., Daemon],
        database: Database,
        redis_url: RedisServers | str,
        *,
        naive: bool,
    ) -> None:
        """`start`: as `daemons` gives it. `redis_url`: one server, or the servers of another set-up."""
        self.database = database
        self._servers = redis_url
        self.redis_url = redis_url if isinstance(redis_url, str) else redis_url.url
        self._as_user: dict[str, object] = {}
        self.naive = naive
        self.naive_patience_sec = NAIVE_PATIENCE_SEC
        self.client = redis_client.connect(redis_url, timeout_sec=30)
        self._start = start
        self._sources: list[Source] = []
        self.report: list[dict[str, object]] = []
        self.lost_elsewhere: set[int] = set()  # Redis has lost them: they may be stored or not, but once
        if naive:
            database.rows(_WITHOUT_KEY)

    def log_in(self, url: str, **settings: object) -> None:
        """Have workers of Sluice log in so. The naive one, sources and checks need more rights."""
        if not self.naive:
            self.redis_url, self._as_user = url, settings

    def worker(
        self, name: str, *, redis_url: str = "", database: Database | None = None, **settings: object
    ) -> Daemon:
        """Start a worker; `settings` by the names of `Settings`, which the naive one does not heed.

        `redis_url`, `database`: by another way than the stage's own, say a proxy.
        """
        url, database = redis_url or self.redis_url, database or self.database
        if not redis_url and not isinstance(self._servers, str):
            settings = settings_of(self._servers) | self._as_user | settings
        settings["pgappname"] = name  # of a naive one; Sluice gives its own
        return self._start(database, url, naive=self.naive, consumer_name=name, **settings)

    @contextlib.contextmanager
    def in_hand(self, name: str) -> Iterator[None]:
        """While the worker `name` has a batch in hand that it cannot store: the table is locked.

        Others must not claim it at once: a worker that waits for the table reads nothing more. Of a naive
        one it is certain that it has not stored it yet: it takes its time over acknowledging.
        """

        def waiting() -> bool:
            query = "select wait_event_type from pg_stat_activity where application_name = %s"
            return ("Lock",) in self.database.rows(query, name) if self.naive else pending() > 0

        def pending() -> int:
            with self.client.pipeline(transaction=False) as pipe:
                for stream in self.client.scan_iter("mqtt_stream:*", 1000):
                    pipe.xinfo_consumers(stream, "db_writer")
                found = pipe.execute(raise_on_error=False)
            known = [one for consumers in found if isinstance(consumers, list) for one in consumers]
            return sum(one["pending"] for one in known if one["name"] == name.encode())

        with psycopg.connect(self.database.url) as blocker:
            blocker.execute("lock table sensor_readings in access exclusive mode")
            wait_until(waiting, 30, "a batch in hand")
            yield

    def wait_for(self, worker: Daemon, event: str, seconds: float = 30.0) -> None:
        """Wait for an event in Sluice's log; the naive worker says nothing of the kind."""
        if not self.naive:
            worker.wait_for(event, seconds)

    def add(self, stream: str, entries: int) -> None:
        """Add readings numbered from 0, as a source does, all at once."""
        fields = [{"value": str(n), "timestamp": str(BEGIN + n)} for n in range(entries)]
        add(self.client, stream, fields)

    @contextlib.contextmanager
    def source(self, **options: object) -> Iterator[Source]:
        """A producer that adds numbered readings until the end of the block, through outages of Redis."""
        with Source(self._servers, **options) as made:  # type: ignore[arg-type]
            self._sources.append(made)
            yield made

    def accounted(
        self,
        produced: int,
        *,
        dead: Collection[int] = (),
        repeats: Collection[int] = (),
        ledger: bool = True,
        seconds: float = 90.0,
        faults: int = 1,
    ) -> None:
        """The check that ends every scenario: of the readings numbered from 0 that were produced, each is
        in the table once with its value, but those of `dead`, which are dead letters, and of `repeats`,
        which said the same as others; nothing is pending.

        `ledger=False`: Redis has lost its books (an old snapshot, FLUSHALL). `faults`: how many points of
        a crash, say, were tried one after the other.
        """
        began = time.monotonic()
        wanted = set(range(produced)) - set(dead) - set(repeats) - self.lost_elsewhere
        if self.naive:
            self._expect_fall(wanted)
        if ledger:
            wait_until(
                lambda: everything_settled(self.client, produced), seconds, f"the end of {produced} entries"
            )
        else:
            wait_until(lambda: self._nothing_left(), seconds, f"the end of {produced} entries")
        lost, doubled, strange = self.compare(wanted)
        letters = redis_client.execute(self.client, "XLEN", "mqtt_stream:failed")
        self.report.append(
            {
                "entries": produced,
                "lost": lost,
                "doubled": doubled,
                "dead_lettered": letters,
                "faults": faults,
                "recovery_sec": round(time.monotonic() - began, 1),
            }
        )
        assert (lost, doubled, strange) == (0, 0, 0), "lost, doubled, strange"
        assert letters == len(dead)
        if ledger:
            total = books(self.client)
            found = (total.stored + total.duplicate, total.dead_lettered, total.pending)
            assert found == (produced - len(dead), len(dead), 0), total
            assert total.duplicate >= len(repeats), total

    def has_fallen(self) -> bool:
        """Whether the naive worker has lost or doubled something of what the last source produced."""
        with contextlib.suppress(NaiveFell):
            produced = self._sources[-1].acknowledged if self._sources else 0
            self._expect_fall(set(range(produced)) - self.lost_elsewhere)
            return False
        return True

    def close(self) -> None:
        self.client.close()

    def compare(self, wanted: set[int]) -> tuple[int, int, int]:
        """Readings that are missing, that are there more than once, and that nobody produced."""
        stored = Counter(int(value) for (value,) in self.database.rows("select value from sensor_readings"))
        doubled = sum(count - 1 for count in stored.values())
        return len(wanted - stored.keys()), doubled, len(stored.keys() - wanted - self.lost_elsewhere)

    def _nothing_left(self) -> bool:
        total = books(self.client)
        return total.pending == 0 and total.unread == 0

    def _nothing_unread(self) -> bool:
        try:
            return books(self.client).unread == 0
        except redis.RedisError:
            return False

    def _expect_fall(self, wanted: set[int]) -> None:
        """Raises `NaiveFell`, or fails. What is not there after `naive_patience_sec`, or sooner when the
        table stays as it is and there is nothing to read, is lost; what is there may come again until then.
        """
        began = changed = time.monotonic()
        before: object = None
        while time.monotonic() - began < self.naive_patience_sec:
            lost, doubled, _ = found = self.compare(wanted)
            if found != before:
                before, changed = found, time.monotonic()
            still = time.monotonic() - changed > NAIVE_STILL_SEC
            if doubled or (still and self._nothing_unread()):
                break
            time.sleep(0.2)
        lost, doubled, _ = self.compare(wanted)
        self.report.append({"naive_lost": lost, "naive_doubled": doubled})
        if lost or doubled:
            raise NaiveFell
        pytest.fail("the naive worker survives this scenario, which therefore proves nothing")


StageOf = Callable[..., Stage]


@pytest.fixture
def stage_of(request: pytest.FixtureRequest, forge: Forge, tmp_path: Path) -> Iterator[StageOf]:
    """Makes the stage of a scenario, once its servers are there."""
    made: list[Stage] = []
    with daemons(forge, tmp_path) as start:

        def make(database: Database, redis_url: RedisServers | str) -> Stage:
            made.append(Stage(start, database, redis_url, naive=request.param == "naive"))
            return made[-1]

        request.node.stash[_STAGES] = made
        try:
            yield make
        finally:
            for stage in made:
                stage.close()


_STAGES = pytest.StashKey[list[Stage]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play each scenario to Sluice and, where it promises that nothing is lost, to the naive worker."""
    if "stage_of" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("fault")
    assert marker, f"{metafunc.definition.name} is a scenario and needs @fault(…)"
    who = ["sluice", "naive"] if marker.kwargs["promise"] == NOTHING_LOST else ["sluice"]
    metafunc.parametrize("stage_of", who, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a naive worker fall, and nothing else of what it plays."""
    stages = pyfuncitem.stash.get(_STAGES, None)
    if stages is None:
        return (yield)
    passed = False
    try:
        found = yield
        if any(stage.naive for stage in stages):
            pytest.fail("this scenario never asked for the account")
        passed = True
        return found
    except NaiveFell:
        passed = True
        return True
    except AssertionError:  # it waited for what only Sluice does: fallen all the same, or is it?
        naive = [stage for stage in stages if stage.naive]
        if not naive or not naive[0].has_fallen():
            raise
        passed = True
        return True
    finally:
        _tell(pyfuncitem, stages, passed)


def _tell(item: pytest.Function, stages: Sequence[Stage], passed: bool) -> None:
    """A line for each check, or one for a scenario without. In one write: several processes may tell at
    a time.
    """
    path = os.environ.get(REPORT)
    marker = item.get_closest_marker("fault")
    if not path or not marker:
        return
    naive = any(stage.naive for stage in stages)
    test = item.nodeid.partition("[")[0]
    lines = [
        {"test": test, **marker.kwargs, "naive": naive, "passed": passed, **found}
        for found in [one for stage in stages for one in stage.report] or [{}]
    ]
    with Path(path).open("ab", buffering=0) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
