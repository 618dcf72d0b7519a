"""What a backlog costs at the least in Python: hiredis that only reads, and a bare loop that stores too.

    .venv/bin/python -m benchmarks.bare read|store --redis-url … --database-url … --entries N

Run by benchmarks.throughput as a process of its own; prints one line of JSON. `read` is XREADGROUP over all
the streams, and nothing is acknowledged. `store` is the loop that one would write first, without a check
and without a ledger: hiredis, float(), datetime, psycopg's write_row in binary form, COMMIT, XACK.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import psycopg

import redis_client
from benchmarks.bench import TABLE
from benchmarks.wire import Wire
from benchmarks.workloads import BATCH, COLUMNS

TYPES = ("varchar", "varchar", "timestamptz", "uuid", "float8")
Reply = list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]


def replies(wire: Wire, group: str, streams: Sequence[bytes], entries: int) -> Iterator[Reply]:
    """Everything that the group has not read, about `BATCH` entries at a time."""
    count = max(1, BATCH // len(streams))
    newest = [">"] * len(streams)
    command = ("XREADGROUP", "GROUP", group, "bare", "COUNT", count, "STREAMS", *streams, *newest)
    left = entries
    while left > 0:
        reply: Reply | None = wire.ask(command)
        if not reply:
            raise SystemExit(f"{left} entries are missing")
        left -= sum(len(found) for _, found in reply)
        yield reply


def read(wire: Wire, streams: Sequence[bytes], entries: int, _database_url: str) -> None:
    for _ in replies(wire, "drained", streams, entries):
        pass


def store(wire: Wire, streams: Sequence[bytes], entries: int, database_url: str) -> None:
    statement = f"copy {TABLE} ({COLUMNS}) from stdin (format binary)"
    with psycopg.connect(database_url) as connection, connection.cursor() as cursor:
        for reply in replies(wire, "bare", streams, entries):
            with cursor.copy(statement) as copy:
                copy.set_types(TYPES)
                for stream, found in reply:
                    _, device, sensor = stream.decode().split(":")
                    for entry_id, (_, value, _, stamp) in found:
                        millis, _, sequence = entry_id.partition(b"-")
                        identity = UUID(int=int(millis) << 64 | int(sequence))
                        moment = datetime.fromtimestamp(int(stamp), UTC)
                        copy.write_row((device, sensor, moment, identity, float(value)))
            connection.commit()
            wire.ask_all(
                [("XACK", stream, "bare", *(entry_id for entry_id, _ in found)) for stream, found in reply]
            )


WAYS = {"read": read, "store": store}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--entries", type=int, required=True)
    chosen = parser.parse_args()
    group = "drained" if chosen.way == "read" else "bare"
    with redis_client.connect(chosen.redis_url, timeout_sec=60) as client:
        streams = sorted(client.scan_iter(match="mqtt_stream:*", count=1000))
        wire = Wire(client)
        wire.ask_all([("XGROUP", "CREATE", stream, group, "0") for stream in streams])
        began, used = time.perf_counter(), time.process_time()
        WAYS[chosen.way](wire, streams, chosen.entries, chosen.database_url)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu": cpu}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
