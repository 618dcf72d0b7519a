"""Shown by: a database ten times slower than the producers; the worker reads less, and drops nothing.

The short form has 50,000 entries. SLUICE_LONG=1 (`make faults`) has a million, over a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psycopg
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict

from tests.faults import Proxy, proxy_to
from tests.scenarios import StageOf, fault
from tests.source import BEGIN
from tests.support import Daemon, Database, books, is_long, program, wait_until, worker_environment

STREAMS = 50
ROW_BYTES = 90  # of a reading in COPY, about
AT_ONCE = 1000
MOST_MB = 160  # that a worker may take, whatever the backlog
MOST_IN_HAND = 2 * 10_000  # entries: the batch that is written, and the one read ahead


@dataclass(frozen=True, slots=True)
class Load:
    """`seconds`: how long the database is slow, while `entries` come."""

    entries: int
    seconds: float

    @property
    def rows_per_sec(self) -> float:
        """What the slow database takes: a tenth."""
        return self.entries / self.seconds / 10


LOAD = Load(1_000_000, 60.0) if is_long() else Load(50_000, 4.0)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with psycopg.connect(database.url) as connection:
        host, port = connection.info.host, connection.info.port
    with proxy_to(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)) as made:
        yield made


class Memory(threading.Thread):
    """Looks at a process's memory ten times a second. `seen`: when, and megabytes."""

    def __init__(self, worker: Daemon) -> None:
        super().__init__()
        self._status = Path(f"/proc/{worker.process.pid}/status")
        self._ended = threading.Event()
        self.seen: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._ended.wait(0.1):
            kilobytes = next(line for line in self._status.read_text().splitlines() if "VmRSS" in line)
            self.seen.append((time.monotonic(), int(kilobytes.split()[1]) / 1024))

    def most(self, begin: float, end: float) -> float:
        return max(megabytes for at, megabytes in self.seen if begin <= at <= end)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def produce(client: redis.Redis, load: Load) -> None:
    """Numbered readings, evenly over the time that the database is slow, or as fast as this machine can."""
    began = time.monotonic()
    for start in range(0, load.entries, AT_ONCE):
        numbers = range(start, start + AT_ONCE)
        with client.pipeline(transaction=False) as pipe:
            for n in numbers:
                measured = f"{BEGIN + n / 1000:.3f}"
                pipe.xadd(f"mqtt_stream:dev-{n % STREAMS}:t", {"value": str(n), "timestamp": measured})
            pipe.execute()
        due = began + load.seconds * (start + AT_ONCE) / load.entries
        threading.Event().wait(max(0.0, due - time.monotonic()))


@fault(
    "database ten times slower than the producers",
    how="a proxy lets a tenth through for as long as the entries take to come: a million in a minute",
    promise="the worker's memory stays flat, it reads less and drops nothing, and recovers by itself",
)
@pytest.mark.timeout(900)
def test_a_slow_database_makes_workers_read_less_in_flat_memory_and_loses_nothing(
    stage_of: StageOf,
    database: Database,
    client: redis.Redis,
    redis_url: str,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    stage = stage_of(database, redis_url)
    found = conninfo_to_dict(database.url)
    login = ":".join(filter(None, (str(found.get("user", "postgres")), str(found.get("password") or ""))))
    address = f"postgresql://{login}@127.0.0.1:{proxy.port}/{found['dbname']}?sslmode=disable"
    environment = worker_environment(replace(database, url=address), redis_url, consumer_name="one")
    with program(environment, tmp_path / "worker.log") as worker, Memory(worker) as memory:
        worker.wait_for("worker_started")
        proxy.most_per_sec = LOAD.rows_per_sec * ROW_BYTES
        began = time.monotonic()
        produce(client, LOAD)
        while time.monotonic() < began + LOAD.seconds:
            threading.Event().wait(0.05)
        total, lifted = books(client), time.monotonic()
        assert total.unread > LOAD.entries / 2, f"the database was not slow: {total}"
        assert total.pending <= MOST_IN_HAND, f"the worker reads what it cannot store: {total}"
        proxy.most_per_sec = float("inf")
        wait_until(lambda: database.count() == LOAD.entries, 600, "the end of the backlog")
        ended = time.monotonic()
        stage.accounted(LOAD.entries)
    halves = memory.most(began, (began + lifted) / 2), memory.most((began + lifted) / 2, lifted)
    recovery = memory.most(lifted, ended)
    print(
        f"{LOAD.entries:,} entries, {total.unread:,} unread after {lifted - began:.0f} s; memory of the"
        f" worker {halves[0]:.0f} MB, then {halves[1]:.0f} MB; {recovery:.0f} MB while it caught up in"
        f" {ended - lifted:.0f} s",
        flush=True,
    )
    stage.report[-1] |= {"megabytes": round(max(*halves, recovery)), "backlog": total.unread}
    assert halves[1] < halves[0] + 16, "memory grows with the backlog"
    assert max(*halves, recovery) < MOST_MB
    assert "outage_began" not in worker.text(), "slow is not away"
