"""Replays a day of a real office room as several devices, into streams, at the pace of now.

Each device begins at another minute of the day, so that no two send the same, and sends one row a second
with the present as its time. Half of them write one stream a series, half whole MQTT messages into
sharded streams. What goes wrong in the field is in it too, marked in the code: a message sent twice, a
sensor that now and then sends `nan`, and a device that falls silent for a while.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from zlib import crc32

import redis

import redis_client
from retry import StopFlag

SAMPLE = Path(__file__).parent / "data" / "occupancy.csv"
FLAT_DEVICES = 8
PACKED_DEVICES = 8
SHARDS = 4
SECONDS_BETWEEN_ROWS = 1.0

Fields = dict[bytes | str, bytes | str]


def sample() -> list[dict[str, str]]:
    """The day's rows: sensor name to the text that was measured."""
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return [
            {name: text for name, text in row.items() if name != "date"} for row in csv.DictReader(file)
        ]


def entries(
    rows: Sequence[dict[str, str]], turn: int, now: float, mid: Callable[[], str]
) -> Iterator[tuple[str, Fields]]:
    """What all devices send in one turn: (stream, fields)."""
    for number in range(FLAT_DEVICES):
        row = rows[(turn + number * len(rows) // FLAT_DEVICES) % len(rows)]
        for sensor, text in row.items():
            broken = number == 0 and sensor == "co2" and turn % 10 == 4
            value = "nan" if broken else text
            yield f"mqtt_stream:office-{number + 1}:{sensor}", {"value": value, "timestamp": f"{now:.3f}"}
    for number in range(PACKED_DEVICES):
        silent = number == PACKED_DEVICES - 1 and turn % 60 in range(4, 14)
        if silent:
            continue
        row = rows[(turn + number * len(rows) // PACKED_DEVICES + 60) % len(rows)]
        device = f"room-{number + 1}"
        values = {sensor: float(text) for sensor, text in row.items()}
        payload = json.dumps({"ts": int(now * 1000), "values": values})
        stream = f"mqtt_stream:shard:{crc32(device.encode()) % SHARDS}"
        message: Fields = {"topic": f"devices/{device}/telemetry", "payload": payload, "mid": mid()}
        sent_twice = number == 0 and turn % 10 == 7
        for _ in range(2 if sent_twice else 1):
            yield stream, message


def main() -> int:
    parser = argparse.ArgumentParser(prog="standalone.replay", description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    stopped = StopFlag(timeout_sec=5)

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    client = redis_client.connect(os.environ["REDIS_URL"], timeout_sec=10, name="sluice-replay")
    rows = sample()
    for turn in itertools.count():
        try:
            with client.pipeline(transaction=False) as pipe:
                for stream, fields in entries(rows, turn, time.time(), lambda: str(uuid.uuid4())):
                    pipe.xadd(stream, fields)  # type: ignore[arg-type]
                pipe.execute()
        except (redis.ConnectionError, redis.TimeoutError):
            pass  # a demo: what was measured while Redis is away is not sent later
        stopped.pause(SECONDS_BETWEEN_ROWS)
        if stopped.is_set():
            break
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
