"""How fast one worker drains a backlog, beside the fastest COPY of the same rows on the same machine.

    .venv/bin/python -m benchmarks.throughput [--entries N] [--rounds N] [--redis-url …] [--database-url …]

Workload: one reading an entry (`value`, `timestamp`), spread over 1,000 streams. Each round, in turn:

- sluice: one daemon process on the preloaded backlog, from its first batch until the last entry is
  acknowledged;
- limit: binary COPY of the same rows into the same table, emptied, over one connection, in batches of
  BATCH_SIZE, encoded and sorted beforehand, nothing else running.

Prints readings a second, each as the median of the rounds with its spread, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

import config
import redis_client
import rows
from benchmarks.office import temperatures
from ops import migrate
from ops.ledger import read_ledger
from parse import Limits, Parser
from schema import Entry, Reading
from standalone.servers import Postgres, Valkey

ROOT = Path(__file__).resolve().parent.parent
STREAMS = 1000
BATCH = 5000
START = 1_767_225_600


@contextlib.contextmanager
def servers(redis_url: str | None, database_url: str | None) -> Iterator[tuple[str, str]]:
    """The servers that were named, or embedded ones with durable settings."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o711)
        if redis_url is None:
            valkey = Valkey(Path(folder) / "valkey")
            valkey.start()
            stack.callback(valkey.stop)
            redis_url = valkey.url
        if database_url is None:
            postgres = Postgres(Path(folder) / "postgres", ["shared_buffers=512MB", "max_wal_size=4GB"])
            postgres.start()
            stack.callback(postgres.stop)
            database_url = postgres.url
        yield redis_url, database_url


def preload(url: str, entries: int) -> None:
    """Fill the streams with temperatures of the office, a different second each."""
    values = temperatures()
    with redis_client.connect(url, timeout_sec=60) as client:
        client.flushdb()
        for start in range(0, entries, 10_000):
            with client.pipeline(transaction=False) as pipe:
                for n in range(start, min(start + 10_000, entries)):
                    stream = f"mqtt_stream:dev-{n % STREAMS}:temperature"
                    fields = ("value", values[n % len(values)], "timestamp", str(START + n // STREAMS))
                    redis_client.execute(pipe, "XADD", stream, "*", *fields)
                pipe.execute()


def readings_of(url: str) -> list[Reading]:
    """The rows that the backlog becomes, in the order of the key."""
    parser = Parser(Limits())
    found: list[Reading] = []
    with redis_client.connect(url, timeout_sec=60) as client:
        for number in range(STREAMS):
            stream = f"mqtt_stream:dev-{number}:temperature".encode()
            for entry_id, fields in redis_client.execute(client, "XRANGE", stream, "-", "+"):
                found += parser.parse(Entry(stream, entry_id, fields), 2**62).readings
    return sorted(found, key=lambda reading: reading.key)


def empty(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("truncate sensor_readings")
        connection.execute("checkpoint")


def limit(database_url: str, batches: list[bytes]) -> float:
    """Seconds for COPY of ready-made batches, a transaction each."""
    columns = ", ".join(f'"{name}"' for name in rows.COLUMNS)
    with psycopg.connect(database_url) as connection:
        began = time.perf_counter()
        for data in batches:
            with connection.cursor().copy(
                f"copy sensor_readings ({columns}) from stdin (format binary)"
            ) as copy:
                copy.write(data)
            connection.commit()
        return time.perf_counter() - began


def drain(redis_url: str, database_url: str, entries: int) -> float:
    """Seconds from a worker's first batch until everything is acknowledged, by its own log."""
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "BATCH_SIZE": str(BATCH),
        "LOG_FORMAT": "json",
        "STREAM_RETENTION_SEC": "0",
    }
    worker = subprocess.Popen(
        [sys.executable, "main.py"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    began, done = 0.0, 0
    try:
        for line in worker.stderr or ():
            event = json.loads(line)
            if event["event"] == "streams_found":
                began = time.perf_counter()
            done += event.get("entries", 0) if event["event"] == "batch" else 0
            if done >= entries:
                return time.perf_counter() - began
        raise SystemExit("the worker ended before the backlog did")
    finally:
        worker.terminate()
        worker.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--redis-url")
    parser.add_argument("--database-url")
    chosen = parser.parse_args()
    speeds: dict[str, list[float]] = {"sluice": [], "limit": []}
    with servers(chosen.redis_url, chosen.database_url) as (redis_url, database_url):
        migrate.upgrade(config.load(database_url=database_url))
        for number in range(chosen.rounds + 1):
            preload(redis_url, chosen.entries)
            ready = readings_of(redis_url)
            empty(database_url)
            seconds = drain(redis_url, database_url, chosen.entries)
            with redis_client.connect(redis_url, timeout_sec=60) as client:
                total = read_ledger(client, "db_writer", "mqtt_stream:*", "mqtt_stream:failed").total
            if (total.stored, total.missing) != (chosen.entries, 0):
                raise SystemExit(f"the books do not add up: {total}")
            empty(database_url)
            batches = [rows.encode(ready[n : n + BATCH]) for n in range(0, len(ready), BATCH)]
            least = limit(database_url, batches)
            if number:  # the first round warms up: partitions, caches, files
                speeds["sluice"].append(chosen.entries / seconds)
                speeds["limit"].append(chosen.entries / least)
    for name, found in speeds.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"{name:<8}{statistics.median(found):>10,.0f} readings/s   ({spread})")
    ratios = [mine / most for mine, most in zip(speeds["sluice"], speeds["limit"], strict=True)]
    print(f"{'ratio':<8}{statistics.median(ratios):>10.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
