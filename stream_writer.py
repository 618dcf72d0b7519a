"""Adding entries to streams: pipelined, and again until Redis has confirmed each. For the bridge."""

from __future__ import annotations

from collections.abc import Sequence

import redis

import redis_client
from metrics import CountsErrors
from retry import Patience, StopFlag


class StreamWriter:
    """XADDs through every outage of Redis. Belongs to one thread.

    A reply that is lost makes the same entries again: whoever reads them must tell by their contents.
    """

    def __init__(self, client: redis.Redis, stop: StopFlag, stats: CountsErrors, maxlen: int = 0) -> None:
        """`maxlen`: cut streams to about this length, read or not; 0: never."""
        self._client = client
        self._patience = Patience("redis", self._is_world, stop, stats)
        self._limit: tuple[bytes | int, ...] = (b"MAXLEN", b"~", maxlen) if maxlen else ()
        self._left: Sequence[tuple[bytes, Sequence[bytes]]] = ()

    def add(self, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        """Add each (stream, names and values in turn). Returns when Redis has confirmed all of them.

        Raises: `Stopping` when the time to finish is used up; then some are added and some are not.
        """
        self._left = entries
        if entries:
            self._patience.call(self._attempt, self._client.connection_pool.disconnect, in_hand=True)

    def _attempt(self) -> None:
        pipe = self._client.pipeline(transaction=False)
        for stream, fields in self._left:
            redis_client.execute(pipe, b"XADD", stream, *self._limit, b"*", *fields)
        replies = pipe.execute(raise_on_error=False)
        # What is confirmed is not sent again, where some were refused: memory may end in the middle.
        refused = [
            (entry, reply)
            for entry, reply in zip(self._left, replies, strict=True)
            if isinstance(reply, Exception)
        ]
        self._left = [entry for entry, _ in refused]
        if refused:
            raise refused[0][1]

    @staticmethod
    def _is_world(error: BaseException) -> bool:
        """A key that holds something else than a stream is somebody's to mend, and waited for too."""
        return redis_client.is_world(error) or redis_client.is_wrong_type(error)
