"""What the tests of alerts send, and how they look at what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from tests.broker import Broker
from tests.support import Database, add

# For what takes long, and would say the same of the other broker.
ONE_BROKER = pytest.mark.parametrize("broker", [Broker], indirect=True, ids=lambda kind: kind.__name__)
BEGIN = 1_767_225_600  # 2026-01-01T00:00:00Z, the time of the readings numbered 0
PLACE = "home"


def rfc3339(second: int) -> str:
    return datetime.fromtimestamp(BEGIN + second, UTC).isoformat().replace("+00:00", "Z")


def send(
    client: redis.Redis,
    values: Sequence[object],
    first: int,
    device: str = "kitchen",
    sensor: str = "temperature",
) -> list[bytes]:
    """Readings a second apart from second `first` on, in a stream of their series. The entry IDs."""
    entries = [{"value": str(value), "timestamp": str(BEGIN + first + n)} for n, value in enumerate(values)]
    return add(client, f"mqtt_stream:{device}:{sensor}", entries)


def packed(
    device: str, values: dict[str, object], second: int, *, topic: str = "telemetry"
) -> dict[str, str]:
    """A whole MQTT message of a device of `PLACE`, as an entry."""
    payload = {"ts": BEGIN + second, "values": values} if topic == "telemetry" else values
    return {
        "topic": f"placebrain/{PLACE}/devices/{device}/{topic}",
        "payload": json.dumps(payload),
        "timestamp": str(BEGIN + second),
    }


def to_broker(broker: Broker, port: int = 0) -> dict[str, str]:
    """The settings of a worker that publishes to this broker, or to a proxy in front of it."""
    return {"mqtt_url": broker.url(port), "mqtt_protocol": "5" if broker.version_5 else "3.1.1"}


def due(database: Database) -> int:
    found = database.rows("select count(*) from alerts where created_due or resolved_due")
    return int(found[0][0])


def open_alerts(database: Database) -> int:
    return int(database.rows("select count(*) from alerts where status <> 'resolved'")[0][0])


def ids(database: Database) -> list[str]:
    """The alerts, in the order in which they were recorded."""
    return [row[0] for row in database.rows("select id::text from alerts order by number")]


def expire(database: Database, duty: str) -> None:
    """As if the time of whoever had this duty, and was killed, had run out."""
    database.rows("update duties set held_until = '-infinity' where name = %s", duty)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def told_of(messages: Sequence[tuple[str, dict[str, Any]]], device: str) -> list[tuple[str, str]]:
    return [(body["id"], body["event_type"]) for _, body in messages if body["device_id"] == device]
