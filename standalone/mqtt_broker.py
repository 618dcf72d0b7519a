"""An MQTT broker out of a Python wheel, amqtt, for one-command use: loopback only, MQTT 3.1.1.

It keeps nothing for clients that are away, nor over a restart. Run as a program, it serves on the port that
is its argument until it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from standalone.servers import Server, ServerMissing

USUAL_PORT = 1883
ANYBODY: dict[str, Any] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class MqttBroker(Server):
    """The broker as a child process, on the usual port where that is free, else on another one."""

    name = "mqtt-broker"

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        if not importlib.util.find_spec("amqtt"):
            raise ServerMissing(
                "there is no embedded MQTT broker (package amqtt); install a broker, such as mosquitto, "
                "and give its address with --mqtt-url"
            )
        self.port = free_port(USUAL_PORT)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        root = Path(__file__).resolve().parent.parent
        self._spawn([sys.executable, "-m", "standalone.mqtt_broker", str(self.port)], cwd=root)
        self._wait_until(self._answers)

    def _answers(self) -> bool:
        """CONNECT gets CONNACK (MQTT 3.1.1, 3.1 and 3.2)."""
        connect = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04wait"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as client:
            client.sendall(connect)
            answer = client.recv(4)
            client.sendall(b"\xe0\x00")
            return answer.startswith(b"\x20\x02")
        return False


def free_port(preferred: int = 0) -> int:
    """A port on loopback that nobody listens on now: the preferred one where it is free."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    raise OSError("there is no free port on 127.0.0.1")


async def serve(listener: dict[str, Any], plugins: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT."""
    from amqtt.broker import Broker

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    broker = Broker({"listeners": {"default": {"type": "tcp", **listener}}, "plugins": plugins})
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve({"bind": f"127.0.0.1:{sys.argv[1]}"}, ANYBODY))
