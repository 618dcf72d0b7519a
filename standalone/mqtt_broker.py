"""An MQTT broker out of a Python wheel, amqtt, for one-command use: loopback only, MQTT 3.1.1.

It keeps nothing for clients that are away, nor over a restart. Run as a program, it serves on the port that
is its argument until it is stopped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from standalone.ports import free_port
from standalone.servers import Server, ServerFailed, ServerMissing

USUAL_PORT = 1883
_LISTENS = "listening"
_TAKEN = "address already in use"
ANYBODY: dict[str, Any] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class MqttBroker(Server):
    """The broker as a child process, on the usual port where that is free, else on another one."""

    name = "mqtt-broker"
    protocol = "3.1.1"

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        if not importlib.util.find_spec("amqtt"):
            raise ServerMissing(
                "there is no embedded MQTT broker (package amqtt); install a broker, such as mosquitto, "
                "and give its address with --mqtt-url"
            )
        self.port = 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        root = Path(__file__).resolve().parent.parent
        for preferred in (USUAL_PORT, 0, 0):  # somebody may take a port that has just been free
            self.port = free_port(preferred)
            self._began = self.log.stat().st_size if self.log.exists() else 0
            self._spawn([sys.executable, "-m", "standalone.mqtt_broker", str(self.port)], cwd=root)
            try:
                self._wait_until(self._answers)
            except ServerFailed:
                if _TAKEN not in self._said():
                    raise
            else:
                return
        raise ServerFailed(f"{self.name} found no free port; the end of {self.log}:\n{self._tail()}")

    def _answers(self) -> bool:
        return _LISTENS in self._said()  # its own word: on a port that is taken, somebody else answers

    def _said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._began)
            return log.read().decode(errors="replace")


async def serve(listener: dict[str, Any], plugins: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT."""
    from amqtt.broker import Broker

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    broker = Broker({"listeners": {"default": {"type": "tcp", **listener}}, "plugins": plugins})
    await broker.start()
    print(_LISTENS, flush=True)
    await stopped.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve({"bind": f"127.0.0.1:{sys.argv[1]}"}, ANYBODY))
