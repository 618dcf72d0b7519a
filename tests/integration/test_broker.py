"""The brokers of the tests: what mosquitto keeps over a restart, and where it may be missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.broker import Broker, Mosquitto, end, needed, running
from tests.support import wait_until

StartMosquitto = Callable[..., Mosquitto]
MESSAGES = [f"message {number}".encode() for number in range(50)]


class Session:
    """A client with a session that outlives it. With `acknowledge` False it receives but takes nothing."""

    def __init__(self, broker: Broker, name: str, *, acknowledge: bool = True) -> None:
        self.received: list[bytes] = []
        self.subscriptions = 0
        version = CallbackAPIVersion.VERSION2
        self.client = paho.Client(version, name, protocol=paho.MQTTv5, manual_ack=not acknowledge)
        self.client.on_message = lambda _client, _data, message: self.received.append(
            bytes(message.payload)
        )
        self.client.on_subscribe = self._on_subscribe
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", broker.port, clean_start=False, properties=properties)
        self.client.loop_start()

    def _on_subscribe(self, *_: object) -> None:
        self.subscriptions += 1

    def subscribe(self) -> None:
        self.client.subscribe("#", qos=1)
        wait_until(lambda: self.subscriptions, what="the subscription")

    def publish(self) -> None:
        """All messages, each acknowledged by the broker."""
        for payload in MESSAGES:
            self.client.publish("t", payload, qos=1).wait_for_publish(30)

    def wait_for(self, count: int) -> list[bytes]:
        wait_until(lambda: len(self.received) >= count, what=f"{count} messages")
        return self.received

    def close(self) -> None:
        self.client.disconnect()
        end(self.client)


@contextlib.contextmanager
def session(broker: Broker, name: str, *, acknowledge: bool = True) -> Iterator[Session]:
    found = Session(broker, name, acknowledge=acknowledge)
    try:
        yield found
    finally:
        found.close()


def publish_to_absent_reader(broker: Broker) -> None:
    with session(broker, "reader") as reader:
        reader.subscribe()
    with session(broker, "writer") as writer:
        writer.publish()


def test_what_was_acknowledged_and_not_yet_taken_is_delivered_after_an_orderly_restart(
    mosquitto: StartMosquitto,
) -> None:
    broker = mosquitto(persistence=True)
    publish_to_absent_reader(broker)
    with session(broker, "reader", acknowledge=False) as reader:
        reader.wait_for(20)  # in its hands, and not taken either
    broker.stop()
    broker.start()
    with session(broker, "reader") as reader:
        assert reader.wait_for(len(MESSAGES)) == MESSAGES


def test_what_was_saved_survives_a_kill(mosquitto: StartMosquitto) -> None:
    broker = mosquitto(persistence=True, autosave_changes=1)
    publish_to_absent_reader(broker)

    def saved() -> bool:
        return broker.database.exists() and MESSAGES[-2] in broker.database.read_bytes()

    wait_until(saved, what="the messages in the file")
    broker.kill()
    broker.start()
    with session(broker, "reader") as reader:
        assert reader.wait_for(len(MESSAGES) - 1)[: len(MESSAGES) - 1] == MESSAGES[:-1]


def test_without_persistence_a_restart_forgets(mosquitto: StartMosquitto) -> None:
    broker = mosquitto()
    publish_to_absent_reader(broker)
    broker.stop()
    broker.start()
    with session(broker, "reader") as reader:
        reader.subscribe()  # the answer would come behind whatever the session still held
        assert reader.received == []


def test_no_more_is_in_flight_to_a_client_that_takes_nothing_than_the_limit(
    mosquitto: StartMosquitto,
) -> None:
    broker = mosquitto(max_inflight_messages=7)
    publish_to_absent_reader(broker)
    with session(broker, "reader", acknowledge=False) as reader:
        reader.wait_for(7)
        reader.subscribe()  # the answer would come behind an eighth
        assert reader.received == MESSAGES[:7]


def test_no_more_is_queued_for_a_client_that_is_away_than_the_limit(mosquitto: StartMosquitto) -> None:
    broker = mosquitto(max_inflight_messages=5, max_queued_messages=10)
    publish_to_absent_reader(broker)
    with session(broker, "reader") as reader:
        reader.wait_for(10)
        reader.subscribe()
        assert len(reader.received) < len(MESSAGES)
        assert reader.received == MESSAGES[: len(reader.received)]


def test_amqtt_refuses_an_option_that_it_has_not(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="persistence"), running(Broker, tmp_path, persistence=True):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"CI": "true"}, True),
        ({"CI": "true", "SLUICE_TESTS_NEED": ""}, False),
        ({"SLUICE_TESTS_NEED": "mosquitto"}, True),
        ({"SLUICE_TESTS_NEED": "something else"}, False),
    ],
)
def test_mosquitto_is_needed_in_ci_and_where_it_is_named(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "SLUICE_TESTS_NEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert needed(Mosquitto) == expected
    assert not needed(Broker)
