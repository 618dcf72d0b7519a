"""Whose a stream is, among the live workers of a group: an optimisation, and never a guarantee.

Workers find each other by a sign of life in Redis. Each then works out by itself which streams are its own:
a stream falls into one of 8,192 slots, every worker has a weight for every slot, and a slot belongs to
whoever weighs most (rendezvous hashing). So all come to the same answer without a word, and when a worker
comes or goes only what it takes or leaves moves. While two disagree both read a stream, and the group still
delivers each entry once.
"""

from __future__ import annotations

from array import array
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import shake_128
from math import inf

import redis
import structlog

import redis_scripts
from scripting import Script

SLOTS = 8192  # more would be fairer and slower: three workers get their thirds within about 2 %
FEWEST_PER_WORKER = 8  # with fewer streams for each, chance would leave some worker without any
BEATS = 5  # signs of life within the time after which a worker counts as gone


def slot_of(stream: bytes) -> int:
    return crc_hqx(stream, 0) % SLOTS


@lru_cache(maxsize=256)
def _weights(worker: bytes) -> array[int]:
    """The weight of `worker` for each slot: numbers that look random, the same ones everywhere."""
    return array("I", shake_128(worker).digest(4 * SLOTS))


def slots_of(worker: bytes, workers: Iterable[bytes]) -> list[bool]:
    """For each slot, whether it belongs to `worker`, which is one of `workers`.

    Takes about 0.5 ms a worker: the loops are in C.
    """
    nobody = array("I", bytes(4 * SLOTS))
    others = [_weights(other) for other in workers if other != worker]
    if not others:
        return [True] * SLOTS
    # Equal weights, one pair in four thousand million, leave a slot to both.
    highest = map(max, nobody, *others)
    return [weight >= other for weight, other in zip(_weights(worker), highest, strict=True)]


class Sharing:
    """One worker's place among the live workers of its group. Belongs to the thread of its reader.

    `key` is where workers that look for the same streams show that they live. `timeout_sec`: after so long
    without a sign of life, by Redis's clock, a worker counts as gone. Up to `least` streams everybody reads
    everything. Raises redis errors as they come; the reader retries.
    """

    def __init__(
        self,
        client: redis.Redis,
        key: str,
        worker: str,
        *,
        timeout_sec: float,
        least: int,
        clock: Callable[[], float],
    ) -> None:
        self._script = Script(client, redis_scripts.BEAT)
        self._client = client
        self._key = key
        self._worker = worker.encode()
        self._timeout_sec = timeout_sec
        self._interval_sec = timeout_sec / BEATS
        self._least = least
        self._clock = clock
        self._workers: tuple[bytes, ...] = (self._worker,)
        self._mine: list[bool] = [True] * SLOTS
        self._slots: dict[bytes, int] = {}
        # Until when each of the others had read its share, and until when that counts: a while longer than
        # it lives, since whoever takes over its streams has first to read them and to say so.
        self._caught_up: dict[bytes, tuple[float, float]] = {}
        self._divided = False
        self._divided_until = -inf
        self.next_beat = 0.0

    def beat(self, caught_up: float) -> bool:
        """Show that this worker lives, and hear of the others: one command. `caught_up`: until when, by the
        clock, this one has read its share. Answers whether streams may have another owner now.
        """
        now = self._clock()
        behind = "" if caught_up == -inf else str(max(0, int((now - caught_up) * 1000)))
        reply = self._script(keys=[self._key], args=[self._worker, int(self._timeout_sec * 1000), behind])
        self.next_beat = now + self._interval_sec
        counts_until = now + 3 * self._interval_sec
        alive = {self._worker}
        for name, ago in zip(reply[::2], reply[1::2], strict=True):
            alive.add(name)
            if name != self._worker:
                self._caught_up[name] = (now - int(ago) / 1000 if ago else -inf, counts_until)
        self._caught_up = {name: claim for name, claim in self._caught_up.items() if claim[1] > now}
        workers = tuple(sorted(alive))
        if workers == self._workers:
            return False
        self._workers = workers
        self._mine = slots_of(self._worker, workers)
        structlog.get_logger().info("workers_changed", workers=len(workers))
        return True

    def leave(self) -> None:
        """Let the others have this worker's streams at once."""
        self._client.hdel(self._key, self._worker.decode())

    def share_of(self, streams: Sequence[bytes]) -> list[bytes]:
        """Those of `streams` that are this worker's, in their order."""
        least = max(self._least, FEWEST_PER_WORKER * len(self._workers))
        if self._divided:
            self._divided_until = self._clock() + 3 * self._interval_sec
        self._divided = len(self._workers) > 1 and len(streams) > least
        return self.part_of(streams) if self._divided else list(streams)

    def part_of(self, streams: Sequence[bytes]) -> list[bytes]:
        """As `share_of`, but divided however few there are: each is one worker's."""
        slots = self._slots
        if len(slots) > 2 * len(streams) + 1000:
            slots.clear()  # of streams that are gone
        for stream in streams:
            if stream not in slots:
                slots[stream] = slot_of(stream)
        mine = self._mine
        return [stream for stream in streams if mine[slots[stream]]]

    @property
    def part(self) -> float:
        """This worker's part of the streams, about."""
        return 1 / len(self._workers) if self._divided else 1.0

    def others_caught_up(self) -> float:
        """Until when, by the clock, the others had read all of theirs; infinity where nothing is shared."""
        if not self._divided and self._clock() > self._divided_until:
            return inf
        return min((until for until, _ in self._caught_up.values()), default=inf)
