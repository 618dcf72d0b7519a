"""How soon a reading is in the table: from before its XADD until another connection sees its row.

    .venv/bin/python -m benchmarks.latency [--rates 100 1000 10000] [--seconds N] [--short] [--json FILE] …

One worker with default settings reads 100 streams and a probe. A process of its own adds readings at a
steady rate, in a hundred ticks a second; the first of each tick goes to the probe, with the time of sending
for its timestamp. Another connection asks for new rows of the probe, again and again with a pause of 1 ms.
So a latency is what the clock says less the timestamp; it is too long by one asking at most, and how
long that takes is among the figures.

Then the same at 100 readings/s while a backlog of another stream, of --entries, drains: only probes sent
from when the worker has found it until it is drained.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg

import redis_client
from benchmarks import bench
from benchmarks.bench import Figures
from benchmarks.daemons import Worker, workers
from benchmarks.feeder import PROBE, STREAMS, TICKS, Feeder, feeder
from benchmarks.workloads import START, Backlog, Flat

LONGEST_SEC = 120.0
_HIDDEN = "hidden"  # no worker reads what does not match STREAM_PATTERN
_NEW = f"""
    select "timestamp" from {bench.TABLE}
    where device_id = %s and sensor_type = %s and "timestamp" > %s order by "timestamp"
"""


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
        found = self._connection.execute(_NEW, [*PROBE, self.last]).fetchall()
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


class _Round(NamedTuple):
    """What runs during one round."""

    worker: Worker
    watcher: Watcher
    fed: Feeder


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
            with self._round() as one:
                for name in order:
                    if name == "backlog":
                        took = self._beside_backlog(one)
                        name = "beside a backlog"
                    else:
                        took = self._at_rate(one, measured[name], self._chosen.seconds)
                    if counts:
                        note(self._figures, name, took)
                if counts:
                    self._figures.add("one asking", 1000 * statistics.median(one.watcher.asking), "ms")
                    self._figures.add("memory", one.worker.peak_mb(), "MB")
        self._client.close()

    @contextlib.contextmanager
    def _round(self) -> Iterator[_Round]:
        """A worker that has found the streams of the feed. The backlog is there, but out of its sight."""
        self._backlog.restore()
        self._client.rename(self._flat.streams[0], _HIDDEN)
        with (
            contextlib.closing(Watcher(self._database_url)) as watcher,
            feeder(self._redis_url) as fed,
            workers(self._redis_url, self._database_url, 1) as (worker,),
        ):
            worker.wait_for("worker_started")
            one = _Round(worker, watcher, fed)
            self._at_rate(one, STREAMS * TICKS, 0.2)
            watcher.asking.clear()
            yield one

    def _at_rate(self, one: _Round, rate: int, seconds: float) -> list[float]:
        seen: Seen = []
        one.fed.feed(rate)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seen += one.watcher.look()
        return [took for _, took in rest(one.watcher, seen, one.fed.stop())]

    def _beside_backlog(self, one: _Round) -> list[float]:
        """From when the worker has found the backlog until it is drained."""
        wanted = one.worker.entries + self._chosen.entries  # and the few live entries beside it
        seen: Seen = []
        one.fed.feed(TICKS)
        shown, deadline = time.time(), time.monotonic() + LONGEST_SEC
        self._client.rename(_HIDDEN, self._flat.streams[0])
        while one.worker.entries < wanted:
            seen += one.watcher.look()
            if time.monotonic() > deadline:
                raise SystemExit(f"the backlog was not drained within {LONGEST_SEC:.0f} s")
        drained = time.time()
        seen = rest(one.watcher, seen, one.fed.stop())
        found = max(shown, one.worker.found_at)
        took = [took for sent, took in seen if found <= sent <= drained]
        if not took:
            raise SystemExit("no reading was sent while the backlog drained: it takes more --entries")
        return took


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
