"""A real MQTT broker for tests, as a process: amqtt out of its wheel, or mosquitto where it is installed.

amqtt speaks MQTT 3.1.1 only, so version 5 is tested with mosquitto. Both listen on loopback, on a port
that stays the same over restarts. Neither keeps anything over a restart, but mosquitto with `persistence`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from standalone.ports import free_port
from standalone.servers import die_with_parent
from tests.support import ROOT, is_needed, wait_until


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerOptions:
    """What a broker is started with. Without a user everybody may come in."""

    username: str = ""
    password: str = ""
    certificate: str = ""
    key: str = ""
    ca_certificate: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MosquittoOptions(BrokerOptions):
    """What amqtt has not. A limit that is None is mosquitto's own, and 0 is none.

    `persistence`: sessions and messages go to a folder of the broker's own when it is stopped in order,
    and, unless `autosave_changes` is 0, after more changes than that. A start finds them there.
    """

    persistence: bool = False
    autosave_changes: int = 0
    max_inflight_messages: int | None = None
    max_queued_messages: int | None = None


def end(client: paho.Client) -> None:
    """Stop its thread and close the pair of sockets that wakes it, which paho leaves to the collector.

    What it collects late warns in a test that has nothing to do with it, and the warning fails that.
    """
    client.loop_stop()
    client.reinitialise()


class Broker:
    """amqtt in a process of its own, started, frozen and stopped by its id."""

    version_5 = False
    options_type: type[BrokerOptions] = BrokerOptions

    def __init__(self, folder: Path, options: BrokerOptions) -> None:
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"broker-{self.port}.log"

    @property
    def scheme(self) -> str:
        return "mqtts" if self.options.certificate else "mqtt"

    def url(self, port: int = 0) -> str:
        return f"{self.scheme}://127.0.0.1:{port or self.port}"

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "tests.amqtt_broker",
            json.dumps(asdict(self.options) | {"port": self.port}),
        ]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        wait_until(self._listens, what=f"the broker listening: {self.log}")

    def stop(self) -> None:
        """SIGTERM, and wait for its end: with persistence everything is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: clients see their connection end, and what was not saved by then is lost."""
        self._end(signal.SIGKILL)

    def _end(self, sign: signal.Signals) -> None:
        process, self.process = self.process, None
        if process and process.poll() is None:
            process.send_signal(sign)
            process.send_signal(signal.SIGCONT)  # one that is frozen takes no other
            process.wait(30)

    def freeze(self) -> None:
        """Connections stay, and nothing is answered any more."""
        assert self.process
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGCONT)

    def _listens(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2):
            return True
        return False


class Mosquitto(Broker):
    """Eclipse mosquitto, MQTT 5."""

    version_5 = True
    options_type = MosquittoOptions

    @property
    def database(self) -> Path:
        """Where persistence keeps sessions and messages."""
        return self.folder / f"mosquitto-{self.port}" / "mosquitto.db"

    def command(self) -> list[str]:
        options = self.options
        assert isinstance(options, MosquittoOptions)
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(not options.username).lower()}"]
        if options.username:
            passwords = self.folder / f"passwords-{self.port}"
            passwords.write_text(f"{options.username}:{options.password}\n")
            subprocess.run([_mosquitto("mosquitto_passwd") or "", "-U", str(passwords)], check=True)
            lines.append(f"password_file {passwords}")
        if options.certificate:
            lines += [f"certfile {options.certificate}", f"keyfile {options.key}"]
            lines += [f"cafile {options.ca_certificate}", "require_certificate true"]
        for limit in ("max_inflight_messages", "max_queued_messages"):
            if getattr(options, limit) is not None:
                lines.append(f"{limit} {getattr(options, limit)}")
        if options.persistence:
            self.database.parent.mkdir(exist_ok=True)
            lines += ["persistence true", f"persistence_location {self.database.parent}/"]
            lines += ["autosave_on_changes true", f"autosave_interval {options.autosave_changes}"]
        if os.getuid() == 0:
            lines.append("user root")
        settings = self.folder / f"mosquitto-{self.port}.conf"
        settings.write_text("\n".join(lines) + "\n")
        return [_mosquitto("mosquitto") or "", "-c", str(settings)]


def _mosquitto(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


KINDS: list[type[Broker]] = [Broker, Mosquitto]


def missing(kind: type[Broker]) -> str:
    """Why there is no broker of this kind on this machine; empty where there is one."""
    if kind is not Mosquitto or (_mosquitto("mosquitto") and _mosquitto("mosquitto_passwd")):
        return ""
    return "needs mosquitto, the broker for MQTT 5 (Debian and Ubuntu: apt install mosquitto)"


def needed(kind: type[Broker]) -> bool:
    """Whether tests fail without it, rather than being left out."""
    return is_needed(kind.__name__.lower())


@contextlib.contextmanager
def running(kind: type[Broker], folder: Path, **options: Any) -> Iterator[Broker]:
    """A broker, killed in the end. Raises: TypeError for an option that this kind has not."""
    broker = kind(folder, kind.options_type(**options))
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


class Recorder:
    """Subscribes to everything, with QoS 1, and keeps what comes. Comes back quickly after an outage."""

    def __init__(self, broker: Broker) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"recorder-{id(self):x}",
            protocol=paho.MQTTv5 if broker.version_5 else paho.MQTTv311,
        )
        self._client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]  # paho only adds and compares
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_message = self._on_message
        if broker.options.username:
            self._client.username_pw_set(broker.options.username, broker.options.password)
        self._client.connect_async("127.0.0.1", broker.port)
        self._client.loop_start()

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        client.subscribe("#", qos=1)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if not message.topic.startswith("$"):
            self.messages.append((message.topic, json.loads(message.payload)))

    @property
    def told(self) -> list[tuple[str, str]]:
        """(id, event) of each message, in the order of their arrival."""
        return [(body["id"], body["event_type"]) for _, body in self.messages]

    def wait_subscribed(self) -> None:
        wait_until(self._subscribed.is_set, what="the subscription")

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while len(self.messages) < count:
            assert time.monotonic() < deadline, f"{len(self.messages)} of {count} messages in {seconds} s"
            threading.Event().wait(0.01)

    def close(self) -> None:
        self._client.disconnect()
        end(self._client)


@contextlib.contextmanager
def recording(broker: Broker) -> Iterator[Recorder]:
    recorder = Recorder(broker)
    try:
        recorder.wait_subscribed()
        yield recorder
    finally:
        recorder.close()
