"""Reading the next batch, and letting go of the last one, while this one is written.

Redis needs about as long for a batch as this process and the database need for the next. So under a
backlog the next read is sent before a batch is parsed and written, and its reply is taken afterwards;
settling is sent after COMMIT, and what Redis says to it is looked at one batch later. Nothing is promised
sooner for it: what was read ahead is pending like anything else that was delivered, and a settlement whose
reply is lost is made again, which changes nothing where it was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import NoScriptError, RedisError, ResponseError

from entries import Block
from redis_client import chunks
from redis_line import Line
from schema import Settled
from settlement import Settler
from streams import Streams


class Asked(NamedTuple):
    """One read: at most `count` entries of each of these streams."""

    streams: Sequence[bytes]
    most: int


class Ahead:
    """What is under way on one connection: a read, and the settlement of the batch before.

    Raises redis errors as they come. Then what was read is pending with this consumer, and `confirm`
    settles again.
    """

    def __init__(self, line: Line, streams: Streams, settler: Settler) -> None:
        self._line = line
        self._streams = streams
        self._settler = settler
        self._asked: Sequence[Asked] = ()
        self._read_on = 0
        self._unconfirmed: Sequence[Settled] = ()
        self._calls = 0  # whose replies are due; none: it has to be settled again
        self._settled_on = 0

    @property
    def reading(self) -> bool:
        """Whether something is being read, or was until the connection broke."""
        return bool(self._asked)

    def read(self, asked: Sequence[Asked]) -> None:
        """Have Redis read; `take` brings it, or says what went wrong."""
        self._asked = asked
        self._read_on = -1
        self._read_on = self._line.send(
            [self._streams.command(one.streams, [b">"] * len(one.streams), one.most) for one in asked]
        )

    def take(self) -> list[tuple[Asked, list[Block]]]:
        """What each read has brought."""
        asked, self._asked = self._asked, ()
        return [(one, self._reply(one)) for one in asked]

    def _reply(self, one: Asked) -> list[Block]:
        try:
            return self._line.take(self._read_on) or []
        except ResponseError as error:
            try:
                self._streams.mend(error, one.streams)
            except RedisError:
                self._line.drop()  # or what comes behind would be taken for the answer to something else
                raise
            return []

    def settle(self, settled: Sequence[Settled]) -> None:
        """Let go of these: at once, or, while something is being read, behind that; then `confirm` has to
        follow once that was taken.
        """
        self.confirm()
        if not self._asked or not self._settler.known:
            self._settler.settle(settled)
            return
        self._settled_on, calls = self._settler.send(self._line, settled)
        self._unconfirmed, self._calls = settled, calls

    def confirm(self) -> None:
        """Have the last settlement certain. Nothing may be being read but what was sent after it."""
        if not self._unconfirmed:
            return
        calls, self._calls = self._calls, 0
        if calls:
            try:
                for _ in range(calls):  # one by one: a settlement made again counts only what was not done
                    self._settler.count([self._line.take(self._settled_on)])
            except NoScriptError:  # somebody flushed them, or it is another server
                self._line.drop()
                self._settler.known = False
                self._settler.settle(self._unconfirmed)
            except ResponseError:
                self._line.drop()
                raise
        else:
            self._settler.settle(self._unconfirmed)
        self._unconfirmed = ()

    def close(self) -> None:
        self._line.drop()


def plan(streams: Sequence[bytes], busy: Sequence[bytes], budget: int) -> list[Asked]:
    """Reads that bring at most about `budget` entries: a share of every stream, and more of those that had
    more than their share the last time. Along `streams` as far as it reaches.
    """
    few = 0 < 2 * len(busy) <= len(streams) <= budget // 4
    count = max(1, budget // (4 * len(streams) if few else len(streams)))
    asked = [Asked(chunk, count) for chunk in chunks(streams[: max(1, budget // count)])]
    if few:
        rest = (budget - count * len(streams)) // len(busy)
        asked += [Asked(chunk, rest) for chunk in chunks(busy)]
    return asked
