"""The bridge's commands to Redis: entries are added, pipelined, again until each is confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

import redis_client
from counting import CountsErrors
from refusals import is_refused
from retry import Patience, StopFlag

_FILTERS = "sluice:bridge:{}:filters"


class StreamWriter:
    """XADDs through every outage of Redis. Belongs to one thread.

    A reply that is lost makes the same entries again: whoever reads them must tell by their contents.
    """

    def __init__(
        self,
        client: redis.Redis,
        stop: StopFlag,
        stats: CountsErrors,
        maxlen: int = 0,
        on_outage: Callable[[], None] = lambda: None,
    ) -> None:
        """`maxlen`: cut streams to about this length, read or not; 0: never. `on_outage` is called after
        each attempt that failed.
        """
        self._on_outage = on_outage
        self._client = client
        self._stop = stop
        self._stats = stats
        self._patience = Patience("redis", self._is_world, stop, stats)
        self._limit: tuple[bytes | int, ...] = (b"MAXLEN", b"~", maxlen) if maxlen else ()
        self._left: Sequence[tuple[bytes, Sequence[bytes]]] = ()

    def add(self, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        """Add each (stream, names and values in turn). Returns when Redis has confirmed all of them.

        Raises: `Stopping` when the time to finish is used up; then some are added and some are not.
        """
        self._left = entries
        if entries:
            self._patience.call(self._attempt, self._failed, in_hand=True)

    def _failed(self) -> None:
        self._client.connection_pool.disconnect()
        self._on_outage()

    def wait_for_server(self) -> None:
        """Return when Redis answers. Raises: what is refused for good (`refusals.py`)."""
        patience = Patience(
            "redis",
            lambda error: redis_client.is_world(error) and not is_refused(error),
            self._stop,
            self._stats,
        )
        patience.call(self._client.ping)

    def note_filters(self, bridge: str, filters: Sequence[str]) -> frozenset[str]:
        """Keep what a bridge is about to subscribe to. Returns what it has subscribed to before, beside.

        A session at the broker goes on with filters that nobody asks for any more; only a note like this
        one knows of them.
        """
        key = _FILTERS.format(bridge)

        def exchange() -> list[Any]:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.smembers(key)
                pipe.sadd(key, *filters)
                return pipe.execute()

        before = self._patience.call(exchange)[0]
        return frozenset(one.decode() for one in before) - frozenset(filters)

    def forget_filters(self, bridge: str, filters: Iterable[str]) -> None:
        """The broker has taken these back."""
        key = _FILTERS.format(bridge)
        self._patience.call(lambda: self._client.srem(key, *filters), self._failed, in_hand=True)

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
            (stream, _), error = refused[0]
            error.args = (f"{redis_client.message(error)} (stream {stream.decode(errors='replace')})",)
            raise error

    @staticmethod
    def _is_world(error: BaseException) -> bool:
        """A key that holds something else than a stream, and a user that may not add to one, are somebody's
        to mend, and waited for too.
        """
        mendable = redis_client.is_denied(error)
        return mendable or redis_client.is_world(error) or redis_client.is_wrong_type(error)
