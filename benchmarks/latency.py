"""How soon a reading is in the table: from before its XADD until another connection sees its row.

    .venv/bin/python -m benchmarks.latency [--rates 100 1000 10000] [--seconds N] [--short] [--json FILE] …

One worker with default settings reads 100 streams and a probe. A process of its own adds readings at a
steady rate, in a hundred ticks a second; the first of each tick goes to the probe, with the time of sending
for its timestamp. Another connection asks for new rows of the probe, again and again with a pause of 1 ms.
So a latency is what the clock says less the timestamp; it is too long by one asking at most, and how
long that takes is among the figures.

Then the same at 100 readings/s while a backlog of another stream drains, which holds --entries: only probes
that were sent while it did.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing.synchronize import Event

import psycopg

import redis_client
from benchmarks import bench
from benchmarks.bare import Command, Wire
from benchmarks.bench import Figures
from benchmarks.daemons import Worker, workers
from benchmarks.workloads import START, Backlog, Flat

STREAMS = 100
TICKS = 100  # a second
LONGEST_SEC = 120.0
_PROBE = "mqtt_stream:probe:sent"
_HIDDEN = "hidden"  # no worker reads what does not match STREAM_PATTERN
_NEW = f"""
    select "timestamp" from {bench.TABLE}
    where device_id = 'probe' and sensor_type = 'sent' and "timestamp" > %s order by "timestamp"
"""
_SPAWN = multiprocessing.get_context("spawn")


def feed(url: str, rate: int, ready: Event, stop: Event, tell: Callable[[int], None]) -> None:
    """Add readings at `rate` a second until `stop`; tell how many probes were among them."""
    with redis_client.connect(url, timeout_sec=60) as client:
        wire = Wire(client)
        ticks = min(TICKS, rate)
        ready.set()
        began = time.perf_counter()
        tick = number = 0
        while not stop.is_set():
            time.sleep(max(0.0, began + tick / ticks - time.perf_counter()))
            due = (tick + 1) * rate // ticks - tick * rate // ticks
            others: list[Command] = [
                ("XADD", f"mqtt_stream:live-{n % STREAMS}:count", "*", "value", str(n))
                for n in range(number, number + due - 1)
            ]
            number += due
            tick += 1
            now = str(time.time_ns() // 1000)
            wire.ask_all([("XADD", _PROBE, "*", "value", str(tick), "timestamp", now), *others])
        tell(tick)


@contextlib.contextmanager
def feeding(url: str, rate: int) -> Iterator[Callable[[], int]]:
    """While a process feeds. What it yields ends that, and answers how many probes were sent."""
    ready, stop, counted = _SPAWN.Event(), _SPAWN.Event(), _SPAWN.SimpleQueue()
    process = _SPAWN.Process(target=feed, args=(url, rate, ready, stop, counted.put), daemon=True)
    process.start()

    def end() -> int:
        stop.set()
        return int(counted.get())

    try:
        if not ready.wait(60):
            raise SystemExit("what feeds the streams did not start")
        yield end
    finally:
        stop.set()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


Seen = list[tuple[float, float]]


class Watcher:
    """Sees new rows of the probe, and how old they are by then."""

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg.connect(database_url, autocommit=True)
        self.last = datetime.now(UTC)
        self.asking: list[float] = []

    def look(self) -> Seen:
        """New rows: when they were sent, in Unix seconds, and how long they took."""
        began = time.perf_counter()
        found = self._connection.execute(_NEW, [self.last]).fetchall()
        now = time.time()
        if found:
            self.last = found[-1][0]
        time.sleep(0.001)
        self.asking.append(time.perf_counter() - began)
        return [(row[0].timestamp(), now - row[0].timestamp()) for row in found]

    def close(self) -> None:
        self._connection.close()


def rest(watcher: Watcher, seen: Seen, sent: int) -> Seen:
    """Watch until every probe that was sent has been seen."""
    deadline = time.monotonic() + LONGEST_SEC
    while len(seen) < sent:
        seen = seen + watcher.look()
        if time.monotonic() > deadline:
            raise SystemExit(f"{sent - len(seen)} of {sent} readings have not become visible")
    return seen


def note(figures: Figures, name: str, took: Sequence[float]) -> None:
    milliseconds = sorted(1000 * one for one in took)
    cuts = (
        statistics.quantiles(milliseconds, n=100, method="inclusive")
        if len(milliseconds) > 1
        else milliseconds * 99
    )
    figures.add(f"{name}: p50", cuts[49], "ms")
    figures.add(f"{name}: p99", cuts[98], "ms")
    figures.add(f"{name}: longest", milliseconds[-1], "ms")


class Rounds:
    """A worker of its own for each round, and everything that is measured on it."""

    def __init__(self, chosen: argparse.Namespace, urls: tuple[str, str], figures: Figures) -> None:
        self._chosen = chosen
        self._redis_url, self._database_url = urls
        self._figures = figures
        self._client = redis_client.connect(self._redis_url, timeout_sec=120)
        self._flat = Flat(chosen.entries, series=1)
        self._backlog = Backlog(self._client, self._flat)

    def run(self) -> None:
        measured: dict[str, int] = {f"{rate:,} readings/s": rate for rate in self._chosen.rates}
        names = [*measured, "backlog"]
        for counts, order in bench.rounds(self._chosen, names):
            bench.empty(self._database_url)
            with self._worker() as (worker, watcher):
                for name in order:
                    if name == "backlog":
                        took = self._beside_backlog(worker, watcher)
                        name = "beside a backlog"
                    else:
                        took = self._at_rate(watcher, measured[name], self._chosen.seconds)
                    if counts:
                        note(self._figures, name, took)
                if counts:
                    self._figures.add("one asking", 1000 * statistics.median(watcher.asking), "ms")
                    self._figures.add("memory", worker.peak_mb(), "MB")
        self._client.close()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[tuple[Worker, Watcher]]:
        """A worker that has found the streams of the feed. The backlog is there, but out of its sight."""
        self._backlog.restore()
        self._client.rename(self._flat.streams[0], _HIDDEN)
        watcher = Watcher(self._database_url)
        try:
            with workers(self._redis_url, self._database_url, 1) as (worker,):
                worker.wait_for("worker_started")
                self._at_rate(watcher, STREAMS * TICKS, 0.5)
                watcher.asking.clear()
                yield worker, watcher
        finally:
            watcher.close()

    def _at_rate(self, watcher: Watcher, rate: int, seconds: float) -> list[float]:
        seen: Seen = []
        with feeding(self._redis_url, rate) as end:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                seen += watcher.look()
            return [took for _, took in rest(watcher, seen, end())]

    def _beside_backlog(self, worker: Worker, watcher: Watcher) -> list[float]:
        """From when the backlog is in sight until it is drained."""
        wanted = worker.entries + self._chosen.entries  # and the few live entries beside it
        seen: Seen = []
        with feeding(self._redis_url, TICKS) as end:
            self._client.rename(_HIDDEN, self._flat.streams[0])
            shown, deadline = time.time(), time.monotonic() + LONGEST_SEC
            while worker.entries < wanted:
                seen += watcher.look()
                if time.monotonic() > deadline:
                    raise SystemExit(f"the backlog was not drained within {LONGEST_SEC:.0f} s")
            drained = time.time()
            seen = rest(watcher, seen, end())
        return [took for sent, took in seen if shown <= sent <= drained]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.command_line(__doc__, entries=1_000_000, short=100_000)
    parser.add_argument("--rates", nargs="+", type=int, default=[100, 1000, 10_000], help="readings/s")
    parser.add_argument("--seconds", type=float, help="at each rate (default 6, with --short 3)")
    chosen = bench.parse(parser, arguments)
    if chosen.seconds is None:
        chosen.seconds = 3.0 if chosen.short else 6.0
    figures = Figures("latency")
    with bench.place(chosen) as urls:
        bench.have_partitions(urls[1], {START // 86_400, int(time.time()) // 86_400})
        bench.make_rules(urls[1], watched=True)
        Rounds(chosen, urls, figures).run()
    figures.tell(chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
