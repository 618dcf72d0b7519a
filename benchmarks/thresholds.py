"""What rules and the registry cost: ingest with and without rules, 100,000 rules in memory, the registry.

    .venv/bin/python -m benchmarks.thresholds [--entries N] [--rounds N] [--redis-url …] [--database-url …]

Ingest: one daemon process drains the backlog of benchmarks.throughput, in each round once with each of

- none: no rule at all;
- quiet: a `min` and a `max` on every series, none violated;
- busy: a `max` with hysteresis on every series that the real temperatures cross again and again;
- crowd: as quiet, and 100,000 rules more on other series.

Memory and hot path, in this process: 100,000 rules built, and what judging costs a reading of a watched and
of an unwatched series. Registry: its share of the time of a worker in this process.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial

import psycopg

import config
import log
from benchmarks.bench import empty, servers
from benchmarks.daemons import drain
from benchmarks.workloads import SERIES, Flat, preload
from housekeeping import Housekeeping
from main import DatabaseWriterService
from ops import migrate
from redis_reader import RedisReader
from registry import Registry
from rules import Rules
from schema import Outcome, Reading
from thresholds import Kind, Rule

CROWD = 100_000
KINDS = ("none", "quiet", "busy", "crowd")
_INSERT = """
    insert into thresholds (id, device_pattern, sensor_pattern, kind, value, hysteresis)
    select %(kind)s || n, %(device)s || n, 'temperature', %(kind)s, %(value)s, %(hysteresis)s
    from generate_series(0, %(count)s - 1) as n
"""


def make_rules(database_url: str, kind: str) -> None:
    """The rules of one kind of run, in place of all others."""
    sets: dict[str, list[tuple[str, str, float, float, int]]] = {
        "none": [],
        "quiet": [("dev-", "min", -50, 0, SERIES), ("dev-", "max", 60, 0, SERIES)],
        "busy": [("dev-", "max", 21, 0.2, SERIES)],
        "crowd": [
            ("dev-", "min", -50, 0, SERIES),
            ("dev-", "max", 60, 0, SERIES),
            ("other-", "max", 60, 0, CROWD),
        ],
    }
    with psycopg.connect(database_url) as connection:
        connection.execute("truncate thresholds, alerts, series, devices")
        for number, (device, rule, value, hysteresis, count) in enumerate(sets[kind]):
            connection.execute(
                _INSERT.replace("%(kind)s || n", f"%(kind)s || '-{number}-' || n"),
                {
                    "device": device,
                    "kind": rule,
                    "value": value,
                    "hysteresis": hysteresis,
                    "count": count,
                },
            )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("vacuum analyze thresholds")


def ingest(redis_url: str, database_url: str, entries: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    alerts = 0
    for number in range(rounds + 1):
        for kind in KINDS if number % 2 else reversed(KINDS):
            make_rules(database_url, kind)
            preload(redis_url, Flat(entries))
            empty(database_url)
            took = drain(redis_url, database_url, entries).seconds
            if number:  # the first round warms up
                seconds[kind].append(took)
            if kind == "busy":
                with psycopg.connect(database_url) as connection:
                    row = connection.execute("select count(*) from alerts").fetchone()
                    alerts = row[0] if row else 0
    print(f"\ningest, {entries:,} readings of {SERIES:,} series ({alerts:,} alerts when busy)")
    for kind in KINDS:
        speeds = [entries / took for took in seconds[kind]]
        ratios = [none / took for none, took in zip(seconds["none"], seconds[kind], strict=True)]
        print(
            f"{kind:<8}{statistics.median(speeds):>10,.0f} readings/s"
            f"   of none: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def memory() -> None:
    tracemalloc.start()
    made = [
        Rule(
            id=f"max-{n}",
            device_pattern=f"other-{n}",
            sensor_pattern="temperature",
            kind=Kind.MAX,
            value=60,
        )
        for n in range(CROWD)
    ]
    rules = Rules(made)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\n{CROWD:,} rules: {held / 1e6:.0f} MB, {held / CROWD:,.0f} bytes each")
    for name, device in (("watched", "other-"), ("unwatched", "dev-")):
        readings = [
            Reading(f"{device}{n // 5}", "temperature", n, n.to_bytes(16, "big"), 20.0) for n in range(5000)
        ]
        nanoseconds = least(partial(judge, rules, readings)) / len(readings) * 1e9
        print(f"judging a quiet reading of an {name} series: {nanoseconds:,.0f} ns")


def judge(rules: Rules, readings: Sequence[Reading]) -> None:
    for run in rules.runs(readings):
        run.beyond()


def least(call: Callable[[], object], times: int = 50) -> float:
    """The shortest of many: what the machine can do when nothing disturbs it."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def registry_share(redis_url: str, database_url: str, entries: int) -> None:
    """Time inside the registry's calls, of all that a worker in this process takes for a backlog."""
    make_rules(database_url, "none")
    preload(redis_url, Flat(entries))
    empty(database_url)
    settings = config.load(redis_url=redis_url, database_url=database_url, stream_retention_sec=0)
    service = DatabaseWriterService(settings)
    spent = 0.0

    def timed(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: object, **named: object) -> object:
            nonlocal spent
            began = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                spent += time.perf_counter() - began

        setattr(owner, name, outer)

    settle = RedisReader.settle

    def settle_and_count(reader: RedisReader, outcome: Outcome) -> None:
        settle(reader, outcome)
        if service.stats.messages_written >= entries:
            service.stop()

    timed(Registry, "note")
    timed(Housekeeping, "_write_registry")
    setattr(RedisReader, "settle", settle_and_count)  # noqa: B010  mypy does not like the other way
    began = time.perf_counter()
    service.run()
    share = spent / (time.perf_counter() - began)
    print(f"\nregistry: {share:.1%} of a worker's time, {SERIES:,} series, batches of up to 5,000")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--redis-url")
    parser.add_argument("--database-url")
    chosen = parser.parse_args()
    log.configure("warning", "console")
    memory()
    with servers(chosen.redis_url, chosen.database_url) as (redis_url, database_url):
        migrate.upgrade(config.load(database_url=database_url))
        ingest(redis_url, database_url, chosen.entries, chosen.rounds)
        registry_share(redis_url, database_url, chosen.entries)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
