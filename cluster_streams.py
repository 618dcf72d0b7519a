"""Reading streams that are spread over the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from redis_client import CHUNK, execute
from retry import StopFlag
from streams import RawEntry, Streams

SHORTEST_PAUSE_SEC = 0.01
PAUSES = 9  # times what asking took: then asking takes a tenth of the time


class ClusterStreams(Streams):
    """As `Streams`. One read is a command for each slot that it has streams in, sent to all nodes together.

    Such commands cannot block: the next one on the same node would wait. So waiting is asking again and
    again, with pauses.
    """

    def __init__(self, *args: Any, stop: StopFlag, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(*args, clock=clock, **options)
        self._stop = stop

    def read(
        self,
        streams: Sequence[bytes],
        ids: Sequence[bytes],
        count: int,
        block_ms: int | None = None,
    ) -> list[tuple[bytes, list[RawEntry]]]:
        """As in `Streams`. Whoever waited in vain was told so by a question asked after its time was up."""
        until = self._clock() + (block_ms or 0) / 1000
        while True:
            began = self._clock()
            found = self._ask(streams, ids, count)
            if found or began >= until or self._stop.is_set():
                return found
            pause = max(SHORTEST_PAUSE_SEC, PAUSES * (self._clock() - began))
            self._stop.pause(min(pause, max(0.0, until - self._clock())))

    def ask(self, streams: Sequence[bytes]) -> bytes:  # noqa: ARG002
        """No command asks streams of several slots."""
        return b""

    def _ask(
        self, streams: Sequence[bytes], ids: Sequence[bytes], count: int
    ) -> list[tuple[bytes, list[RawEntry]]]:
        after = dict(zip(streams, ids, strict=True))
        parts = [part for _, part in self._keys.together(streams, CHUNK)]
        with self._client.pipeline(transaction=False) as pipe:
            for part in parts:
                execute(pipe, *self.command(part, [after[stream] for stream in part], count))
            replies = pipe.execute(raise_on_error=False)
        found: list[tuple[bytes, list[RawEntry]]] = []
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, ResponseError):
                self.mend(reply, part)
            else:
                found += reply or []
        return found

    def _scan(self) -> None:
        """The number of keys is no sign here: a search may miss what is on its way between two nodes."""
        self._size = -1
        super()._scan()
