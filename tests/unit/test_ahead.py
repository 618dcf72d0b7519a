"""What is under way on one connection, while the connection is none: what is counted, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import redis

from ahead import Ahead
from redis_line import Command, Line
from schema import Settled
from settlement import Settler
from streams import Streams


class BrokenLine:
    """Brings the first reply, and loses the connection before the second."""

    def __init__(self) -> None:
        self.replies = [[b"stored", 3]]

    def send(self, commands: Sequence[Command]) -> int:
        return 1

    def take(self, sent: int) -> Any:
        if not self.replies:
            raise redis.ConnectionError("lost")
        return self.replies.pop()


class Counting:
    """A settler that sends two scripts for whatever it is given."""

    known = True

    def __init__(self) -> None:
        self.counted: list[Sequence[Any]] = []
        self.settled: list[Sequence[Settled]] = []

    def send(self, line: Line, settled: Sequence[Settled]) -> tuple[int, int]:
        return line.send([]), 2

    def count(self, replies: Sequence[Sequence[Any]]) -> None:
        self.counted += replies

    def settle(self, settled: Sequence[Settled]) -> None:
        self.settled.append(settled)


class NoStreams:
    def command(self, *_: object) -> Command:
        return ("XREADGROUP",)


def test_what_a_settlement_had_answered_before_its_connection_broke_is_counted_once() -> None:
    settler = Counting()
    ahead = Ahead(cast("Line", BrokenLine()), cast("Streams", NoStreams()), cast("Settler", settler))
    batch = cast("Sequence[Settled]", ["some entries"])
    ahead.read([])
    ahead._asked = [cast("Any", object())]  # something is being read, so that settling goes behind it
    ahead.settle(batch)
    assert settler.settled == []
    with pytest.raises(redis.ConnectionError):
        ahead.confirm()
    assert settler.counted == [[b"stored", 3]]
    ahead.confirm()  # made again: Redis answers 0 for what was done
    assert settler.settled == [batch]
    assert settler.counted == [[b"stored", 3]]
