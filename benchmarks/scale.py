"""What the number of streams costs, and what more workers bring.

    .venv/bin/python -m benchmarks.scale [--streams 100 1000 …] [--workers 1 2 4] [--short] [--json FILE] …
    .venv/bin/python -m benchmarks.curve FILE IMAGE.svg

Streams: one worker with default settings drains a backlog of --entries that lies in all of the streams, or
in one in a hundred of them while the others are empty; and, beside it, the same readings of as many devices
in 64 sharded streams. Of each it tells readings/s, processor time a reading, and the most memory it held;
then, with everything drained, how much of a core worker and Redis use while nothing comes, and how soon the
first entry of a new stream is a row (in sharded streams: of a new device).

Workers: the same backlog over 1,000 streams and over 64 sharded ones, drained by 1, 2 and 4 of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
import redis

import redis_client
from benchmarks import bench
from benchmarks.bench import Figures
from benchmarks.daemons import Worker, watch, workers
from benchmarks.workloads import SERIES, START, Backlog, Flat, Sharded, Workload

GROUP = "db_writer"
LONGEST_SEC = 120.0
LONGEST_REACH_SEC = 40_000  # workers take no time that is more than a day ahead
_LAST = f"select 1 from {bench.TABLE} where device_id = %s"


class Case(NamedTuple):
    """`active` of `streams` have a backlog. `shards`: they are devices, in so many sharded streams.
    `rests`: it is also looked at while nothing comes.
    """

    streams: int
    active: int
    shards: int = 0
    workers: int = 1
    rests: bool = True

    @property
    def name(self) -> str:
        if self.shards:
            return f"{self.streams:,} devices in {self.shards} shards"
        return f"{self.streams:,} streams, {100 * self.active // self.streams} % active"

    def workload(self, entries: int) -> Workload:
        """A stream has a reading a second: no more than reach `LONGEST_REACH_SEC` ahead."""
        entries = min(max(entries, self.active), LONGEST_REACH_SEC * self.active)
        if self.shards:
            return Sharded(entries, self.active, self.shards)
        return Flat(entries, self.active)


class Scale:
    """The servers, and what is measured on them."""

    def __init__(self, chosen: argparse.Namespace, urls: tuple[str, str], figures: Figures) -> None:
        self._chosen = chosen
        self._redis_url, self._database_url = urls
        self._figures = figures
        self._client = redis_client.connect(self._redis_url, timeout_sec=120)
        self._number = 0

    def run(self, name: str, case: Case, counts: bool) -> None:
        """One case, from an empty Redis and an empty table."""
        workload = case.workload(self._chosen.entries)
        bench.empty(self._database_url)
        Backlog(self._client, workload)
        if not case.shards:
            make_quiet(self._client, range(case.active, case.streams))
        with workers(self._redis_url, self._database_url, case.workers) as started:
            drained = watch(started, workload.entries)
            idle = self._idle(started[0]) if case.rests else (0.0, 0.0)
            found_ms = self._discover(case) if case.rests else 0.0
            peak = max(worker.peak_mb() for worker in started)
        rows = bench.count_rows(self._database_url)
        if rows != workload.readings + case.rests:
            raise SystemExit(f"{name}: the table holds {rows} of {workload.readings + case.rests} rows")
        if not counts:
            return
        self._figures.add(name, drained.speed(1))
        self._figures.add(f"{name}: CPU", drained.cpu_us(1), "us a reading")
        self._figures.add(f"{name}: memory", peak, "MB")
        if case.rests:
            self._figures.add(f"{name}: idle worker", idle[0], "% of a core")
            self._figures.add(f"{name}: idle Redis", idle[1], "% of a core")
            self._figures.add(f"{name}: new after", found_ms, "ms")

    def _idle(self, worker: Worker) -> tuple[float, float]:
        """Percent of a core that worker and Redis use while nothing comes."""
        time.sleep(min(1.0, self._chosen.idle_sec))  # what is due after a drain is no idling
        began, used, server = time.perf_counter(), worker.cpu(), redis_cpu(self._client)
        time.sleep(self._chosen.idle_sec)
        seconds = time.perf_counter() - began
        return 100 * (worker.cpu() - used) / seconds, 100 * (redis_cpu(self._client) - server) / seconds

    def _discover(self, case: Case) -> float:
        """Milliseconds from the first entry of something new until its row is there."""
        self._number += 1
        device = f"new-{self._number}"
        stream, fields = f"mqtt_stream:{device}:temperature", ["value", "1", "timestamp", str(START)]
        if case.shards:
            stream = f"mqtt_stream:shard:{self._number % case.shards}"
            fields = ["topic", f"sensors/{device}/temperature", "payload", "1", "timestamp", str(START)]
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            began = time.perf_counter()
            redis_client.execute(self._client, "XADD", stream, "*", *fields)
            while not connection.execute(_LAST, [device]).fetchone():
                if time.perf_counter() - began > LONGEST_SEC:
                    raise SystemExit(f"no worker has found {stream}")
                time.sleep(0.002)
            return 1000 * (time.perf_counter() - began)

    def close(self) -> None:
        self._client.close()


def make_quiet(client: redis.Redis, numbers: range) -> None:
    """Streams with the group and without an entry."""
    for chunk in redis_client.chunks(numbers, 5000):
        with client.pipeline(transaction=False) as pipe:
            for number in chunk:
                pipe.xgroup_create(f"mqtt_stream:dev-{number}:temperature", GROUP, "0", mkstream=True)
            pipe.execute()


def redis_cpu(client: redis.Redis) -> float:
    """Seconds of processor time that the server has used."""
    told = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def cases(chosen: argparse.Namespace) -> dict[str, Case]:
    found = [
        case
        for streams in chosen.streams
        for case in (
            Case(streams, streams),
            Case(streams, max(1, streams // 100)),
            Case(streams, streams, shards=64),
        )
    ]
    named = {case.name: case for case in found}
    for count in chosen.workers:
        plural = "s" if count > 1 else ""
        named[f"{count} worker{plural}, 1,000 streams"] = Case(SERIES, SERIES, 0, count, rests=False)
        named[f"{count} worker{plural}, 64 shards"] = Case(SERIES, SERIES, 64, count, rests=False)
    return named


def print_grid(names: Sequence[str], figures: Figures) -> None:
    """The medians, one case a line; their spread is in the JSON."""
    columns = ("", ": CPU", ": memory", ": idle worker", ": idle Redis", ": new after")
    heads = ("readings/s", "CPU us", "MB", "idle %", "Redis %", "new ms")
    width = max(map(len, names)) + 2
    print("\n" + " " * width + "".join(f"{head:>12}" for head in heads))
    for name in names:
        cells = [figures.found.get(name + column) for column in columns]
        shown = "".join(f"{bench.number(cell.median) if cell else '':>12}" for cell in cells)
        print(f"{name:<{width}}{shown}".rstrip())


def tell_ratios(chosen: argparse.Namespace, figures: Figures) -> None:
    fewest, most = Case(min(chosen.streams), min(chosen.streams)), max(chosen.streams)
    quiet = Case(most, max(1, most // 100))
    if most > min(chosen.streams):
        figures.ratio(f"{quiet.name}: of {fewest.streams:,}", quiet.name, fewest.name)
    for layout in ("1,000 streams", "64 shards"):
        for count in chosen.workers:
            if count > 1:
                several = f"{count} workers, {layout}"
                figures.ratio(f"{several}: of 1 worker", several, f"1 worker, {layout}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.command_line(__doc__, entries=200_000, short=20_000)
    usual = "default 100 to 100,000, with --short 100 and 10,000"
    parser.add_argument("--streams", nargs="+", type=int, help=f"how many streams; {usual}")
    parser.add_argument(
        "--workers", nargs="*", type=int, help="how many workers (1, 2 and 4; with --short 1 and 2)"
    )
    parser.add_argument("--idle-sec", type=float, help="how long to idle (default 5, with --short 2)")
    chosen = bench.parse(parser, arguments)
    if chosen.streams is None:
        chosen.streams = [100, 10_000] if chosen.short else [100, 1000, 10_000, 100_000]
    if chosen.workers is None:
        chosen.workers = [1, 2] if chosen.short else [1, 2, 4]
    if chosen.idle_sec is None:
        chosen.idle_sec = 2.0 if chosen.short else 5.0
    named = cases(chosen)
    figures = Figures("scale")
    with bench.place(chosen) as urls:
        bench.have_partitions(urls[1], {START // 86_400, (START + LONGEST_REACH_SEC) // 86_400})
        scale = Scale(chosen, urls, figures)
        try:
            for counts, order in bench.rounds(chosen, list(named)):
                for name in order:
                    scale.run(name, named[name], counts)
        finally:
            scale.close()
    tell_ratios(chosen, figures)
    print_grid(list(named), figures)
    figures.tell(chosen, [name for name in figures.found if name in named or ": of " in name])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
