"""Peer (a): redis-py, SQLAlchemy's bulk insert, and XACK for each message, in batches of 100.

    python benchmarks/peers/sqlalchemy_bulk.py REDIS_URL DATABASE_URL ENTRIES

Runs with the packages of requirements.txt beside it, until it has stored ENTRIES; prints one line of JSON.
A read covers ten streams and takes ten entries of each, so that every read of a backlog fills a batch. The
psycopg driver of SQLAlchemy and the hiredis parser of redis-py are there, as their documentation advises.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import redis
from sqlalchemy import MetaData, Table, create_engine, insert

GROUP = "peer"
BATCH = 100
WIDTH = 10


def row(stream: bytes, entry_id: bytes, fields: dict[bytes, bytes]) -> dict[str, Any]:
    _, device, sensor = stream.decode().split(":")
    millis, _, sequence = entry_id.partition(b"-")
    return {
        "device_id": device,
        "sensor_type": sensor,
        "timestamp": datetime.fromtimestamp(int(fields[b"timestamp"]), UTC),
        "message_id": UUID(int=int(millis) << 64 | int(sequence)),
        "value": float(fields[b"value"]),
    }


def main(arguments: Sequence[str]) -> int:
    redis_url, database_url, wanted = arguments[0], arguments[1], int(arguments[2])
    client = redis.Redis.from_url(redis_url)
    engine = create_engine("postgresql+psycopg" + database_url.removeprefix("postgresql"))
    with engine.connect() as connection:
        table = Table("sensor_readings", MetaData(), autoload_with=connection)
    streams = sorted(client.scan_iter(match="mqtt_stream:*", count=1000))
    for stream in streams:
        client.xgroup_create(stream, GROUP, id="0")
    began, used, done, position = time.perf_counter(), time.process_time(), 0, 0
    while done < wanted:
        chunk = streams[position : position + WIDTH]
        position = (position + WIDTH) % len(streams)
        found: Any = client.xreadgroup(GROUP, "one", dict.fromkeys(chunk, ">"), count=BATCH // len(chunk))
        rows = [row(stream, *entry) for stream, entries in found for entry in entries]
        if not rows:
            continue
        with engine.begin() as connection:
            connection.execute(insert(table), rows)
        for stream, entries in found:
            for entry_id, _ in entries:
                client.xack(stream, GROUP, entry_id)
        done += len(rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu": cpu}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
