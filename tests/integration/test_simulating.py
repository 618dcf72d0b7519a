"""Simulated devices on real brokers: what was counted as accepted is what a subscriber receives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from structlog.testing import capture_logs

import main
from mqtt.feeds import Recorded
from mqtt.options import MqttOptions
from mqtt.plan import Crowd, Message, Plan
from mqtt.scenario import Fault, Flaw, Scenario
from mqtt.simulator import SendOptions, Simulator
from mqtt.tally import Tally, manifest
from retry import StopFlag
from tests.broker import Broker, Mosquitto, Recorder, missing
from tests.stub_broker import Stub
from tests.support import ROOT, wait_until

TROUBLE = Scenario(
    duplicate=Fault(0.1, 0, 0.1),
    disorder=Fault(0.1, 0, 0.1),
    burst=Fault(0.05, 1, 5),
    bad=tuple((flaw, 0.02) for flaw in Flaw),
    status_topic="devices/{device_id}/status",
)


class Listener(Recorder):
    """Keeps payloads as they come."""

    def __init__(self, broker: Broker) -> None:
        self.payloads: list[tuple[str, bytes]] = []
        super().__init__(broker)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if not message.topic.startswith("$"):
            self.payloads.append((message.topic, bytes(message.payload)))


# For what does not depend on the broker: the fastest there is to start.
ONE_BROKER = pytest.mark.parametrize(
    "broker", [Broker if missing(Mosquitto) else Mosquitto], indirect=True, ids=lambda kind: kind.__name__
)


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    found = Listener(broker)
    found.wait_subscribed()
    yield found
    found.close()


def plan_of(scenario: Scenario, rate: float = 0.0) -> Plan:
    crowd = Crowd(devices=5, templates=("devices/{device_id}/telemetry", "pico/{sensor_type}/{device_id}"))
    feed = Recorded(("a", "b"), [(("1", 1.0), ("2.5", 2.5)), (("3", 3.0), ("4", 4.0))], 5)
    began = time.monotonic()
    now: Callable[[int], float] = (lambda n: n / rate) if rate else (lambda _: time.monotonic() - began)
    return Plan(crowd, scenario, feed, random.Random(1), now, time.time_ns() // 1_000_000 * 1000)


class Run:
    """A simulation in a thread of its own, with what it told."""

    def __init__(
        self,
        url: str,
        scenario: Scenario = TROUBLE,
        *,
        version_5: bool = False,
        rate: float = 0.0,
        **options: Any,
    ) -> None:
        self.accepted: list[Message] = []
        self.sent: list[Message] = []
        self.tally, self.stop = Tally(), StopFlag(10)
        mqtt = MqttOptions(url=url, client_id=f"sim-{id(self):x}", version_5=version_5, most_in_flight=0)
        self.simulator = Simulator(
            mqtt,
            SendOptions(paced=rate > 0, **options),
            self.tally,
            self.stop,
            on_accepted=self.accepted.append,
        )
        self._plan = plan_of(scenario, rate)
        self._seen = (-1, 0.0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.simulator.run(self._noted())

    def _noted(self) -> Iterator[Message | None]:
        """The plan; what was asked for before the last one was published."""
        for message in self._plan:
            if message:
                self.sent.append(message)
            yield message

    def published(self) -> Counter[tuple[str, bytes]]:
        return Counter((message.topic, message.payload) for message in self.sent[: self.tally.published])

    def still(self) -> bool:
        """Whether nothing has been accepted for 0.2 s."""
        count, now = self.tally.accepted, time.monotonic()
        if count != self._seen[0]:
            self._seen = (count, now)
        return now - self._seen[1] > 0.2

    def join(self, seconds: float = 60.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()


def run_on(broker: Broker, scenario: Scenario = TROUBLE, **options: Any) -> Run:
    return Run(broker.url(), scenario, version_5=broker.version_5, **options)


def test_a_subscriber_receives_exactly_what_was_accepted(broker: Broker, listener: Listener) -> None:
    run = run_on(broker, messages=600)
    run.join()
    assert (run.tally.published, run.tally.accepted, run.tally.resent) == (600, 600, 0)
    wait_until(lambda: len(listener.payloads) >= 600, what="all messages")
    assert Counter(listener.payloads) == run.published()
    assert run.tally.expected_rows == sum(len(list(manifest(message))) for message in run.accepted)


def test_a_broker_that_is_killed_in_the_middle_costs_no_message(broker: Broker, listener: Listener) -> None:
    run = run_on(broker, Scenario(), messages=900, rate=300)
    wait_until(lambda: run.tally.accepted >= 100, what="the first messages")
    # Frozen first, so that messages are in flight for certain when it dies.
    broker.freeze()
    wait_until(lambda: run.tally.not_accepted >= 20 and run.still(), what="messages in flight")
    broker.kill()
    broker.start()
    run.join()
    assert (run.tally.published, run.tally.accepted) == (900, 900)
    assert run.tally.resent >= 20
    # A broker that keeps nothing over a kill loses what it had accepted and not passed on; never what is
    # accepted after it.
    received = Counter(listener.payloads)
    wait_until(
        lambda: (run.sent[899].topic, run.sent[899].payload) in listener.payloads, what="the last one"
    )
    received = Counter(listener.payloads)
    assert not [
        message for message in run.sent[200:900] if (message.topic, message.payload) not in received
    ]


@ONE_BROKER
def test_the_rate_is_held_by_the_clock(broker: Broker, listener: Listener) -> None:
    run = run_on(broker, Scenario(), rate=200, seconds=1.5)
    run.join()
    assert run.tally.accepted == 300
    assert 1.49 <= run.simulator.elapsed < 4


@ONE_BROKER
def test_a_frozen_broker_is_given_up_on_after_the_wait_and_what_is_open_is_told(broker: Broker) -> None:
    with capture_logs():
        run = run_on(broker, Scenario(), wait_sec=0.3, window=7)
        wait_until(lambda: run.tally.accepted > 0, what="the first message")
        broker.freeze()
        wait_until(lambda: run.tally.not_accepted == 7 and run.still(), what="a full window")
        run.stop.set()
        run.join(20)
    figures = run.tally.as_dict()["expected"]
    assert run.tally.not_accepted == 7
    assert isinstance(figures, dict)
    assert figures["rows_at_most"] - figures["rows"] >= 7


def test_a_refusal_is_counted_and_told_with_what_to_check() -> None:
    stub = Stub()
    try:
        stub.answers = {"devices/sim-1/telemetry": 0x87, **dict.fromkeys(_TOPICS, 0)}
        with capture_logs() as logs:
            run = Run(f"mqtt://127.0.0.1:{stub.port}", Scenario(), version_5=True, messages=30, wait_sec=5)
            run.join()
        # devices 1, 3 and 5 of five send whole messages
        assert (run.tally.published, run.tally.accepted, run.tally.refused) == (30, 24, 6)
        assert [log for log in logs if log["event"] == "mqtt_publication_refused"]
    finally:
        stub.close()


_TOPICS = [f"devices/sim-{n}/telemetry" for n in (3, 5)]
_TOPICS += [f"pico/{sensor}/sim-{n}" for n in (2, 4) for sensor in "ab"]


def test_no_more_than_the_window_is_ever_open() -> None:
    stub = Stub()  # answers nothing
    try:
        run = Run(f"mqtt://127.0.0.1:{stub.port}", Scenario(), version_5=True, window=5, wait_sec=0.2)
        wait_until(lambda: len(stub.topics) == 5, what="a full window")
        run.stop.set()
        run.join()
        assert len(stub.topics) == run.tally.published == 5
    finally:
        stub.close()


@ONE_BROKER
@pytest.mark.parametrize("qos", [0, 2])
def test_the_other_qualities_of_service_arrive_too(broker: Broker, listener: Listener, qos: int) -> None:
    run = run_on(broker, messages=200, qos=qos)
    run.join()
    assert run.tally.accepted == 200
    wait_until(lambda: len(listener.payloads) >= 200, what="all messages")
    assert Counter(listener.payloads) == run.published()


@ONE_BROKER
def test_the_command_runs_until_a_signal_and_its_manifest_is_what_was_received(
    broker: Broker, listener: Listener, tmp_path: Path
) -> None:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("DATABASE_", "REDIS_"))
    }
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "simulate", "--json", "--rate", "500", "--seed", "3",
             "--manifest", "m.jsonl"],
            cwd=tmp_path,
            env={**clean, "MQTT_URL": broker.url(), "MQTT_PROTOCOL": "5" if broker.version_5 else "3.1.1"},
            stdout=subprocess.PIPE,
            stderr=errors,
        )  # fmt: skip
        wait_until(lambda: len(listener.payloads) > 200, what=f"messages: {log}")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, log.read_text()
    figures = json.loads(out)
    wait_until(lambda: len(listener.payloads) >= figures["accepted"]["messages"], what="the rest")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(lines) == figures["expected"]["rows"] == 6 * figures["accepted"]["messages"]
    assert Counter((line["device"], line["sensor"], line["value"]) for line in lines) == Counter(
        (topic.split("/")[1], sensor, value)
        for topic, payload in listener.payloads
        for sensor, value in json.loads(payload)["values"].items()
    )


def test_a_broker_that_is_not_there_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("MQTT_URL", "mqtt://127.0.0.1:1")
    monkeypatch.setattr("mqtt.simulate.stop_on_signals", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert main.main(["simulate", "--for", "0.1", "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["published"]["messages"] == 0
    assert "there was no connection to the broker" in shown.err
