"""What telling readers of new readings costs a worker, and how soon they hear.

    .venv/bin/python -m benchmarks.telling [--entries N] [--rounds N] [--redis-url …] [--database-url …]

Ingest: one daemon process drains the backlog of benchmarks.throughput, in each round once with nobody who
listens and once with each number of readers, each a process of its own that understands all it hears. Then
the share that telling has in the time of a worker in this process: beside it the ratios are mostly noise.

Latency: entries are added one by one at a steady rate to a hundred streams; from before XADD until the
reader has understood it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Event

import config
import log
import redis_client
from benchmarks.bench import ROOT, empty, servers
from benchmarks.daemons import drain
from benchmarks.workloads import BATCH, SERIES, Flat, preload
from database import BoundedConnection
from live import Newest
from live_listener import listening
from main import DatabaseWriterService
from ops import migrate
from redis_reader import RedisReader
from schema import Outcome, Reading
from telling import Telling

LATENCY_STREAMS = 100
READERS = (0, 1, 4)


def read(url: str, ready: Event, done: Event) -> None:
    """A reader, until `done`."""
    with listening(url) as listener:
        ready.set()
        while not done.is_set():
            listener.hear(0.2)


@contextlib.contextmanager
def readers(url: str, count: int) -> Iterator[None]:
    method = multiprocessing.get_context("spawn")
    done = method.Event()
    running = []
    for _ in range(count):
        ready = method.Event()
        process = method.Process(target=read, args=(url, ready, done))
        process.start()
        running.append(process)
        if not ready.wait(30):
            raise SystemExit("a reader did not start")
    try:
        yield
    finally:
        done.set()
        for process in running:
            process.join(10)


def ingest(redis_url: str, database_url: str, entries: int, rounds: int) -> None:
    seconds: dict[int, list[float]] = {count: [] for count in READERS}
    for number in range(rounds + 1):
        for count in READERS if number % 2 else reversed(READERS):
            preload(redis_url, Flat(entries))
            empty(database_url)
            with readers(database_url, count):
                took = drain(redis_url, database_url, entries).seconds
            if number:  # the first round warms up
                seconds[count].append(took)
    print(f"\ningest, {entries:,} readings of {SERIES:,} series")
    for count in READERS:
        speeds = [entries / took for took in seconds[count]]
        ratios = [none / took for none, took in zip(seconds[0], seconds[count], strict=True)]
        print(
            f"{count} readers{statistics.median(speeds):>10,.0f} readings/s"
            f"   of none: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def share(redis_url: str, database_url: str, entries: int, count: int) -> None:
    """Time inside `Telling.tell`, of all that a worker in this process takes for a backlog."""
    preload(redis_url, Flat(entries))
    empty(database_url)
    settings = config.load(
        redis_url=redis_url, database_url=database_url, stream_retention_sec=0, batch_size=BATCH
    )
    service = DatabaseWriterService(settings)
    spent, calls = 0.0, 0
    tell, settle = Telling.tell, RedisReader.settle

    def timed(telling: Telling, connection: BoundedConnection, stored: Sequence[Reading]) -> None:
        nonlocal spent, calls
        began = time.perf_counter()
        tell(telling, connection, stored)
        spent += time.perf_counter() - began
        calls += 1

    def settle_and_count(reader: RedisReader, outcome: Outcome) -> None:
        settle(reader, outcome)
        if service.stats.messages_written >= entries:
            service.stop()

    # `setattr`: mypy does not like the other way
    setattr(Telling, "tell", timed)  # noqa: B010
    setattr(RedisReader, "settle", settle_and_count)  # noqa: B010
    try:
        with readers(database_url, count):
            began = time.perf_counter()
            service.run()
            whole = time.perf_counter() - began
    finally:
        setattr(Telling, "tell", tell)  # noqa: B010
        setattr(RedisReader, "settle", settle)  # noqa: B010
    print(
        f"{count} readers: telling takes {spent / whole:.2%} of a worker's time,"
        f" {spent / calls * 1000:.2f} ms a transaction; {service.stats.notifications_sent} notifications"
    )


def latency(redis_url: str, database_url: str, rate: int, seconds: int) -> None:
    """At `rate` entries a second, from XADD to a reader that has understood."""
    environment = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": database_url, "LOG_LEVEL": "ERROR"}
    added: dict[int, float] = {}
    heard: dict[int, float] = {}
    stop = threading.Event()

    def hear() -> None:
        with listening(database_url) as listener:
            while not stop.is_set():
                for told in listener.hear(0.2):
                    now = time.perf_counter()
                    for news in told.readings if isinstance(told, Newest) else ():
                        heard[int(news.value or 0)] = now

    empty(database_url)
    with redis_client.connect(redis_url, timeout_sec=60) as client:
        client.flushdb()

        def add(number: int) -> None:
            added[number] = time.perf_counter()
            stream = f"mqtt_stream:late-{number % LATENCY_STREAMS}:count"
            redis_client.execute(client, "XADD", stream, "*", "value", str(number))

        for number in range(1, LATENCY_STREAMS + 1):
            add(number)
        worker = subprocess.Popen([sys.executable, "main.py"], cwd=ROOT, env=environment)
        listener = threading.Thread(target=hear)
        listener.start()
        try:
            at_rate(add, LATENCY_STREAMS + 1, rate, seconds)
            time.sleep(1.0)
        finally:
            stop.set()
            listener.join()
            worker.terminate()
            worker.wait()
    first = LATENCY_STREAMS + rate * 5  # the worker and the reader have started by then
    took = sorted((heard[n] - added[n]) * 1000 for n in heard if n > first)
    missing = len(added) - first - len(took)
    cuts = statistics.quantiles(took, n=100)
    print(
        f"\nfrom XADD to a reader at {rate}/s: {len(took):,} heard, {missing} not; "
        f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, longest {took[-1]:.1f} ms"
    )


def at_rate(call: Callable[[int], None], first: int, rate: int, seconds: int) -> None:
    began = time.perf_counter()
    for n in range(rate * seconds):
        time.sleep(max(0.0, began + n / rate - time.perf_counter()))
        call(first + n)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--redis-url")
    parser.add_argument("--database-url")
    chosen = parser.parse_args()
    log.configure("warning", "console")
    with servers(chosen.redis_url, chosen.database_url) as (redis_url, database_url):
        migrate.upgrade(config.load(database_url=database_url))
        latency(redis_url, database_url, chosen.rate, chosen.seconds)
        ingest(redis_url, database_url, chosen.entries, chosen.rounds)
        for count in READERS:
            share(redis_url, database_url, chosen.entries, count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
