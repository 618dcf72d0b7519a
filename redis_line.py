"""A connection to Redis whose replies are taken later than the commands are sent.

So Redis works while this process does something else, without a thread: what it has to say waits in the
socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.connection import Connection

from redis_client import packed

Command = tuple[bytes | str | int, ...]


class Line:
    """Sends commands and takes their replies, in the same order. Raises redis errors as they come.

    After any error but one that a reply says, what was still due is lost; whether it was done, nobody
    knows.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Connection | None = None
        self._due = 0  # replies that were not taken yet
        self._number = 0  # of the connection: replies come on the one that the commands went out on

    def send(self, commands: Sequence[Command]) -> int:
        """Send `commands` in one go; Redis does them one after the other. Answers what `take`
        wants to know.
        """
        if not self._due and self._has_ended():
            self.drop()
        if self._connection is None:
            self._connection = self._pool.get_connection()
        try:
            message = b"".join(packed(*command) for command in commands)
            self._connection.send_packed_command([message])  # type: ignore[no-untyped-call]
        except BaseException:
            self.drop()
            raise
        self._due += len(commands)
        return self._number

    def take(self, sent: int) -> Any:
        """The next reply, as Redis sent it; waits for it. `sent`: what `send` answered. Raises what the
        reply says, too.
        """
        if self._connection is None or sent != self._number:
            raise redis.ConnectionError("the connection was lost before the reply came")
        self._due -= 1
        try:
            return self._connection.read_response(disable_decoding=True)
        except redis.ResponseError:
            raise
        except BaseException:
            self.drop()
            raise

    def _has_ended(self) -> bool:
        """Whether the server has hung up meanwhile: while nothing is due there is nothing else to read."""
        try:
            return self._connection is not None and self._connection.can_read()
        except (redis.ConnectionError, redis.TimeoutError):
            return True

    def drop(self) -> None:
        """Close the connection: what was not taken is lost."""
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call]
            self._pool.release(self._connection)
        self._connection = None
        self._due = 0
        self._number += 1
