"""Peer (b): FastStream's batch subscribers of Redis Streams, and asyncpg's copy_records_to_table.

    python benchmarks/peers/faststream_copy.py REDIS_URL DATABASE_URL ENTRIES

Runs with the packages of requirements.txt beside it, until it has stored ENTRIES; prints one line of JSON.
A subscriber reads one stream, over a connection of its own: so it is given few streams. Batches hold up to
1,000 messages, the loop is uvloop's, the log is off, and asyncpg has a pool of four connections. FastStream
acknowledges a batch when the handler returns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg  # type: ignore[import-not-found,import-untyped,unused-ignore]
import redis
import uvloop  # type: ignore[import-not-found,unused-ignore]
from faststream import Context  # type: ignore[import-not-found,unused-ignore]
from faststream.redis import (  # type: ignore[import-not-found,unused-ignore]
    RedisBroker,
    StreamSub,
)

GROUP = "peer"
MOST = 1000
POLL_MS = 2000
COLUMNS = ("device_id", "sensor_type", "timestamp", "message_id", "value")


async def run(redis_url: str, database_url: str, streams: Sequence[str], wanted: int) -> dict[str, float]:
    pool = await asyncpg.create_pool(database_url, min_size=4, max_size=4)
    broker = RedisBroker(
        redis_url, logger=None, log_level=logging.CRITICAL, max_connections=len(streams) + 10
    )
    finished = asyncio.Event()
    done = 0

    async def store(body: list[dict[str, str]], message: Annotated[Any, Context("message")]) -> None:
        nonlocal done
        raw = message.raw_message
        _, device, sensor = raw["channel"].split(":")
        records = []
        for entry_id, fields in zip(raw["message_ids"], body, strict=True):
            millis, _, sequence = entry_id.partition(b"-")
            records.append(
                (
                    device,
                    sensor,
                    datetime.fromtimestamp(int(fields["timestamp"]), UTC),
                    UUID(int=int(millis) << 64 | int(sequence)),
                    float(fields["value"]),
                )
            )
        async with pool.acquire() as connection:
            await connection.copy_records_to_table("sensor_readings", records=records, columns=COLUMNS)
        done += len(records)
        if done >= wanted:
            finished.set()

    for stream in streams:
        sub = StreamSub(
            stream, group=GROUP, consumer="one", batch=True, max_records=MOST, polling_interval=POLL_MS
        )
        broker.subscriber(stream=sub)(store)
    began, used = time.perf_counter(), time.process_time()
    await broker.start()
    await finished.wait()
    await broker.stop()  # which waits for the last acknowledgements
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    await pool.close()
    return {"seconds": seconds, "cpu": cpu}


def main(arguments: Sequence[str]) -> int:
    redis_url, database_url, wanted = arguments[0], arguments[1], int(arguments[2])
    client = redis.Redis.from_url(redis_url)
    streams = sorted(key.decode() for key in client.scan_iter(match="mqtt_stream:*", count=1000))
    for stream in streams:
        client.xgroup_create(stream, GROUP, id="0")
    print(json.dumps(uvloop.run(run(redis_url, database_url, streams, wanted))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
