"""A worker as one writes it on the first evening: read, COPY, try again on an error, acknowledge.

Left alone it stores every entry once, which a test shows. Scenarios are played to it too: one that it
survives would prove nothing. Its table has no key.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn, cast

import psycopg
import redis

GROUP = "db_writer"
PATTERN = "mqtt_stream:*"
DEAD_LETTERS = b"mqtt_stream:failed"
COPY = "copy sensor_readings (timestamp, device_id, sensor_type, value, message_id) from stdin"
PAUSE_SEC = 0.1

Read = list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]


class NaiveWorker:
    def __init__(self, redis_url: str, database_url: str, consumer: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=10)
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
        new = dict.fromkeys(self._streams, b">")
        return cast("Read", self._redis.xreadgroup(GROUP, self._consumer, new, count=200))  # type: ignore[arg-type]

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


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, _leave)
    worker = NaiveWorker(
        os.environ["REDIS_URL"], os.environ["DATABASE_URL"], os.environ.get("CONSUMER_NAME", "naive")
    )
    print("worker_started", flush=True)
    worker.run()


if __name__ == "__main__":
    main()
