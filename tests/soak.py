"""A soak: all faults at random, from a seed, over three workers and their servers.

`schedule` is a pure function of the seed and the length, so that a run which fails can be played again.
When each fault comes in relation to what the workers are doing is the machine's, as ever.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import psycopg
import redis

import redis_client
from standalone.servers import Postgres, Valkey
from tests.faults import Proxy
from tests.scenarios import Stage
from tests.support import Daemon, Database, books, wait_until

WORKERS = 3
DEVICES = 30
GROUP = "db_writer"
BAD_EVERY = 50  # one reading in so many is none
LONGEST_SEC = 4.0  # a fault lasts at most
QUIET_SEC = 1.0  # the end of a schedule, in which nothing begins


class Kind(Enum):
    """What is done to whom. Those with a time last for it, and are then undone."""

    KILL_WORKER = "worker killed, and started again"
    STOP_WORKER = "worker ended in order, and started again"
    FREEZE_WORKER = "worker stopped (SIGSTOP), and woken"
    CUT_REDIS = "a worker's connections to Redis cut"
    DEAF_REDIS = "a worker's connections to Redis pass nothing"
    MUTE_REDIS = "a worker gets no replies from Redis"
    REFUSE_REDIS = "a worker's connections to Redis refused and cut"
    LOSE_REPLY = "the next reply of Redis to a worker lost"
    CUT_POSTGRES = "a worker's connections to PostgreSQL cut"
    DEAF_POSTGRES = "a worker's connections to PostgreSQL pass nothing"
    MUTE_POSTGRES = "a worker gets no answers from PostgreSQL"
    LOSE_ANSWER = "the next answer of PostgreSQL to a worker lost"
    KILL_REDIS = "Valkey killed, and started again"
    KILL_POSTGRES = "PostgreSQL killed, and started again"
    RESTART_POSTGRES = "PostgreSQL restarted (fast shutdown)"
    FREEZE_REDIS = "CLIENT PAUSE"
    LOCK_TABLE = "the table of the readings locked"
    LOCK_REGISTRY = "the registry locked"
    END_SESSIONS = "every session of PostgreSQL ended"
    FLUSH_SCRIPTS = "SCRIPT FLUSH"
    DESTROY_GROUP = "the group of a stream destroyed"


_OF_REDIS = {Kind.KILL_REDIS, Kind.FREEZE_REDIS, Kind.FLUSH_SCRIPTS, Kind.DESTROY_GROUP}
_OF_POSTGRES = {
    Kind.KILL_POSTGRES,
    Kind.RESTART_POSTGRES,
    Kind.LOCK_TABLE,
    Kind.LOCK_REGISTRY,
    Kind.END_SESSIONS,
}


class Fault(NamedTuple):
    """`at` and `seconds` from the begin of the soak. `worker`: to which one, where it is one's."""

    at: float
    kind: Kind
    worker: int
    seconds: float


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a soak, in order. Two faults of one server, or of one worker, never overlap."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    free: dict[str, float] = {}
    bag: list[Kind] = []
    at = 1.0
    while at < seconds - QUIET_SEC:
        if not bag:  # every kind once, in random order, before any comes again
            bag = list(Kind)
            rng.shuffle(bag)
        kind, worker = bag.pop(), rng.randrange(WORKERS)
        lasts = round(min(rng.uniform(0.2, LONGEST_SEC), seconds - QUIET_SEC - at), 2)
        victim = "redis" if kind in _OF_REDIS else "postgres" if kind in _OF_POSTGRES else f"{worker}"
        begins = round(max(at, free.get(victim, 0.0)), 2)
        if begins < seconds - QUIET_SEC:
            faults.append(Fault(begins, kind, worker, lasts))
            free[victim] = begins + lasts + 0.3
        at += rng.uniform(0.05, 1.2)
    return sorted(faults, key=lambda one: one.at)


@dataclass
class _Worker:
    name: str
    redis: Proxy
    postgres: Proxy
    url: str
    database: Database
    daemon: Daemon | None = None


@dataclass
class Soak:
    """Plays a schedule on a stage with servers of its own. `say` is told what happens."""

    stage: Stage
    valkey: Valkey
    postgres: Postgres
    say: Callable[[str], None] = print
    checks: int = 0
    entries: int = 0
    workers: list[_Worker] = field(default_factory=list)

    def play(self, faults: list[Fault], seconds: float) -> None:
        """Returns when everything that was produced is accounted for; raises AssertionError else."""
        with contextlib.ExitStack() as rest:
            for number in range(WORKERS):
                self.workers.append(rest.enter_context(self._connected(f"worker-{number}")))
            for worker in self.workers:
                self._start(worker)
            with self.stage.source(devices=DEVICES, rest_sec=0.15, value_of=_value) as source:
                self._run(faults, seconds)
            self.entries = source.acknowledged
            self._account()

    def _run(self, faults: list[Fault], seconds: float) -> None:
        """Begin and undo each fault at its time; look at the books in between."""
        began = time.monotonic()
        steps: list[tuple[float, Callable[[], None]]] = []
        for fault in faults:
            undo: list[Callable[[], None]] = []
            steps.append((fault.at, lambda fault=fault, undo=undo: undo.append(self._begin(fault))))  # type: ignore[misc]
            steps.append((fault.at + fault.seconds, lambda undo=undo: undo.pop()()))  # type: ignore[misc]
        steps += [(at + 0.0, self.check) for at in range(2, int(seconds), 2)]
        for at, step in sorted(steps, key=lambda one: one[0]):
            threading.Event().wait(max(0.0, began + at - time.monotonic()))
            step()

    def check(self) -> None:
        """While it goes on: what is counted as stored is in the table, and nothing is there that nobody
        has produced. Left out while one of the servers is away.
        """
        with contextlib.suppress(redis.RedisError, psycopg.Error, OSError):
            total = books(self.stage.client)  # first: what is settled by now was stored before
            with psycopg.connect(self.stage.database.url, connect_timeout=2) as connection:
                connection.execute("set lock_timeout = '1s'; set statement_timeout = '20s'")
                query = "select count(*), count(distinct value) from sensor_readings"
                found = connection.execute(query).fetchone()
            assert found is not None
            assert total.missing == 0, f"entries unaccounted for: {total}"
            assert total.trimmed == total.trimmed_unread == 0, total
            assert found[0] == found[1], f"{found[0] - found[1]} rows doubled"
            assert found[0] >= total.stored, f"{total.stored} counted as stored, {found[0]} rows"
            self.checks += 1

    def _account(self) -> None:
        """The check at the end. Entries of a group that was destroyed are read again: duplicates then."""
        everything = range(self.entries)
        bad = {n for n in everything if _is_bad(n)}
        wait_until(self._nothing_left, 180, f"the end of {self.entries} entries")
        stored = [int(value) for (value,) in self.stage.database.rows("select value from sensor_readings")]
        reply = redis_client.execute(self.stage.client, "XRANGE", "mqtt_stream:failed", "-", "+")
        letters = [int(fields[3].partition(b"-")[0]) - 1 for _, fields in reply]
        lost = len(set(everything) - bad - set(stored)) + len(bad - set(letters))
        doubled = len(stored) - len(set(stored)) + len(letters) - len(set(letters))
        strange = len(set(stored) - (set(everything) - bad)) + len(set(letters) - bad)
        self.stage.report.append(
            {"entries": self.entries, "lost": lost, "doubled": doubled, "dead_lettered": len(letters)}
        )
        total = books(self.stage.client)
        assert (lost, doubled, strange) == (0, 0, 0), "lost, doubled, strange"
        assert (total.missing, total.pending, total.trimmed) == (0, 0, 0), total
        assert (total.added, total.read) == (self.entries, self.entries), total
        for worker in self.workers:
            assert worker.daemon is not None
            worker.daemon.wait_for("worker_started", 60)
            status = worker.daemon.terminate(60)
            assert status == 0, f"{worker.name} ended with {status}: {worker.daemon.text()[-2000:]}"

    def _nothing_left(self) -> bool:
        for worker in self.workers:
            assert worker.daemon is not None
            assert worker.daemon.process.poll() is None, f"ended: {worker.daemon.text()[-2000:]}"
        total = books(self.stage.client)
        return total.pending == 0 and total.unread == 0 and total.read == self.entries

    @contextlib.contextmanager
    def _connected(self, name: str) -> Iterator[_Worker]:
        to_redis = Proxy(str(self.valkey.socket))
        to_postgres = Proxy(str(self.postgres.socket_folder / ".s.PGSQL.5432"))
        try:
            url = f"postgresql://postgres@127.0.0.1:{to_postgres.port}/sluice"
            database = Database(url, timescale=False)
            yield _Worker(name, to_redis, to_postgres, f"redis://127.0.0.1:{to_redis.port}/0", database)
        finally:
            to_redis.close()
            to_postgres.close()

    def _start(self, worker: _Worker) -> None:
        worker.daemon = self.stage.worker(
            worker.name,
            redis_url=worker.url,
            database=worker.database,
            claim_min_idle_sec=2,
            share_above_streams=0,
            worker_timeout_sec=2,
            db_timeout_sec=5,
            batch_timeout_sec=0.2,
            max_deliveries=1000,  # entries that are claimed all the time are no poison here
        )

    def _begin(self, fault: Fault) -> Callable[[], None]:
        """Do it; answers what undoes it."""
        self.say(f"{fault.at:7.1f} s  {fault.kind.value} ({fault.worker}, {fault.seconds} s)")
        worker = self.workers[fault.worker]
        if fault.kind in _OF_REDIS:
            return self._to_redis(fault)
        if fault.kind in _OF_POSTGRES:
            return self._to_postgres(fault)
        if fault.kind in (Kind.KILL_WORKER, Kind.STOP_WORKER, Kind.FREEZE_WORKER):
            return self._to_process(fault.kind, worker)
        of_redis = fault.kind in (
            Kind.CUT_REDIS,
            Kind.DEAF_REDIS,
            Kind.MUTE_REDIS,
            Kind.REFUSE_REDIS,
            Kind.LOSE_REPLY,
        )
        return _to_proxy(fault.kind, worker.redis if of_redis else worker.postgres)

    def _to_process(self, kind: Kind, worker: _Worker) -> Callable[[], None]:
        daemon = worker.daemon
        assert daemon is not None
        assert daemon.process.poll() is None, f"{worker.name} ended by itself: {daemon.text()[-2000:]}"
        if kind is Kind.FREEZE_WORKER:
            daemon.freeze()
            return daemon.thaw
        if kind is Kind.STOP_WORKER:
            daemon.process.terminate()

            def again() -> None:
                status = daemon.process.wait(60)
                in_order = status == 0 or "worker_started" not in daemon.text()
                assert in_order, f"{worker.name} ended with {status}: {daemon.text()[-2000:]}"
                self._start(worker)

            return again
        daemon.kill()
        return lambda: self._start(worker)

    def _to_redis(self, fault: Fault) -> Callable[[], None]:
        if fault.kind is Kind.KILL_REDIS:
            self.valkey.kill()
            return self.valkey.start
        with redis_client.connect(self.valkey.url, timeout_sec=5) as client:
            if fault.kind is Kind.FREEZE_REDIS:
                redis_client.execute(client, "CLIENT", "PAUSE", int(fault.seconds * 1000), "ALL")
            elif fault.kind is Kind.FLUSH_SCRIPTS:
                redis_client.execute(client, "SCRIPT", "FLUSH")
            else:  # of a stream without bad readings, which would get a second dead letter each
                redis_client.execute(client, "XGROUP", "DESTROY", "mqtt_stream:dev-0:t", GROUP)
        return lambda: None

    def _to_postgres(self, fault: Fault) -> Callable[[], None]:
        if fault.kind is Kind.KILL_POSTGRES:
            self.postgres.kill()
            return self.postgres.start
        if fault.kind is Kind.RESTART_POSTGRES:
            self.postgres.stop()
            return self.postgres.start
        if fault.kind is Kind.END_SESSIONS:
            query = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            self.stage.database.rows(query)
            return lambda: None
        table = "sensor_readings" if fault.kind is Kind.LOCK_TABLE else "series, devices"
        return _lock(self.stage.database, table)


def _to_proxy(kind: Kind, proxy: Proxy) -> Callable[[], None]:
    if kind in (Kind.DEAF_REDIS, Kind.DEAF_POSTGRES):
        proxy.deaf = True
    elif kind in (Kind.MUTE_REDIS, Kind.MUTE_POSTGRES):
        proxy.mute = True
    elif kind in (Kind.LOSE_REPLY, Kind.LOSE_ANSWER):
        before = proxy.cuts
        proxy.cut_reply_when = lambda _: proxy.cuts == before
    else:
        proxy.refuse = kind is Kind.REFUSE_REDIS
        proxy.cut()

    def undo() -> None:
        if proxy.deaf or proxy.mute:  # what was swallowed is missing from the stream of bytes
            proxy.cut()
        proxy.deaf = proxy.mute = proxy.refuse = False
        proxy.cut_reply_when = lambda _: False

    return undo


def _lock(database: Database, table: str) -> Callable[[], None]:
    """Wait for the lock at most 2 s; without it there is nothing to undo."""
    connection = psycopg.connect(database.url, connect_timeout=2)
    try:
        connection.execute("set lock_timeout = '2s'")
        connection.execute(f"lock table {table} in access exclusive mode")
    except psycopg.Error:
        connection.close()
    return connection.close


def _is_bad(number: int) -> bool:
    return number % DEVICES != 0 and number % BAD_EVERY == BAD_EVERY - 1


def _value(number: int) -> str:
    return "NaN" if _is_bad(number) else str(number)
