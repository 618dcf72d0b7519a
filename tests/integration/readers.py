"""What the tests of reading share: readers with a clock of their own, and what a writer would answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

import redis_client
from metrics import Stats
from reader_parts import ReaderOptions
from redis_client import execute
from redis_reader import RedisReader
from redis_servers import RedisServers
from retry import StopFlag
from schema import Entry, Fate, Outcome, Reason, Rejection, Settled

GROUP = "db_writer"
FAILED = "mqtt_stream:failed"
LEDGER = f"sluice:{GROUP}:ledger"


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Workshop:
    """Makes readers, each with a connection of its own, and closes the connections.

    Readers of one consumer name hold the same token, so that a new one takes the place of an abandoned
    one as a process that was started again does. Their name and clock aside, they do as a worker does.
    """

    def __init__(self, url: RedisServers | str) -> None:
        self.url = url
        self.stop = StopFlag(timeout_sec=1.0)
        self._clients: list[redis.Redis] = []

    def reader(
        self,
        consumer: str = "one",
        *,
        url: str | None = None,
        token: str | None = None,
        stats: Stats | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        **options: Any,
    ) -> RedisReader:
        """A reader that has its name and has looked for streams."""
        client = redis_client.connect(url or self.url, timeout_sec=30, name=consumer)
        self._clients.append(client)
        values = {"batch_size": 100, "block_sec": 0.01, "discovery_interval_sec": 0.02} | options
        made = RedisReader(
            client,
            ReaderOptions(group=GROUP, consumer=consumer, **values),
            self.stop,
            stats or Stats(),
            token=token or f"token of {consumer}",
            wall_ms=wall_ms,
            clock=clock,
        )
        assert made.start()
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()


def numbered(count: int) -> list[dict[str, str]]:
    """So many entries, each with its number as its value."""
    return [{"value": str(number)} for number in range(count)]


def outcome(entries: Iterable[Entry], fate: Fate = Fate.STORED) -> Outcome:
    """What the writer answers when all of `entries` met one fate."""
    rejection = Rejection(Reason.VALUE_NAN, "not a number", "d", "t", "nan")
    rejected = rejection if fate is Fate.DEAD_LETTERED else None
    return Outcome([Settled(entry, fate, rejected) for entry in entries])


def ids(entries: Iterable[Entry]) -> list[tuple[bytes, bytes]]:
    return [(entry.stream, entry.id) for entry in entries]


def read_all(reader: RedisReader, expected: int, reads: int) -> list[Sequence[Entry]]:
    """Read until `expected` entries have come, in at most `reads` reads. What each read that brought any
    brought."""
    found: list[Sequence[Entry]] = []
    for _ in range(reads):
        entries = reader.read()
        if entries:
            found.append(entries)
        if sum(map(len, found)) >= expected:
            break
    return found


def recover_all(reader: RedisReader, fate: Fate = Fate.STORED) -> list[list[Entry]]:
    """Recover and settle until nothing is due. What each step brought."""
    found: list[list[Entry]] = []
    while entries := reader.recover():
        found.append(entries)
        reader.settle(outcome(entries, fate))
        assert len(found) < 1_000, "recovery does not come to an end"
    return found


def flat(pages: Iterable[Sequence[Entry]]) -> list[Entry]:
    return [entry for page in pages for entry in page]


def deliver(client: redis.Redis, consumer: str, streams: Sequence[str], count: int = 1_000) -> list[bytes]:
    """New entries go to `consumer`, which does nothing more: as a worker that dies right then."""
    for stream in streams:
        if not execute(client, "XINFO GROUPS", stream):
            client.xgroup_create(stream, GROUP, "0")
    names = [*streams, *[">"] * len(streams)]
    reply = execute(client, "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", *names) or []
    return [entry_id for _, entries in reply for entry_id, _ in entries]


def make_stale(client: redis.Redis, stream: str, seconds: int = 3_600) -> None:
    """Let all pending entries of `stream` have been idle for `seconds`; their counts stay."""
    for entry_id, owner, _, _ in pending(client, stream):
        client.xclaim(stream, GROUP, owner.decode(), 0, [entry_id], idle=seconds * 1000, justid=True)


def pending(client: redis.Redis, stream: str) -> list[tuple[bytes, bytes, int, int]]:
    """Each pending entry's ID, consumer, idle milliseconds and delivery count."""
    reply = execute(client, "XPENDING", stream, GROUP, "-", "+", 100_000)
    return [(entry_id, owner, idle, count) for entry_id, owner, idle, count in reply]
