"""A worker as one writes it on the first evening: read, COPY, try again on an error, acknowledge.

Left alone it stores every entry once, which a test shows. Scenarios are played to it too: one that it
survives would prove nothing. Its table has no key.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn, cast

import psycopg
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

GROUP = "db_writer"
PATTERN = "mqtt_stream:*"
DEAD_LETTERS = b"mqtt_stream:failed"
COPY = "copy sensor_readings (timestamp, device_id, sensor_type, value, message_id) from stdin"
PAUSE_SEC = 0.1

Read = list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]


class NaiveWorker:
    def __init__(self, client: redis.Redis, database_url: str, consumer: str, *, one_by_one: bool) -> None:
        """`one_by_one`: streams are on several nodes, which no single command reads."""
        self._redis = client
        self._one_by_one = one_by_one
        self._database_url = database_url
        self._consumer = consumer
        self._streams: list[bytes] = []

    def run(self) -> NoReturn:
        while True:
            try:
                self._discover()
                read: Read = self._read() if self._streams else []
            except redis.RedisError as error:
                print("naive_error", type(error).__name__, flush=True)
                time.sleep(PAUSE_SEC)
                continue
            if read:
                self._store(read)
                self._acknowledge(read)
            else:
                time.sleep(PAUSE_SEC)

    def _discover(self) -> None:
        self._streams = [key for key in self._redis.scan_iter(PATTERN, 1000) if key != DEAD_LETTERS]
        for stream in self._streams:
            try:
                self._redis.xgroup_create(stream, GROUP, id="0")
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def _read(self) -> Read:
        asked = [[stream] for stream in self._streams] if self._one_by_one else [self._streams]
        found: Read = []
        for streams in asked:
            new = dict.fromkeys(streams, b">")
            found += cast("Read", self._redis.xreadgroup(GROUP, self._consumer, new, count=200))  # type: ignore[arg-type]
        return found

    def _store(self, read: Read) -> None:
        while True:
            try:
                with psycopg.connect(self._database_url, connect_timeout=5) as connection:
                    self._copy(connection, read)
                return
            except psycopg.Error as error:
                print("naive_error", type(error).__name__, flush=True)
                time.sleep(PAUSE_SEC)

    def _copy(self, connection: psycopg.Connection, read: Read) -> None:
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            for stream, entries in read:
                _, device, kind = stream.decode().split(":", 2)
                for entry_id, fields in entries:
                    measured = datetime.fromtimestamp(float(fields[b"timestamp"]), UTC)
                    ms, number = entry_id.decode().split("-")
                    copy.write_row(
                        (
                            measured,
                            device,
                            kind,
                            float(fields[b"value"]),
                            f"{int(ms):016x}{int(number):016x}",
                        )
                    )

    def _acknowledge(self, read: Read) -> None:
        while True:
            try:
                for stream, entries in read:
                    self._redis.xack(stream, GROUP, *(entry_id for entry_id, _ in entries))
                return
            except redis.RedisError as error:
                print("naive_error", type(error).__name__, flush=True)
                time.sleep(PAUSE_SEC)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    os._exit(0)


def client_of(environment: Mapping[str, str]) -> redis.Redis:
    """redis-py's own for the set-up, as it comes."""
    nodes = [
        (host, int(port))
        for name in ("REDIS_SENTINELS", "REDIS_CLUSTER_NODES")
        for host, _, port in (node.rpartition(":") for node in environment.get(name, "").split(",") if node)
    ]
    mode = environment.get("REDIS_MODE", "single")
    if mode == "sentinel":
        sentinel = Sentinel(nodes, socket_timeout=2)  # type: ignore[no-untyped-call]
        found = sentinel.master_for(environment["REDIS_SENTINEL_MASTER"], socket_timeout=10)  # type: ignore[no-untyped-call]
        return cast("redis.Redis", found)
    if mode == "cluster":
        first = [ClusterNode(host, port) for host, port in nodes]  # type: ignore[no-untyped-call]
        return cast("redis.Redis", RedisCluster(startup_nodes=first, socket_timeout=10))
    return redis.Redis.from_url(environment["REDIS_URL"], socket_timeout=10)


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, _leave)
    given = os.environ
    worker = NaiveWorker(
        client_of(given),
        given["DATABASE_URL"],
        given.get("CONSUMER_NAME", "naive"),
        one_by_one=given.get("REDIS_MODE") == "cluster",
    )
    print("worker_started", flush=True)
    worker.run()


if __name__ == "__main__":
    main()
