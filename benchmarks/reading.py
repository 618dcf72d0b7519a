"""How fast readings are read back over gRPC, beside the same answers from plain SQL through psycopg.

    .venv/bin/python -m benchmarks.reading [--rows N] [--rounds N] [--calls N] [--entries N] [--json PATH]
                                           [--redis-url …] [--database-url …]

Readings of 1,000 series over 90 days, 20 million of them unless told otherwise, are made in the database.
The service is a process of its own, `python main.py query`; calls and plain SQL go from this process, in
turn: each round asks both ways, once in this order and once in the other. Plain SQL is what the service
asks, prepared, on one open connection in autocommit: the least that it can take.

- latest: the newest reading of each of the ten series of a device, and the slowest of a hundred calls;
- buckets: one series, 24 hours by minutes, and 90 days by hours, beside plain SQL on the rollup, where
  there is one, and on the readings;
- ten clients at once: latest calls a second;
- ingest: a worker on a backlog, in a database of its own, while a client asks without pause and while none
  does (`--entries 0` leaves it out).

Figures are medians over the rounds, with their spread; a ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import sql

import config
import log
from benchmarks import reading_data
from benchmarks.bench import empty, servers
from benchmarks.daemons import drain
from benchmarks.workloads import SERIES, Flat, preload
from ops import migrate
from query import collector_pb2 as pb
from query.collector_pb2_grpc import CollectorServiceStub
from standalone.children import Child
from standalone.ports import free_port

CLIENTS = 10
ROWS, SHORT_ROWS = 20_000_000, 900_000
_DEADLINE = 60.0

_NEWEST_KNOWN = "select max(last_time) from series where device_id = %s"
_LATEST = """
    select s.sensor_type, newest.value, newest."timestamp"
    from series s left join lateral (
        select value, "timestamp" from sensor_readings r
        where r.device_id = s.device_id and r.sensor_type = s.sensor_type and r."timestamp" >= {first}
          and value is not null
        order by r."timestamp" desc, r.message_id desc limit 1
    ) as newest on true
    where s.device_id = %s order by s.sensor_type
"""
# Filled as the service does it: every bucket of the range, the empty ones too.
_BUCKETS = """
    with filled as materialized (
        select date_bin({width}, {time}, {first}) as bucket, {columns}
        from {table}
        where device_id = %s and sensor_type = %s and {time} >= {first} and {time} < {end} {more}
        group by 1
    )
    select bucket, avg, min, max
    from generate_series({first}::timestamptz, {last}, {width}) as bucket full join filled using (bucket)
    order by bucket
"""
_OF_READINGS = "sum(value) / count(*) as avg, min(value) as min, max(value) as max"
_OF_ROLLUP = "sum(sum) / sum(count)::float8 as avg, min(min) as min, max(max) as max"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value for each round."""

    name: str
    unit: str
    rounds: list[float]
    target: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def line(self) -> str:
        spread = f"{_short(min(self.rounds))} to {_short(max(self.rounds))}"
        return f"{self.name:<58}{_short(self.median):>9} {self.unit:<12}{spread:>20}   {self.target}"


@dataclass(frozen=True, slots=True)
class Question:
    """The same question over gRPC and by plain SQL, each as a call that answers how many rows it got."""

    name: str
    grpc: Callable[[int], int]
    plain: dict[str, Callable[[int], int]]
    targets: dict[str, str]
    calls: int


@contextlib.contextmanager
def service(url: str, home: Path) -> Iterator[str]:
    """The address of a query service on this database."""
    port = free_port()
    settings = {"DATABASE_URL": url, "QUERY_PORT": str(port), "QUERY_HOST": "127.0.0.1"}
    settings["ENABLE_TIMESCALE"] = str(_has_timescale(url)).lower()
    child = Child(f"query-{port}", home, os.environ | settings, "query")
    try:
        if not child.wait_for("query_started", 60):
            raise SystemExit(f"the query service did not start: {child.said()[-2000:]}")
        yield f"127.0.0.1:{port}"
    finally:
        child.end()


def latest(stub: CollectorServiceStub, connection: psycopg.Connection[Any], calls: int) -> Question:
    def over_grpc(number: int) -> int:
        request = pb.GetLatestReadingsRequest(device_id=reading_data.device(number))
        return len(stub.GetLatestReadings(request, timeout=_DEADLINE).readings)

    texts: dict[str, bytes] = {}

    def plain(number: int) -> int:
        device = reading_data.device(number)
        if device not in texts:
            row = connection.execute(_NEWEST_KNOWN, [device]).fetchone()
            first = sql.Literal(row[0] - timedelta(days=1) if row else None)
            texts[device] = sql.SQL(_LATEST).format(first=first).as_bytes(connection)
        connection.execute(_NEWEST_KNOWN, [device], prepare=True).fetchone()
        return len(connection.execute(texts[device], [device], prepare=True).fetchall())

    return Question("latest of a device", over_grpc, {"SQL": plain}, {"SQL": "at most 2"}, calls)


def buckets(
    stub: CollectorServiceStub,
    connection: psycopg.Connection[Any],
    name: str,
    start: datetime,
    end: datetime,
    width_sec: int,
    rollup: str,
    calls: int,
) -> Question:
    """`rollup`: the table of this width; empty where there is none."""
    count = int((end - start).total_seconds()) // width_sec

    def over_grpc(number: int) -> int:
        request = pb.GetReadingsRequest(
            device_id=reading_data.device(number),
            keys=[reading_data.sensor(number)],
            to=_stamp(end),
            interval_seconds=width_sec,
            **{"from": _stamp(start)},
        )
        return len(stub.GetReadings(request, timeout=_DEADLINE).series[0].points)

    def by(table: str, time_column: str, columns: str, more: str) -> Callable[[int], int]:
        text = (
            sql.SQL(_BUCKETS)
            .format(
                width=sql.SQL(f"interval '{width_sec} seconds'"),
                time=sql.Identifier(time_column),
                first=sql.Literal(start),
                last=sql.Literal(end - timedelta(seconds=width_sec)),
                end=sql.Literal(end),
                columns=sql.SQL(columns),
                table=sql.Identifier(table),
                more=sql.SQL(more),
            )
            .as_bytes(connection)
        )

        def plain(number: int) -> int:
            series = [reading_data.device(number), reading_data.sensor(number)]
            return len(connection.execute(text, series, prepare=True, binary=True).fetchall())

        return plain

    plain = {"SQL on readings": by("sensor_readings", "timestamp", _OF_READINGS, "and value is not null")}
    targets = {"SQL on readings": "at most 0.05"} if rollup else {}
    if rollup:
        plain["SQL on rollup"] = by(rollup, "bucket", _OF_ROLLUP, "")
        targets["SQL on rollup"] = "at most 1.5"
    if over_grpc(0) != count:
        raise SystemExit(f"{name}: {count} buckets were expected")
    return Question(name, over_grpc, plain, targets, calls)


def compare(question: Question, rounds: int) -> list[Figure]:
    """Milliseconds of a call each way, and how many times as long gRPC takes."""
    ways = {"gRPC": question.grpc, **question.plain}
    medians: dict[str, list[float]] = {way: [] for way in ways}
    slowest: list[float] = []
    rows: set[int] = set()
    for number in range(rounds + 1):  # the first one warms up
        for way in list(ways) if number % 2 else reversed(ways):
            taken = []
            for call in range(question.calls):
                began = time.perf_counter()
                rows.add(ways[way](call))
                taken.append((time.perf_counter() - began) * 1000)
            if number:
                medians[way].append(statistics.median(taken))
                if way == "gRPC":
                    slowest.append(statistics.quantiles(taken, n=100)[98])
    if len(rows) != 1:
        raise SystemExit(f"{question.name}: the ways do not answer the same number of rows: {sorted(rows)}")
    figures = [Figure(f"{question.name}, {way}, p50", "ms", found) for way, found in medians.items()]
    aim = "under 5" if question.name.startswith("latest") else ""
    figures.insert(1, Figure(f"{question.name}, gRPC, p99", "ms", slowest, aim))
    for way in question.plain:
        ratios = [mine / theirs for mine, theirs in zip(medians["gRPC"], medians[way], strict=True)]
        target = question.targets.get(way, "")
        figures.append(Figure(f"{question.name}, gRPC of {way}", "times", ratios, target))
    return figures


def together(address: str, rounds: int, seconds: float) -> Figure:
    """Latest calls a second of clients that each ask without pause, on a channel of its own."""
    found = []
    for _ in range(rounds + 1):
        with contextlib.ExitStack() as stack:
            asking = [stack.enter_context(_asking(address, number)) for number in range(CLIENTS)]
            time.sleep(seconds)
            before = [count() for count in asking]
            began = time.perf_counter()
            time.sleep(seconds)
            done = sum(count() for count in asking) - sum(before)
            found.append(done / (time.perf_counter() - began))
    return Figure(f"latest, {CLIENTS} clients at once", "calls/s", found[1:], "at least 500")


def ingest(url: str, redis_url: str, home: Path, rounds: int, entries: int) -> list[Figure]:
    """A worker's speed in a database of its own, on the same server: alone, and while a client asks."""
    name = f"sluice_ingest_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            return _ingest(_with_database(url, name), redis_url, home, rounds, entries)
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _ingest(url: str, redis_url: str, home: Path, rounds: int, entries: int) -> list[Figure]:
    migrate.upgrade(config.load(database_url=url))
    speeds: dict[bool, list[float]] = {False: [], True: []}
    with service(url, home) as address:
        for number in range(rounds + 1):
            for asked in (True, False) if number % 2 else (False, True):
                preload(redis_url, Flat(entries))
                empty(url)
                with _asking(address, 0) if asked else contextlib.nullcontext():
                    seconds = drain(redis_url, url, entries).seconds
                if number:
                    speeds[asked].append(entries / seconds)
    ratios = [mine / alone for mine, alone in zip(speeds[True], speeds[False], strict=True)]
    return [
        Figure("ingest, nobody asks", "readings/s", speeds[False]),
        Figure("ingest, a client asks without pause", "readings/s", speeds[True]),
        Figure("ingest, asked of not asked", "times", ratios, "at least 0.9"),
    ]


@contextlib.contextmanager
def _asking(address: str, first: int) -> Iterator[Callable[[], int]]:
    """A client that asks for the latest without pause; how often it has been answered."""
    done = threading.Event()
    answered = 0

    def ask() -> None:
        nonlocal answered
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]
            while not done.is_set():
                number = first + answered * CLIENTS
                request = pb.GetLatestReadingsRequest(device_id=reading_data.device(number))
                stub.GetLatestReadings(request, timeout=_DEADLINE)
                answered += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: answered
    finally:
        done.set()
        thread.join()


def measure(url: str, redis_url: str, home: Path, chosen: argparse.Namespace) -> list[Figure]:
    end = reading_data.midnight()
    began = time.perf_counter()
    rows = reading_data.load(url, chosen.rows, end)
    print(f"{rows:,} readings of {SERIES:,} series in {time.perf_counter() - began:.0f} s", flush=True)
    if seconds := reading_data.roll_up(url, redis_url, home, end):
        print(f"summed up by minute, hour and day in {seconds:.0f} s", flush=True)
    with (
        service(url, home) as address,
        grpc.insecure_channel(address) as channel,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]
        there = reading_data.rollups(connection)
        day, quarter = end - timedelta(days=1), end - timedelta(days=reading_data.DAYS)
        wanted = [
            ("24 h by minutes", day, 60, "readings_minute"),
            ("90 d by hours", quarter, 3600, "readings_hour"),
        ]
        questions = [latest(stub, connection, chosen.calls)]
        for name, start, width, rollup in wanted:
            table = rollup if rollup in there else ""
            questions.append(buckets(stub, connection, name, start, end, width, table, chosen.bucket_calls))
        figures = [one for question in questions for one in compare(question, chosen.rounds)]
        figures.append(together(address, chosen.rounds, chosen.seconds))
    if chosen.entries:
        figures += ingest(url, redis_url, home, chosen.rounds, chosen.entries)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=300, help="latest calls in a round")
    parser.add_argument("--bucket-calls", type=int, default=30, help="the same for buckets")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round with clients at once")
    parser.add_argument("--entries", type=int, default=150_000, help="of the backlog; 0: no ingest")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    parser.add_argument("--redis-url")
    parser.add_argument("--database-url")
    chosen = parser.parse_args()
    log.configure("warning", "console")
    with (
        servers(chosen.redis_url, chosen.database_url) as (redis_url, url),
        tempfile.TemporaryDirectory(prefix="sluice-reading-") as home,
    ):
        migrate.upgrade(config.load(database_url=url, enable_timescale=_has_timescale(url)))
        figures = measure(url, redis_url, Path(home), chosen)
    for figure in figures:
        print(figure.line())
    if chosen.json:
        chosen.json.write_text(
            json.dumps([asdict(one) | {"median": one.median} for one in figures], indent=1)
        )
    return 0


def _stamp(time_: datetime) -> Timestamp:
    return Timestamp(seconds=int(time_.timestamp()))


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _with_database(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    scheme, _, rest = head.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{name}" + (f"?{query}" if query else "")


def _has_timescale(url: str) -> bool:
    with psycopg.connect(url) as connection:
        query = "select exists (select from pg_available_extensions where name = 'timescaledb')"
        return connection.execute(query).fetchone() == (True,)


if __name__ == "__main__":
    raise SystemExit(main())
