"""A connection to Redis that hiredis alone speaks over: the least that Python can do."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import hiredis
import redis

Command = tuple[Any, ...]


class Wire:
    """redis-py has opened it, and gives it back never. Raises what Redis answers as an error."""

    def __init__(self, client: redis.Redis) -> None:
        connection: Any = client.connection_pool.get_connection()
        self._socket: socket.socket = connection._sock
        self._reader = hiredis.Reader()

    def ask(self, command: Command) -> Any:
        self._socket.sendall(hiredis.pack_command(command))
        return self._answer()

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        return [self._answer() for _ in commands]

    def _answer(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(262_144)
            if not data:
                raise SystemExit("Redis closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply
