"""What a worker says to its servers, message by message: a proxy that knows the words.

A `Tap` passes whole messages on, one at a time, and names each: a command or a script of Redis, a statement
or a part of a COPY of PostgreSQL. It also knows when the answer to a message is complete. So a test can do
something, say kill whoever sent it, before a message is passed on or after its answer came.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol

import hiredis

import redis_scripts
from tests.faults import Proxy


class Message(NamedTuple):
    """Something a client sends. `answered`: there will be an answer to it."""

    label: str
    data: bytes
    answered: bool


class Do(Enum):
    PASS = "pass"
    DROP = "drop"  # this message and all that come behind it
    HALF = "half"  # as DROP, after half of its bytes
    LAST = "last"  # pass it, and drop all that come behind it


class Words(Protocol):
    """One connection: cuts what comes from either side."""

    def sent(self, piece: bytes) -> Iterator[Message]:
        """The messages that are complete with this piece."""

    def answers(self, piece: bytes) -> list[bool]:
        """The answers that are complete with this piece: False where it says that there is nothing."""


_SCRIPTS = {
    hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name
    for name, text in vars(redis_scripts).items()
    if name.isupper() and isinstance(text, str)
}


class Resp:
    """Redis's protocol."""

    def __init__(self) -> None:
        self._commands, self._replies = hiredis.Reader(), hiredis.Reader()

    def sent(self, piece: bytes) -> Iterator[Message]:
        self._commands.feed(piece)
        while (command := self._commands.gets()) is not False:
            yield Message(_label(command), hiredis.pack_command(tuple(command)), True)

    def answers(self, piece: bytes) -> list[bool]:
        self._replies.feed(piece)
        found = []
        while (reply := self._replies.gets()) is not False:
            found.append(not _is_empty(reply))
        return found


def _is_empty(reply: object) -> bool:
    """Whether a read of streams brought nothing: no answer, or streams without entries."""
    if isinstance(reply, list) and all(isinstance(one, list) and len(one) == 2 for one in reply):
        return all(one[1] == [] for one in reply)
    return reply is None


def _label(command: list[bytes]) -> str:
    name = command[0].decode().upper()
    if name == "EVALSHA":
        return _SCRIPTS.get(command[1].decode(), "a script")
    if name == "EVAL":
        return _SCRIPTS.get(hashlib.sha1(command[1], usedforsecurity=False).hexdigest(), "a script")
    if name == "XREADGROUP":
        return "XREADGROUP new" if command[-1] == b">" else "XREADGROUP own"
    if name in ("SCRIPT", "CLIENT", "XGROUP", "XINFO"):
        return f"{name} {command[1].decode().upper()}"
    return name


class Libpq:
    """PostgreSQL's protocol, from the client's first byte on, without TLS."""

    def __init__(self) -> None:
        self._in, self._out = b"", b""
        self._started = False
        self._frames: list[tuple[bytes, bytes]] = []
        self._statements: dict[bytes, str] = {}
        self._label = ""
        self._extended = False
        self._purpose = ""  # the first statement of the transaction that is not a setting

    def sent(self, piece: bytes) -> Iterator[Message]:
        self._in += piece
        while (frame := self._frame()) is not None:
            self._frames.append(frame)
            if (ended := self._ended()) is not None:
                yield ended._replace(label=self._in_transaction(ended.label))

    def _in_transaction(self, label: str) -> str:
        """COMMIT says what it is the end of: all look the same otherwise."""
        if label.startswith("begin"):
            self._purpose = ""
        elif label == "commit":
            return f"commit: {self._purpose or 'nothing'}"
        elif not self._purpose and not label.startswith("select set_config"):
            self._purpose = label
        return label

    def _frame(self) -> tuple[bytes, bytes] | None:
        head = 1 if self._started else 0
        if len(self._in) < head + 4:
            return None
        size = head + int.from_bytes(self._in[head : head + 4], "big")
        if len(self._in) < size:
            return None
        data, self._in = self._in[:size], self._in[size:]
        kind = data[:1] if self._started else b"start"
        self._started = True
        return kind, data

    def _ended(self) -> Message | None:
        """The message that the last frame has completed."""
        kind, data = self._frames[-1]
        if kind == b"Q":
            self._extended, self._label = False, _words(data[5:])
        elif kind == b"P":
            name, _, rest = data[5:].partition(b"\0")
            self._label = self._statements[name] = _words(rest)
        elif kind == b"B":
            name = data[5:].partition(b"\0")[2].partition(b"\0")[0]
            self._label, self._extended = self._statements.get(name, "?"), True
        if kind not in (b"start", b"p", b"Q", b"S", b"d", b"c", b"f", b"X"):
            return None
        if kind in (b"c", b"f") and self._extended:
            return None  # Sync comes behind it
        kinds = [kind for kind, _ in self._frames]
        message = b"".join(data for _, data in self._frames)
        self._frames = []
        if b"c" in kinds or b"f" in kinds:
            return Message(self._label + ": end", message, True)
        if kind == b"d":
            return Message(self._label + ": rows", message, False)
        if kind == b"X":
            return Message("goodbye", message, False)
        if kind in (b"start", b"p"):
            return Message("log in", message, True)
        prepares = b"P" in kinds and b"B" not in kinds
        return Message(f"prepare {self._label}" if prepares else self._label, message, True)

    def answers(self, piece: bytes) -> list[bool]:
        self._out += piece
        found = []
        while len(self._out) >= 5:
            size = 1 + int.from_bytes(self._out[1:5], "big")
            if len(self._out) < size:
                break
            kind, body = self._out[:1], self._out[5:size]
            self._out = self._out[size:]
            asks = kind == b"R" and int.from_bytes(body[:4], "big") not in (0, 12)
            if kind in (b"Z", b"G") or asks:
                found.append(True)
        return found


def _words(text: bytes) -> str:
    """The first words of a statement, by which it is known."""
    found = text.partition(b"\0")[0].decode("utf-8", "replace").lower()
    words = re.findall(r"[a-z_]+", found)
    if words[:1] == ["copy"]:
        return " ".join(words[:2])
    return " ".join(words[:5])


class _Connection:
    def __init__(self, protocol: Words) -> None:
        self.protocol = protocol
        self.waiting: deque[str] = deque()  # the messages whose answers are still to come
        self.shut = False  # nothing more is passed on


class Tap(Proxy):
    """A proxy that asks `watch` what to do with each message, and tells `answered` of each answer before
    the client hears of it: to what, and whether it says anything but that there is nothing.

    `done` is called when the last message that a connection passes on, by `watch`, is done: answered, if it
    is one that will be. The client has not heard of it.
    """

    def __init__(self, upstream: str | tuple[str, int], protocol: Callable[[], Words]) -> None:
        self._protocol = protocol
        self._known: dict[socket.socket, _Connection] = {}
        self.watch: Callable[[str], Do] = lambda _: Do.PASS
        self.answered: Callable[[str, bool], None] = lambda _label, _something: None
        self.done: Callable[[], None] = lambda: None
        super().__init__(upstream)

    def _pass(self, side: socket.socket, *, to_server: bool) -> None:
        try:
            piece = side.recv(1 << 20)
        except OSError:
            piece = b""
        other = self._pairs[side]
        client = side if to_server else other
        if not piece:
            self._known.pop(client, None)
            self._close(side)
            return
        known = self._known.setdefault(client, _Connection(self._protocol()))
        try:
            if to_server:
                self._from_client(known, other, piece)
            else:
                for says_something in known.protocol.answers(piece):
                    if known.waiting:
                        self.answered(known.waiting.popleft(), says_something)
                if known.shut and not known.waiting:
                    self.done()
                other.sendall(piece)
        except OSError:
            self._known.pop(client, None)
            self._close(side)

    def _from_client(self, known: _Connection, server: socket.socket, piece: bytes) -> None:
        for message in known.protocol.sent(piece):
            if known.shut:
                return
            what = self.watch(message.label)
            known.shut = what is not Do.PASS
            if what is Do.DROP:
                return
            if what is Do.HALF:
                server.sendall(message.data[: len(message.data) // 2])
            else:
                server.sendall(message.data)
                if message.answered:
                    known.waiting.append(message.label)
            if known.shut and (what is Do.HALF or not message.answered):
                self.done()
