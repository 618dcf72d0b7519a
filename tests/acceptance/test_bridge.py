"""From the sensor to the row: what the broker accepted is in the table, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import redis
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

import redis_client
from standalone.servers import Valkey
from tests.broker import Broker, Mosquitto, end, running
from tests.conftest import require
from tests.support import Daemon, Database, books, everything_settled, is_long, wait_until

MESSAGES, KILLS = (100_000, 10) if is_long() else (20_000, 5)
DEVICES = 500
REDIS_KILLS, BROKER_STOP = ((3, 8), 5) if is_long() else ((2, 4), 3)
TOPICS = "{user_id}/{device_code}/feeds/{feed_key}"


@pytest.fixture
def keeping_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that keeps sessions over its own restart, and everything for clients that are away."""
    require(Mosquitto)
    limits = {"max_inflight_messages": 1000, "max_queued_messages": 0}
    with running(Mosquitto, tmp_path, persistence=True, **limits) as found:
        yield found


class Bridges:
    """One bridge after the other, under one name."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self.number = 0
        self.daemon = self._start()

    def _start(self) -> Daemon:
        self.number += 1
        return Daemon(self._environment, self._folder / f"bridge-{self.number}.log", "bridge")

    def kill(self) -> None:
        self.daemon.kill()
        self.daemon = self._start()


def in_streams(valkey: Valkey) -> int:
    """Entries in all shards, or -1 while Redis is not to be asked."""
    with contextlib.suppress(redis.RedisError), redis_client.connect(valkey.url, 10) as client:
        return sum(int(client.xlen(key)) for key in client.scan_iter("mqtt_stream:shard:*", count=1000))
    return -1


def has_entries(valkey: Valkey, count: int) -> bool:
    return in_streams(valkey) >= count


def rows_of(manifest: Path) -> set[tuple[str, str, datetime, float]]:
    """What the broker has accepted, a row each."""
    with manifest.open(encoding="utf-8") as file:
        told = [json.loads(line) for line in file]
    rows = {
        (one["device"], one["sensor"], datetime.fromisoformat(one["time"]), one["value"]) for one in told
    }
    assert len(rows) == len(told)
    return rows


def test_every_message_the_broker_accepted_is_stored_once_though_bridge_redis_and_broker_go_down(
    keeping_broker: Broker,
    own_valkey: Valkey,
    database: Database,
    daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    """20,000 messages; the bridge killed five times, Redis twice, the broker restarted once."""
    environment = {
        "MQTT_URL": keeping_broker.url(),
        "REDIS_URL": own_valkey.url,
        "BRIDGE_NAME": "acceptance",
        "BRIDGE_TOPICS": "+/+/feeds/+",
    }
    bridges = Bridges(environment, tmp_path)
    simulator = None
    try:
        bridges.daemon.wait_for("mqtt_subscribed")
        worker = daemon(database, own_valkey.url)
        manifest = tmp_path / "accepted.jsonl"
        options = f"--rate 0 --messages {MESSAGES} --devices {DEVICES} --seed 1 --window 500 --wait 60"
        command = ["simulate", "--topics", TOPICS, "--manifest", str(manifest), *options.split()]
        simulator = Daemon(environment, tmp_path / "simulator.log", *command)
        for step in range(1, KILLS + 1):
            wait_until(
                partial(has_entries, own_valkey, step * MESSAGES // (KILLS + 2)), 120, "more entries"
            )
            bridges.kill()
            if step in REDIS_KILLS:
                own_valkey.kill()
                own_valkey.start()
            if step == BROKER_STOP:
                keeping_broker.stop()
                keeping_broker.start()
        assert simulator.process.wait(120) == 0, simulator.text()[-2000:]
        accepted = rows_of(manifest)
        assert len(accepted) == MESSAGES
        wait_until(lambda: database.count() >= MESSAGES, 120, f"{MESSAGES} rows")
        with redis_client.connect(own_valkey.url, 10) as client:
            wait_until(lambda: everything_settled(client, in_streams(own_valkey)), 60, "an even ledger")
            found = books(client)
        query = 'select device_id, sensor_type, "timestamp", value from sensor_readings'
        stored = database.rows(query)
        assert len(stored) == MESSAGES
        assert set(stored) == accepted
        assert (found.stored, found.dead_lettered) == (MESSAGES, 0)
        assert found.read == MESSAGES + found.duplicate
        assert bridges.number == KILLS + 1
        assert bridges.daemon.terminate() == 0
        assert worker.terminate() == 0
    finally:
        for process in (bridges.daemon, simulator):
            if process and process.process.poll() is None:
                process.kill()


LARGE = 12_000
PAYLOAD_BYTES = 2_000
MOST_GROWTH_BYTES = 16_000_000


def resident(daemon: Daemon) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def publish_large(broker: Broker) -> None:
    """Twenty-four megabytes of messages, all of them accepted by the broker."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="flood")
    client.max_inflight_messages_set(500)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    sent = []
    for number in range(LARGE):
        payload = json.dumps({"number": number}).ljust(PAYLOAD_BYTES).encode()
        sent.append(client.publish(f"devices/d{number % 50}/telemetry", payload, qos=1))
        if number % 500 == 499:
            sent[-1].wait_for_publish(60)
    for one in sent:
        one.wait_for_publish(60)
    client.disconnect()
    end(client)


def test_a_redis_that_is_frozen_makes_the_broker_wait_and_no_memory_grow(
    keeping_broker: Broker, own_valkey: Valkey, tmp_path: Path
) -> None:
    environment = {
        "MQTT_URL": keeping_broker.url(),
        "REDIS_URL": own_valkey.url,
        "BRIDGE_NAME": "slow",
        "BRIDGE_TOPICS": "devices/+/telemetry",
        "BRIDGE_QUEUE_BYTES": "1000000",
    }
    bridge = Daemon(environment, tmp_path / "bridge.log", "bridge")
    assert own_valkey.process
    redis_pid = own_valkey.process.pid
    try:
        bridge.wait_for("mqtt_subscribed")
        before = resident(bridge)
        os.kill(redis_pid, signal.SIGSTOP)
        publish_large(keeping_broker)
        bridge.wait_for("bridge_queue_full", 60)
        grown = resident(bridge) - before
        assert grown < MOST_GROWTH_BYTES, f"{grown:,} bytes"
        os.kill(redis_pid, signal.SIGCONT)
        wait_until(partial(has_entries, own_valkey, LARGE), 120, f"{LARGE} entries")
        assert resident(bridge) - before < 2 * MOST_GROWTH_BYTES
        assert bridge.terminate() == 0
        with redis_client.connect(own_valkey.url, 10) as client:
            streams = list(client.scan_iter("mqtt_stream:shard:*", count=1000))
            found = {
                bytes(fields[fields.index(b"payload") + 1])
                for stream in streams
                for _, fields in redis_client.execute(client, "XRANGE", stream, "-", "+")
            }
        assert len(found) == LARGE
    finally:
        os.kill(redis_pid, signal.SIGCONT)
        if bridge.process.poll() is None:
            bridge.kill()
