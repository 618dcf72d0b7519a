"""A broker that answers as a test tells it to, down to the reason code."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any


class Stub:
    """A broker of the test's own: takes one client at a time, answers each publication with `answer`.

    MQTT 5. `answer` gets the topic: a reason code, or None for no answer at all.
    """

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.answers: dict[str, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing = False
        self.port: int = self._listener.getsockname()[1]
        self._listener.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            with contextlib.suppress(OSError, EOFError):
                client, _ = self._listener.accept()
                with client, client.makefile("rb") as stream:
                    client.settimeout(20)
                    while True:
                        self._answer(client, *_packet(stream))

    def _answer(self, client: socket.socket, kind: int, body: bytes) -> None:
        if kind == 1:  # CONNECT
            client.sendall(b"\x20\x03\x00\x00\x00")
        elif kind == 3:  # PUBLISH, QoS 1
            end = 2 + int.from_bytes(body[:2], "big")
            topic = body[2:end].decode()
            self.topics.append(topic)
            if topic in self.answers:
                client.sendall(b"\x40\x03" + body[end : end + 2] + bytes([self.answers[topic]]))
        elif kind == 12:  # PINGREQ
            client.sendall(b"\xd0\x00")

    def close(self) -> None:
        self._closing = True
        self._listener.close()


def _packet(stream: Any) -> tuple[int, bytes]:
    """Kind and body of the next packet (MQTT 5, 2.1)."""
    first = stream.read(1)
    if not first:
        raise EOFError
    length = shift = 0
    while True:
        digit = stream.read(1)[0]
        length |= (digit & 127) << shift
        shift += 7
        if digit < 128:
            return first[0] >> 4, stream.read(length)
