"""The bridge with real brokers, a real Redis and a real worker: nothing is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from structlog.testing import capture_logs

import mqtt.bridge
from main import DatabaseWriterService
from mqtt.bridge import Bridge, BridgeOptions
from mqtt.intake import Bounds
from mqtt.options import MqttOptions, Session, Will
from parse import Limits
from retry import StopFlag
from setting_types import Layout, WhenFull
from standalone.mqtt_broker import ANYBODY
from standalone.servers import Valkey
from tests.broker import Broker, Mosquitto, end, running
from tests.conftest import require
from tests.faults import Proxy, proxy_to
from tests.support import (
    ROOT,
    Database,
    books,
    everything_settled,
    in_thread,
    run_until,
    settings_for,
    wait_until,
)

LIMITS = Limits(
    topic_templates=("devices/{device_id}/telemetry", "pico/{sensor_type}/{device_id}"),
    status_templates=("devices/{device_id}/status",),
)
FILTERS = ("devices/+/telemetry", "pico/+/+", "devices/+/status")
STARTED = 1_700_000_000  # in the payloads
Start = Callable[[BridgeOptions], Bridge]


@pytest.fixture(scope="module")
def one_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One for all tests of this file that leave it as it was: each has sessions of its own."""
    require(Mosquitto)
    with running(Mosquitto, tmp_path_factory.mktemp("mosquitto")) as found:
        assert isinstance(found, Mosquitto)
        yield found


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs a bridge in a thread; what still runs at the end is stopped, and a bug in it fails the test."""
    with contextlib.ExitStack() as started:

        def run(options: BridgeOptions) -> Bridge:
            return started.enter_context(bridging(options))

        yield run


@contextlib.contextmanager
def bridging(options: BridgeOptions) -> Iterator[Bridge]:
    bridge = Bridge(options, StopFlag(8.0))
    with in_thread(bridge):
        yield bridge


def options_for(broker: Broker, redis_url: str, *, port: int = 0, **changes: Any) -> BridgeOptions:
    """Options of a bridge with a name of its own. `port`: another way to the broker, a proxy's."""
    connection: dict[str, Any] = {
        "url": broker.url(port),
        "client_id": f"bridge-{uuid.uuid4().hex}",
        "version_5": broker.version_5,
        "session": Session(expiry_sec=3600, receive_maximum=1000),
    }
    connection |= {
        name: changes.pop(name) for name in ("client_id", "version_5", "will", "session") if name in changes
    }
    values: dict[str, Any] = {
        "redis": redis_url,
        "mqtt": MqttOptions(**connection),
        "filters": FILTERS,
        "filters_chosen": True,
        "limits": LIMITS,
        "bounds": Bounds(count=10_000, size=1 << 26, when_full=WhenFull.STOP),
    }
    return BridgeOptions(**(values | changes))


def ready(bridge: Bridge) -> None:
    wait_until(lambda: bridge.health_check()["mqtt"], what="the subscription")


@contextlib.contextmanager
def connected(broker: Broker, **arguments: Any) -> Iterator[paho.Client]:
    """A client as devices have them."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        protocol=paho.MQTTv5 if broker.version_5 else paho.MQTTv311,
        **arguments,
    )
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    wait_until(client.is_connected)
    try:
        yield client
    finally:
        client.disconnect()
        end(client)


def publish(
    broker: Broker, messages: Iterable[tuple[str, bytes]], qos: int = 1, *, retain: bool = False
) -> None:
    """Returns when the broker has accepted all."""
    with connected(broker) as client:
        for told in [client.publish(topic, payload, qos, retain) for topic, payload in messages]:
            told.wait_for_publish(20)
            assert told.is_published()


def readings(count: int, device: str = "d1", first: int = 0) -> list[tuple[str, bytes]]:
    """Messages with a time of their own, each another."""
    return [
        (f"devices/{device}/telemetry", b'{"ts": %d, "values": {"n": %d}}' % (STARTED + number, number))
        for number in range(first, first + count)
    ]


def entries(client: redis.Redis) -> list[dict[bytes, bytes]]:
    """What is in the streams, in no order between them."""
    found = []
    for stream in client.scan_iter(match="mqtt_stream:*", _type="stream"):
        for _, fields in client.execute_command("XRANGE", stream, "-", "+"):  # type: ignore[no-untyped-call]
            found.append(dict(zip(fields[::2], fields[1::2], strict=True)))
    return found


def payloads(client: redis.Redis) -> Counter[bytes]:
    return Counter(fields[b"payload"] for fields in entries(client))


def all_there(client: redis.Redis, messages: Sequence[tuple[str, bytes]]) -> bool:
    return set(payloads(client)) == {payload for _, payload in messages}


def nothing_left(broker: Broker, options: BridgeOptions) -> bool:
    """Whether the broker has nothing more for this session: what it was sent is acknowledged."""
    came: list[bytes] = []
    subscribed = threading.Event()
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.mqtt.client_id,
        protocol=paho.MQTTv5 if options.mqtt.version_5 else paho.MQTTv311,
        clean_session=None if options.mqtt.version_5 else False,
    )
    client.on_message = lambda _client, _data, message: came.append(bytes(message.payload))
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_connect = lambda client, _data, flags, *_: (
        client.subscribe("marker") if flags.session_present else came.append(b"no session")
    )
    client.connect("127.0.0.1", broker.port, **options.mqtt.connect_arguments())  # type: ignore[arg-type]
    client.loop_start()
    wait_until(lambda: subscribed.is_set() or came)
    publish(broker, [("marker", b"marker")])  # comes after whatever was waiting
    wait_until(lambda: b"marker" in came or b"no session" in came)
    client.disconnect()
    end(client)
    return came == [b"marker"]


@pytest.fixture
def away(valkey: Valkey, redis_url: str) -> Iterator[Proxy]:
    """The way to Redis, which a test may close. `redis_url`: so that it is empty."""
    assert redis_url
    with proxy_to(str(valkey.socket)) as found:
        yield found


def by_way_of(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"


def run_worker(database: Database, redis_url: str, condition: Callable[[], object]) -> None:
    service = DatabaseWriterService(
        settings_for(
            database,
            redis_url,
            topic_templates=",".join(LIMITS.topic_templates),
            status_templates=",".join(LIMITS.status_templates),
        )
    )
    run_until(service, condition)


# The daily way


@pytest.mark.parametrize("layout", list(Layout))
def test_a_message_of_any_qos_becomes_an_entry_and_a_row(
    broker: Broker, start: Start, client: redis.Redis, redis_url: str, database: Database, layout: Layout
) -> None:
    bridge = start(options_for(broker, redis_url, layout=layout))
    ready(bridge)
    for qos in (0, 1, 2):
        publish(broker, [(f"pico/temp/d{qos}", b"21.5")], qos)
    publish(broker, [("devices/d1/status", b"online")])
    wait_until(lambda: len(entries(client)) == 4)
    told = [fields for fields in entries(client) if b"payload" in fields]
    assert len(told) == (4 if layout is Layout.SHARDS else 1)  # a status is told as it came
    for fields in told:
        assert set(fields) == {b"topic", b"payload", b"timestamp", b"mid"}
    run_worker(database, redis_url, lambda: everything_settled(client, 4))
    assert database.rows("select device_id, sensor_type, value from sensor_readings order by 1") == [
        (f"d{qos}", "temp", 21.5) for qos in (0, 1, 2)
    ]
    assert database.rows("select status from devices where device_id = 'd1'") == [("online",)]
    wait_until(lambda: bridge.stats.messages_acknowledged >= 3)  # amqtt makes QoS 1 of QoS 0
    assert (bridge.stats.messages_received, bridge.stats.messages_added) == (4, 4)


def test_mqtt_3_1_1_carries_too_and_keeps_its_session(
    one_mosquitto: Mosquitto, client: redis.Redis, redis_url: str
) -> None:
    options = options_for(one_mosquitto, redis_url, version_5=False)
    with bridging(options) as bridge:
        ready(bridge)
        publish(one_mosquitto, readings(5))
        wait_until(lambda: bridge.stats.messages_acknowledged == 5)
    publish(one_mosquitto, readings(5, first=5))  # while it is away
    with bridging(options) as bridge:
        wait_until(lambda: bridge.stats.messages_acknowledged == 5)
    assert payloads(client) == Counter(payload for _, payload in readings(10))
    assert nothing_left(one_mosquitto, options)


def test_what_came_while_the_bridge_was_away_is_carried_when_it_is_back(
    one_mosquitto: Mosquitto, client: redis.Redis, redis_url: str
) -> None:
    options = options_for(one_mosquitto, redis_url)
    with bridging(options) as bridge:
        ready(bridge)
    publish(one_mosquitto, readings(20))
    with bridging(options) as bridge:
        wait_until(lambda: bridge.stats.messages_acknowledged == 20)
    assert payloads(client) == Counter(payload for _, payload in readings(20))


@pytest.mark.parametrize("take", [False, True])
def test_retained_readings_are_passed_over_unless_asked_for_and_statuses_are_not(
    one_mosquitto: Mosquitto, start: Start, client: redis.Redis, redis_url: str, take: bool
) -> None:
    device = uuid.uuid4().hex
    kept = [(f"devices/{device}/telemetry", b'{"n": 1}'), (f"devices/{device}/status", b"online")]
    publish(one_mosquitto, kept, retain=True)
    try:
        options = options_for(
            one_mosquitto, redis_url, filters=tuple(topic for topic, _ in kept), take_retained=take
        )
        bridge = start(options)
        wait_until(lambda: bridge.stats.messages_acknowledged == 2)
        assert set(payloads(client)) == {b"online"} | ({b'{"n": 1}'} if take else set())
        assert bridge.stats.messages_retained == (0 if take else 1)
    finally:
        publish(one_mosquitto, [(topic, b"") for topic, _ in kept], retain=True)


@pytest.mark.parametrize("hand_on", [False, True])
def test_what_no_template_matches_is_counted_and_told_or_handed_on(
    one_mosquitto: Mosquitto, start: Start, client: redis.Redis, redis_url: str, hand_on: bool
) -> None:
    with capture_logs() as logs:
        bridge = start(options_for(one_mosquitto, redis_url, filters=("odd/#",), hand_on_unmatched=hand_on))
        ready(bridge)
        publish(one_mosquitto, [("odd/one", b"1"), ("odd/one/two", b"2")])
        wait_until(lambda: bridge.stats.messages_acknowledged == 2)
        bridge.stop()
        wait_until(lambda: [log for log in logs if log["event"] == "bridge_stopped"])
    assert payloads(client) == (Counter([b"1", b"2"]) if hand_on else Counter())
    assert bridge.stats.messages_unmatched == 2
    told = [log for log in logs if log["event"] == "bridge_unmatched"]
    assert told
    assert all(log["topic"].startswith("odd/one") for log in told)


def test_bridges_of_one_group_share_the_messages(
    one_mosquitto: Mosquitto, start: Start, client: redis.Redis, redis_url: str
) -> None:
    group = uuid.uuid4().hex
    bridges = [start(options_for(one_mosquitto, redis_url, share=group)) for _ in range(2)]
    for bridge in bridges:
        ready(bridge)
    publish(one_mosquitto, readings(100))
    wait_until(lambda: sum(bridge.stats.messages_acknowledged for bridge in bridges) >= 100)
    assert payloads(client) == Counter(payload for _, payload in readings(100))
    assert all(bridge.stats.messages_received > 0 for bridge in bridges)


# Redis away


def hang_up(proxy: Proxy) -> None:
    proxy.refuse = True
    proxy.cut()


def back(proxy: Proxy) -> None:
    proxy.refuse = False


def test_nothing_is_acknowledged_while_redis_is_away_and_nothing_is_lost(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy
) -> None:
    options = options_for(one_mosquitto, by_way_of(away), batch_size=7)
    with bridging(options) as bridge:
        ready(bridge)
        hang_up(away)
        publish(one_mosquitto, readings(20))  # as many as mosquitto sends without an acknowledgement
        wait_until(lambda: bridge.stats.messages_received == 20 and bridge.stats.errors)
        assert bridge.stats.messages_acknowledged == 0
        health = bridge.health_check()
        assert (health["running"], health["mqtt"], health["redis"]) == (True, True, False)
        assert health["waiting"] in range(13, 20)  # all but the batch in hand
        assert health["stats"] == bridge.stats.as_dict()
        back(away)
        wait_until(lambda: bridge.stats.messages_acknowledged == 20)
        assert payloads(client) == Counter(payload for _, payload in readings(20))
    assert nothing_left(one_mosquitto, options)
    assert bridge.health_check()["running"] is False


def test_what_redis_has_confirmed_is_not_sent_again_beside_what_it_refused(
    one_mosquitto: Mosquitto, start: Start, client: redis.Redis, redis_url: str
) -> None:
    bridge = start(options_for(one_mosquitto, redis_url, shards=16, linger_sec=0.3))
    ready(bridge)
    client.set("mqtt_stream:shard:6", "in the way of d1")
    messages = [*readings(3, "kitchen"), *readings(3, first=3)]
    publish(one_mosquitto, messages)
    wait_until(lambda: bridge.stats.errors >= 2)
    client.delete("mqtt_stream:shard:6")
    wait_until(lambda: bridge.stats.messages_acknowledged == 6)
    assert payloads(client) == Counter(payload for _, payload in messages)


def test_a_full_redis_is_waited_for(
    one_mosquitto: Mosquitto, start: Start, client: redis.Redis, redis_url: str
) -> None:
    bridge = start(options_for(one_mosquitto, redis_url))
    ready(bridge)
    client.config_set("maxmemory", 1)
    try:
        publish(one_mosquitto, readings(10))
        wait_until(lambda: bridge.stats.errors)
        assert bridge.stats.messages_acknowledged == 0
    finally:
        client.config_set("maxmemory", 0)
    wait_until(lambda: bridge.stats.messages_acknowledged == 10)
    assert payloads(client) == Counter(payload for _, payload in readings(10))


def test_a_frozen_redis_gets_everything_and_repeats_are_recognised_by_the_worker(
    one_mosquitto: Mosquitto,
    client: redis.Redis,
    redis_url: str,
    valkey: Valkey,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does what it had received when it wakes: the same entries come again meanwhile."""
    monkeypatch.setattr(mqtt.bridge, "REDIS_TIMEOUT_SEC", 0.3)
    assert valkey.process
    with bridging(options_for(one_mosquitto, redis_url)) as bridge:
        ready(bridge)
        os.kill(valkey.process.pid, signal.SIGSTOP)
        try:
            publish(one_mosquitto, readings(10))
            wait_until(lambda: bridge.stats.errors >= 2)
            assert bridge.stats.messages_acknowledged == 0
        finally:
            os.kill(valkey.process.pid, signal.SIGCONT)
        wait_until(lambda: bridge.stats.messages_acknowledged == 10)
    found = payloads(client)
    assert set(found) == {payload for _, payload in readings(10)}
    assert found.total() > 10
    run_worker(database, redis_url, lambda: everything_settled(client, found.total()))
    assert database.count() == 10
    assert books(client).duplicate == found.total() - 10


@pytest.mark.parametrize("layout", list(Layout))
def test_a_lost_reply_makes_duplicates_which_the_worker_recognises(
    one_mosquitto: Mosquitto,
    client: redis.Redis,
    redis_url: str,
    away: Proxy,
    database: Database,
    layout: Layout,
) -> None:
    """Also of messages that have no time of their own: the time of arrival goes with them."""
    bare = [("pico/temp/d1", b"21.5")] * 3
    with bridging(options_for(one_mosquitto, by_way_of(away), layout=layout)) as bridge:
        ready(bridge)
        replies = iter([True, False])
        away.cut_reply_when = lambda piece: piece.startswith(b"$") and next(replies, False)
        publish(one_mosquitto, bare + readings(5))
        wait_until(lambda: bridge.stats.messages_acknowledged == 8)
        assert away.cuts == 1
    added = len(entries(client))
    assert added > 8
    run_worker(database, redis_url, lambda: everything_settled(client, added))
    assert database.count() == 8  # three equal values at three times, and the rest
    found = books(client)
    assert (found.stored, found.duplicate, found.dead_lettered) == (8, added - 8, 0)


def test_a_full_queue_leaves_the_rest_to_the_broker(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy
) -> None:
    bounds = Bounds(count=5, size=1 << 26, when_full=WhenFull.STOP)
    options = options_for(one_mosquitto, by_way_of(away), bounds=bounds, batch_size=2)
    with capture_logs() as logs, bridging(options) as bridge:
        ready(bridge)
        hang_up(away)
        publish(one_mosquitto, readings(1))
        wait_until(lambda: bridge.stats.errors)  # the first is in hand now: the queue gives no more room
        publish(one_mosquitto, readings(49, first=1))
        wait_until(lambda: bridge.stats.messages_received > 7)
        assert bridge.health_check()["waiting"] == 5
        assert bridge.stats.messages_acknowledged == 0
        back(away)
        wait_until(lambda: all_there(client, readings(50)))
        wait_until(lambda: bridge._intake.unacknowledged() == 0)
    assert payloads(client) == Counter(payload for _, payload in readings(50))
    assert bridge.stats.messages_dropped == 0
    assert [log for log in logs if log["event"] == "bridge_queue_full"]
    assert nothing_left(one_mosquitto, options)


@pytest.mark.parametrize("when_full", [WhenFull.DROP_OLDEST, WhenFull.DROP_NEWEST])
def test_what_is_dropped_by_wish_is_counted_and_told(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy, when_full: WhenFull
) -> None:
    bounds = Bounds(count=5, size=1 << 26, when_full=when_full)
    options = options_for(one_mosquitto, by_way_of(away), bounds=bounds, batch_size=1)
    with capture_logs() as logs, bridging(options) as bridge:
        ready(bridge)
        hang_up(away)
        publish(one_mosquitto, readings(1))
        wait_until(lambda: bridge.stats.errors)  # the first is in hand now
        publish(one_mosquitto, readings(12, first=1))
        wait_until(lambda: bridge.stats.messages_received == 13)
        back(away)
        wait_until(lambda: bridge.stats.messages_acknowledged == 13)
    kept = range(8, 13) if when_full is WhenFull.DROP_OLDEST else range(1, 6)
    numbers = sorted(json.loads(payload)["values"]["n"] for payload in payloads(client))
    assert numbers == [0, *kept]
    assert bridge.stats.messages_dropped == 7
    assert sum(log["messages"] for log in logs if log["event"] == "bridge_dropped") == 7


# The broker away


def test_what_comes_again_after_a_broken_connection_is_added_once(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy
) -> None:
    with proxy_to(("127.0.0.1", one_mosquitto.port)) as line:
        options = options_for(one_mosquitto, by_way_of(away), port=line.port, batch_size=4)
        with bridging(options) as bridge:
            ready(bridge)
            hang_up(away)
            publish(one_mosquitto, readings(15))
            wait_until(lambda: bridge.stats.messages_received == 15)
            line.cut()
            wait_until(lambda: bridge.stats.messages_recognised == 15)
            assert bridge.stats.messages_acknowledged == 0
            back(away)
            wait_until(lambda: bridge.stats.messages_acknowledged == 15)
        assert payloads(client) == Counter(payload for _, payload in readings(15))
        assert nothing_left(one_mosquitto, options)


def test_cuts_again_and_again_lose_nothing(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy
) -> None:
    """Both ways are cut while batches are on them, acknowledgements among them."""
    with proxy_to(("127.0.0.1", one_mosquitto.port)) as line:
        options = options_for(one_mosquitto, by_way_of(away), port=line.port, batch_size=10)
        with bridging(options) as bridge:
            ready(bridge)
            for part in range(3):
                publish(one_mosquitto, readings(200, first=200 * part))
                wait_until(lambda part=part: bridge.stats.messages_added > 200 * part)  # type: ignore[misc]
                line.cut()
                away.cut()
                wait_until(lambda: bridge.health_check()["mqtt"])
            publish(one_mosquitto, readings(1, first=600))  # which comes after all that comes again
            wait_until(lambda: all_there(client, readings(601)))
            wait_until(lambda: bridge._intake.unacknowledged() == 0)
        assert nothing_left(one_mosquitto, options)


def test_a_bridge_tells_when_it_is_there_and_the_broker_when_it_is_gone(
    one_mosquitto: Mosquitto, redis_url: str
) -> None:
    topic = f"bridges/{uuid.uuid4().hex}"
    told: list[bytes] = []
    with connected(one_mosquitto) as watcher, proxy_to(("127.0.0.1", one_mosquitto.port)) as line:
        watcher.on_message = lambda _client, _data, message: told.append(bytes(message.payload))
        watcher.subscribe(topic, 1)
        options = options_for(
            one_mosquitto,
            redis_url,
            port=line.port,
            status_topic=topic,
            will=Will(topic=topic, payload=b"offline"),
        )
        with bridging(options) as bridge:
            ready(bridge)
            wait_until(lambda: told == [b"online"])
            line.cut()  # without a good-bye: its last will
            wait_until(lambda: told == [b"online", b"offline", b"online"])
            ready(bridge)
        wait_until(lambda: told == [b"online", b"offline", b"online", b"offline"])
    with connected(one_mosquitto) as late:  # what is retained is the end
        late.on_message = lambda _client, _data, message: told.append(bytes(message.payload))
        late.subscribe(topic, 1)
        wait_until(lambda: len(told) == 5)
    assert told[-1] == b"offline"
    publish(one_mosquitto, [(topic, b"")], retain=True)


class Choosy(Broker):
    """amqtt, which lets nobody subscribe to anything but `devices/…`."""

    def command(self) -> list[str]:
        allowed = "amqtt.plugins.topic_checking.TopicAccessControlListPlugin"
        plugins = ANYBODY | {allowed: {"acl": {"anonymous": ["devices/#"]}}}
        listener = {"bind": f"127.0.0.1:{self.port}"}
        program = "import asyncio; from standalone.mqtt_broker import serve; asyncio.run(serve({}, {}))"
        return [sys.executable, "-c", program.format(listener, plugins)]


def test_a_subscription_that_is_refused_is_told_and_no_health(
    tmp_path: Path, start: Start, client: redis.Redis, redis_url: str
) -> None:
    """What the other subscriptions bring is carried all the same."""
    with running(Choosy, tmp_path) as broker, capture_logs() as logs:
        bridge = start(options_for(broker, redis_url))
        wait_until(lambda: [log for log in logs if log["event"] == "mqtt_subscription_refused"])
        (told,) = [log for log in logs if log["event"] == "mqtt_subscription_refused"]
        assert told["reason"].startswith("pico/+/+: ")
        assert "Unspecified error" in told["reason"]  # the reason of the refusal, not of the first filter
        assert "BRIDGE_TOPICS" in told["remedy"]
        health = bridge.health_check()
        assert (health["mqtt"], health["running"], health["redis"]) == (False, True, True)
        publish(broker, readings(1))
        wait_until(lambda: all_there(client, readings(1)))
        bridge.stop()
        wait_until(lambda: not bridge.health_check()["running"])


def test_without_a_broker_the_bridge_runs_says_so_and_is_not_well(start: Start, redis_url: str) -> None:
    nobody = proxy_to(("127.0.0.1", 1))
    with nobody as gone:
        url = f"mqtt://127.0.0.1:{gone.port}"
    with capture_logs() as logs:
        options = BridgeOptions(
            redis=redis_url,
            mqtt=MqttOptions(url=url, client_id="alone"),
            filters=FILTERS,
            filters_chosen=True,
            limits=LIMITS,
            bounds=Bounds(count=10, size=1 << 20, when_full=WhenFull.STOP),
        )
        bridge = start(options)
        wait_until(lambda: [log for log in logs if log["event"] == "mqtt_unreachable"])
        health = bridge.health_check()
        assert (health["mqtt"], health["running"], health["redis"]) == (False, True, True)


# As a process


@contextlib.contextmanager
def process(
    log: Path, broker: Broker, redis_url: str, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "MQTT_URL": broker.url(),
        "REDIS_URL": redis_url,
        "TOPIC_TEMPLATES": ",".join(LIMITS.topic_templates),
        "STATUS_TEMPLATES": ",".join(LIMITS.status_templates),
        **settings,
    }
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    with log.open("wb") as out:
        found = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "bridge"],
            env={**clean, **environment},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield found
    finally:
        found.kill()
        found.wait()


def test_a_stop_empties_the_queue_first_and_ends_with_status_0(
    one_mosquitto: Mosquitto, client: redis.Redis, away: Proxy, tmp_path: Path
) -> None:
    log = tmp_path / "bridge.log"
    options = options_for(one_mosquitto, by_way_of(away))
    with process(
        log, one_mosquitto, by_way_of(away), BRIDGE_NAME=options.mqtt.client_id, BRIDGE_BATCH_SIZE="3"
    ) as bridge:
        wait_until(lambda: "mqtt_connected" in log.read_text(), what=f"a connection: {log}")
        publish(one_mosquitto, readings(1))
        wait_until(lambda: len(entries(client)) == 1)
        hang_up(away)
        publish(one_mosquitto, readings(15, first=1))
        wait_until(lambda: "outage_began" in log.read_text())
        bridge.terminate()
        wait_until(lambda: "stop_waits_for_server" in log.read_text())
        back(away)
        assert bridge.wait(20) == 0
    assert payloads(client) == Counter(payload for _, payload in readings(16))
    assert "bridge_stopped" in log.read_text()
    assert "values" not in log.read_text()  # no payload in the log
    assert nothing_left(one_mosquitto, options)
