"""What a group has still to read and to acknowledge, stream by stream, as Redis tells it.

One round trip for some hundred streams, whatever they hold; nothing is changed. Where Redis does not know
how many entries are unread, that is None here, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

import redis_scripts
from redis_client import chunks, execute
from redis_scripts import Keys

_AT_ONCE = 500  # streams in one round trip
MOST_PENDING = 1_000  # entries of a stream whose idle time and deliveries are looked at, the oldest ones


class Held(NamedTuple):
    """What one consumer has pending in one stream. Of more than MOST_PENDING entries, the oldest count for
    `idle_sec` and `deliveries`.
    """

    pending: int
    idle_sec: float
    deliveries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """One stream. `lag`: unread entries; None: Redis does not know how many. `lag_sec`: how old the oldest
    of them is, by the clock of Redis; 0 where there is none.

    `trimmed_unread`: entries that something else deleted before the group had read them; None: unknown.
    `whole` False: more is pending than was looked at, so that more may be idle for longer.
    `grouped` False: no worker has found the stream yet.
    """

    stream: str
    lag: int | None = 0
    lag_sec: float = 0.0
    pending: int = 0
    trimmed_unread: int | None = 0
    grouped: bool = True
    whole: bool = True
    consumers: Mapping[str, Held] = field(default_factory=dict)

    @property
    def idle_sec(self) -> float:
        return max((held.idle_sec for held in self.consumers.values()), default=0.0)

    @property
    def deliveries(self) -> int:
        return max((held.deliveries for held in self.consumers.values()), default=0)


def streams_of(client: redis.Redis, pattern: str, left_out: str, named: Iterable[str]) -> list[bytes]:
    """The streams that workers read. Raises redis errors."""
    scan = client.scan_iter(match=pattern, count=1000, _type="stream")
    return sorted({*scan, *(name.encode() for name in named)} - {left_out.encode()})


def workers_alive(client: redis.Redis, group: str) -> set[str]:
    """The consumers that hold their name now."""
    leases = client.scan_iter(match=Keys(group).workers, count=1000)
    return {key.decode("utf-8", "replace").rpartition(":worker:")[2] for key in leases}


def read(client: redis.Redis, group: str, streams: Sequence[bytes]) -> Iterator[Backlog]:
    """The backlog of each stream that is there. Raises redis errors."""
    seconds, micros = client.time()
    now_ms = seconds * 1000 + micros // 1000
    for chunk in chunks(streams, _AT_ONCE):
        yield from _read_chunk(client, group, chunk, now_ms)


def _read_chunk(
    client: redis.Redis, group: str, streams: Sequence[bytes], now_ms: int
) -> Iterator[Backlog]:
    with client.pipeline(transaction=False) as pipe:
        for stream in streams:  # one key each: in a cluster streams are on different servers
            execute(pipe, "EVAL", redis_scripts.BACKLOG, 1, stream, group, MOST_PENDING)
        answers = pipe.execute()
    for stream, answer in zip(streams, answers, strict=True):
        if answer is not None:
            yield _backlog(_text(stream), answer, now_ms)


def _backlog(stream: str, answer: Sequence[Any], now_ms: int) -> Backlog:
    added, length, first, *mine = answer
    age = max(0.0, (now_ms - int(first.partition(b"-")[0])) / 1000) if first else 0.0
    if not mine:
        return Backlog(stream=stream, lag=length, lag_sec=age, grouped=False)
    read, told, summary, oldest = mine
    trimmed = None if read is None else max(0, added - length - read)
    lag: int | None = 0
    if first:  # what was trimmed unread is still in the lag of XINFO
        lag = None if told is None else max(1, told - (trimmed or 0))
    held = _held(summary, oldest)
    pending = sum(one.pending for one in held.values())
    return Backlog(
        stream=stream,
        lag=lag,
        lag_sec=age,
        pending=pending,
        trimmed_unread=trimmed,
        whole=pending <= MOST_PENDING,
        consumers=held,
    )


def _held(summary: Sequence[Any], oldest: Sequence[Any]) -> dict[str, Held]:
    """From both forms of XPENDING: how much each consumer has, and what is known of the oldest entries."""
    held = {_text(name): Held(int(count), 0.0, 0) for name, count in summary}
    for _, consumer, idle_ms, deliveries in oldest:
        pending, idle_sec, most = held.get(_text(consumer), Held(1, 0.0, 0))
        idle_sec = max(idle_sec, int(idle_ms) / 1000)
        held[_text(consumer)] = Held(pending, idle_sec, max(most, int(deliveries)))
    return held


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def unread_beyond(client: redis.Redis, group: str, stream: str, most: int) -> bool:
    """Whether more than `most` entries are unread, by counting them: for a lag that Redis does not know."""
    mine = [
        one
        for one in map(_pairs, execute(client, "XINFO GROUPS", stream))
        if one[b"name"] == group.encode()
    ]
    after = b"(" + mine[0][b"last-delivered-id"] if mine else b"-"
    count = 0
    while count <= most:
        page = execute(client, "XRANGE", stream, after, "+", "COUNT", min(500, most + 1 - count))
        if not page:
            return False
        count += len(page)
        after = b"(" + page[-1][0]
    return True


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
