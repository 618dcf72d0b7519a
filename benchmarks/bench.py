"""What every benchmark shares: its command line, its servers, its rounds, and how its figures are told."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis

import config
import database
import log
import redis_client
from ops import migrate
from partitions import Partitions
from schema_check import SchemaMismatch
from standalone.servers import Postgres, ServerFailed, ServerMissing, Valkey

ROOT = Path(__file__).resolve().parent.parent
TABLE = "sensor_readings"
T = TypeVar("T")
# A rewrite of the append-only file would fall into some rounds and not into others.
_VALKEY_OPTIONS = ("--auto-aof-rewrite-percentage", "0")
_RULE = """
    insert into thresholds (id, device_pattern, sensor_pattern, kind, value)
    values ('bench-' || %(kind)s, '*', '*', %(kind)s, %(value)s)
"""
_POSTGRES_OPTIONS = ("shared_buffers=512MB", "max_wal_size=4GB")


def command_line(doc: str | None, entries: int, short: int) -> argparse.ArgumentParser:
    """The options that all have. `entries` is the usual backlog, `short` that of --short."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.…", description=(doc or "").splitlines()[0], allow_abbrev=False
    )
    usual = f"default {entries:,}, with --short {short:,}"
    parser.add_argument("--entries", type=_positive, help=f"entries of a backlog; {usual}")
    parser.add_argument("--rounds", type=_positive, default=5, help="rounds that count (default 5)")
    parser.add_argument(
        "--warm-up", type=int, default=1, choices=(0, 1), help="rounds before them that do not"
    )
    parser.add_argument("--short", action="store_true", help="the quick form")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--redis-url", help="an empty database of a Redis; it is emptied again and again")
    parser.add_argument("--database-url", help="a database without readings; they are deleted")
    parser.set_defaults(usual_entries=entries, short_entries=short)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it takes a whole number above 0, not {text}")
    return number


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    chosen = parser.parse_args(arguments)
    if chosen.entries is None:
        chosen.entries = chosen.short_entries if chosen.short else chosen.usual_entries
    return chosen


def rounds(chosen: argparse.Namespace, names: Sequence[T]) -> Iterator[tuple[bool, Sequence[T]]]:
    """Rounds of `names`: whether the round counts, and its order, which alternates so that none is always
    the one that finds the machine warm.
    """
    for number in range(chosen.warm_up + chosen.rounds):
        yield number >= chosen.warm_up, names if number % 2 == chosen.warm_up % 2 else list(reversed(names))


@contextlib.contextmanager
def servers(redis_url: str | None, database_url: str | None) -> Iterator[tuple[str, str]]:
    """The servers that were named, or embedded ones with durable settings."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o711)
        if redis_url is None:
            valkey = Valkey(Path(folder) / "valkey", _VALKEY_OPTIONS)
            valkey.start()
            stack.callback(valkey.stop)
            redis_url = valkey.url
        if database_url is None:
            postgres = Postgres(Path(folder) / "postgres", _POSTGRES_OPTIONS)
            postgres.start()
            stack.callback(postgres.stop)
            database_url = postgres.url
        yield redis_url, database_url


@contextlib.contextmanager
def place(chosen: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Servers ready for a benchmark: the schema is there, and nothing of anybody's that could be lost.

    Ends the program with one sentence where they are not.
    """
    log.configure("warning", "console")
    try:
        with servers(chosen.redis_url, chosen.database_url) as (redis_url, database_url):
            _refuse_full_redis(redis_url)
            migrate.upgrade(config.load(database_url=database_url, redis_url=redis_url))
            _refuse_readings(database_url)
            try:
                yield redis_url, database_url
            finally:
                with redis_client.connect(redis_url, timeout_sec=60) as client:
                    client.flushdb()
                empty(database_url)
                with psycopg.connect(database_url) as connection:
                    connection.execute("truncate series, devices, thresholds, alerts")
    except (ServerMissing, ServerFailed, config.ConfigError, SchemaMismatch) as error:
        raise SystemExit(f"benchmark: {error}") from None
    except (psycopg.OperationalError, redis.ConnectionError) as error:
        raise SystemExit(f"benchmark: a server does not answer: {error}") from None


def _refuse_full_redis(url: str) -> None:
    with redis_client.connect(url, timeout_sec=60) as client:
        if client.dbsize():
            raise SystemExit(
                "benchmark: the database that --redis-url names is not empty, and a benchmark empties it; "
                "name another one"
            )


def _refuse_readings(url: str) -> None:
    with psycopg.connect(url) as connection:
        if connection.execute(f"select 1 from {TABLE} limit 1").fetchone():
            raise SystemExit(
                "benchmark: the database that --database-url names holds readings, and a benchmark deletes "
                "them; name another one"
            )


def empty(url: str) -> None:
    """No readings; partitions and series stay."""
    with psycopg.connect(url) as connection:
        connection.execute(f"truncate {TABLE}")
    checkpoint(url)


def checkpoint(url: str) -> None:
    """What was written before is paid for here, not in what comes next."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("checkpoint")


def have_partitions(url: str, days: set[int]) -> None:
    """Partitions for these days since 1970, so that no side pays for making them."""
    if config.load(database_url=url).enable_timescale:
        return
    with database.connect(url, timeout_sec=60) as connection:
        Partitions(TABLE, 60.0).ensure(connection, days)


def add_rules_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rules", action=argparse.BooleanOptionalAction, default=True, help="two rules on every series"
    )


def make_rules(url: str, *, watched: bool) -> None:
    """Two rules on every series, which no reading violates, or none."""
    with psycopg.connect(url) as connection:
        connection.execute("truncate thresholds, alerts")
        for kind, value in (("min", -1e6), ("max", 1e6)) if watched else ():
            connection.execute(_RULE, {"kind": kind, "value": value})


def count_rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(f"select count(*) from {TABLE}").fetchone()
        return int(row[0]) if row else 0


@dataclass(slots=True)
class Figure:
    """One number a round, and its unit."""

    unit: str
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def line(self, name: str, width: int) -> str:
        low, high = number(min(self.rounds)), number(max(self.rounds))
        return f"{name:<{width}}{number(self.median):>12}  {self.unit:<24} ({low} to {high})"


class Figures:
    """The figures of one benchmark, in the order in which they were first added."""

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self.found: dict[str, Figure] = {}

    def add(self, name: str, value: float, unit: str = "readings/s") -> None:
        self.found.setdefault(name, Figure(unit)).rounds.append(value)

    def ratio(self, name: str, part: str, whole: str) -> None:
        """`part` of `whole`, round by round: both were measured side by side."""
        if part in self.found and whole in self.found:
            pairs = zip(self.found[part].rounds, self.found[whole].rounds, strict=True)
            self.found[name] = Figure("ratio", [one / other for one, other in pairs])

    def tell(self, chosen: argparse.Namespace, names: Sequence[str] | None = None) -> None:
        """Print the table, of `names` only where they are given; write all as JSON if asked for."""
        shown = self.found if names is None else {name: self.found[name] for name in names}
        width = max(map(len, shown)) + 2
        print(f"\n{self.benchmark}: medians of {chosen.rounds} alternating rounds (lowest to highest)")
        for name, figure in shown.items():
            print(figure.line(name, width))
        if chosen.json:
            chosen.json.write_text(json.dumps(self.as_dict(chosen), indent=2) + "\n")

    def as_dict(self, chosen: argparse.Namespace) -> dict[str, Any]:
        left_out = {"json", "redis_url", "database_url", "usual_entries", "short_entries"}
        return {
            "benchmark": self.benchmark,
            "machine": machine(),
            "options": {name: value for name, value in vars(chosen).items() if name not in left_out},
            "figures": {
                name: {
                    "unit": figure.unit,
                    "median": figure.median,
                    "low": min(figure.rounds),
                    "high": max(figure.rounds),
                    "rounds": figure.rounds,
                }
                for name, figure in self.found.items()
            },
        }


def number(value: float) -> str:
    """As people read it: three digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    total = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gb": round(int(total) / 1e6),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return []
