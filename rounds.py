"""Rounds over a worker's share of the streams: bounded, fair, and no dearer than need be while little
comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from math import inf

import redis

from ahead import Ahead, Asked, plan
from entries import Block, Entries
from polling import Polling
from redis_client import CHUNK
from retry import StopFlag
from streams import Streams

BLOCKING_STREAMS = 500  # with more, a blocked read makes every XADD that wakes it pay


class Rounds:
    """Reads new entries of the streams that are this worker's, at most about a budget at a time.

    Raises redis errors as they come; the reader retries.
    """

    def __init__(
        self,
        streams: Streams,
        polling: Polling,
        ahead: Ahead,
        stop: StopFlag,
        clock: Callable[[], float],
    ) -> None:
        self._streams = streams
        self._polling = polling
        self._ahead = ahead
        self._stop = stop
        self._clock = clock
        self._position = 0  # where the next round over the streams begins
        self._busy: list[bytes] = []  # streams that had more than their share in the last round
        self._idle = False  # the last read brought nothing
        self._asked_at = -inf  # when what is read ahead was asked for
        self._quiet_asked: list[Sequence[bytes]] = []  # the parts of the quiet streams among it
        self._heals = 0  # of the streams, by then
        self._all_asked = False  # every stream of the share was among it

    def read(self, budget: int, due: float) -> tuple[Entries, float]:
        """Entries, waiting for them until `due` by the clock; and until when these were all there were,
        minus infinity where that is not known.
        """
        share = self._streams.share
        # When it was asked, not answered: this process may be stopped between the answer and the clock.
        asked = self._clock()
        blocks: list[Block] = []
        if not share:
            self._stop.wait(max(0.0, due - asked))
        elif self._many(budget):
            blocks, asked = self._poll(budget, due)
        else:
            if not self._idle:
                blocks = self._round(share, budget)
            if not blocks and not self._stop.is_set():
                blocks, asked = self._block(share, budget, due)
        self._idle = not blocks
        return Entries(blocks), asked

    def ask_ahead(self, budget: int) -> None:
        """Have Redis read the next round, where there is one to read; `take` brings it. Waits
        for nothing.
        """
        self._polling.follow(self._streams.share)
        many = self._many(budget)
        streams = self._polling.hot if many else self._streams.share
        self._asked_at, self._heals = self._clock(), self._streams.heals
        self._all_asked = not many
        self._quiet_asked = self._quiet_due(budget) if many else []
        quiet = [Asked(part, 1) for part in self._quiet_asked]
        left = budget - sum(map(len, self._quiet_asked))
        asked: list[Asked] = []
        if streams and left > 0:
            start = self._position % len(streams)
            known = set(streams)
            busy = [stream for stream in self._busy if stream in known]
            asked = plan([*streams[start:], *streams[:start]], busy, left)
            self._position = start + sum(len(one.streams) for one in asked if one.most == asked[0].most)
        if not quiet and not asked:
            return
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):  # `take` says so
            self._ahead.read([*quiet, *asked])

    def take(self) -> tuple[Entries, float]:
        """What was asked for ahead; the rest as `read` answers it. A stream that had more, or was not
        asked, leaves open whether there was anything else.
        """
        found = self._ahead.take()
        blocks = [block for _, some in found for block in some]
        full = (block[0] for asked, some in found for block in some if len(block[1]) >= asked.most)
        self._busy = list(dict.fromkeys(full))
        self._idle = not blocks
        if self._heals == self._streams.heals:
            for part in self._quiet_asked:
                self._polling.asked(len(part), self._asked_at, timed=False)
        self._polling.heard({stream for stream, _ in blocks})
        whole = self._all_asked and not self._busy and self._heals == self._streams.heals
        return Entries(blocks), self._asked_at if whole else -inf

    def _quiet_due(self, budget: int) -> list[Sequence[bytes]]:
        """Quiet streams whose turn it is; the others keep half of the budget."""
        if self._clock() < self._polling.wake_at:
            return []
        return self._polling.all_due(max(1, budget // 2))

    @property
    def under_way(self) -> bool:
        """Whether `take` has something to bring."""
        return self._ahead.reading

    def _many(self, budget: int) -> bool:
        """Whether there are more streams than one blocking read should cover."""
        return len(self._streams.share) > min(BLOCKING_STREAMS, budget)

    def _poll(self, budget: int, due: float) -> tuple[list[Block], float]:
        """The quiet streams that are due, then the hot ones.

        Answers also until when all of the share was asked, where this was not cut short by the budget.
        """
        polling = self._polling
        polling.follow(self._streams.share)
        blocks = self._quiet(budget)
        hot, began = polling.hot, self._clock()
        left = budget - _size(blocks)
        blocking = len(hot) <= min(BLOCKING_STREAMS, budget)
        empty = not hot or (blocking and self._idle and not blocks)
        if not empty and left > 0 and (blocking or began >= polling.hot_at):
            more = self._round(hot, left)
            if empty := _size(more) < left:
                polling.emptied(self._clock() - began)
            blocks += more
        if not blocks and not self._stop.is_set():
            blocks, until = self._wait_for_hot(hot if blocking else [], budget, min(due, polling.wake_at))
            empty = empty and until > -inf
        polling.heard({stream for stream, _ in blocks})
        return blocks, min(began, polling.asked_since) if empty else -inf

    def _wait_for_hot(self, hot: Sequence[bytes], budget: int, due: float) -> tuple[list[Block], float]:
        """Wait for what is due next, or until one of `hot` speaks; and what `_block` answers."""
        if not hot:
            due = min(due, self._polling.hot_at) if self._polling.hot else due
            self._stop.wait(max(0.0, due - self._clock()))
            return [], self._clock()
        blocks, until = self._block(hot, budget, due)
        if not blocks:
            self._polling.emptied(0.0)
        return blocks, until

    def _quiet(self, budget: int) -> list[Block]:
        """An entry of each stream whose turn it is; a stream that has one is hot from then on."""
        polling = self._polling
        blocks: list[Block] = []
        heals = self._streams.heals
        while _size(blocks) < budget and heals == self._streams.heals and not self._stop.is_set():
            streams, command = polling.due()
            if not streams:
                break
            began, left = self._clock(), budget - _size(blocks)
            if command and len(streams) <= left:
                part: list[Block] = [*self._streams.read_packed(command, streams)]
                done = len(streams)
            else:
                part, _, done = self._fetch(streams, left)
            if heals == self._streams.heals:  # else nothing was delivered, and their turn is still to come
                polling.asked(done, began)
            polling.heard(stream for stream, _ in part)
            blocks += part
        return blocks

    def _round(self, streams: Sequence[bytes], budget: int) -> list[Block]:
        """Every stream gets its equal share; then those that had more share what is left."""
        start = self._position % len(streams)
        blocks, busy, done = self._fetch([*streams[start:], *streams[:start]], budget)
        self._position = start + done
        self._busy = busy
        while busy and _size(blocks) < budget:
            more, busy, _ = self._fetch(busy, budget - _size(blocks))
            if not more:
                break
            blocks += more
        return blocks

    def _fetch(self, streams: Sequence[bytes], budget: int) -> tuple[list[Block], list[bytes], int]:
        """Along `streams` as far as `budget` entries reach: the entries, who had more, how far it went.

        COUNT counts for each stream, so streams times COUNT is kept within the budget.
        """
        count = max(1, budget // len(streams))
        blocks: list[Block] = []
        busy: list[bytes] = []
        done = found = 0
        while done < len(streams) and found < budget:
            width = min(CHUNK, max(1, (budget - found) // count))
            chunk = streams[done : done + width]
            for stream, rows in self._streams.read(chunk, [b">"] * len(chunk), count):
                blocks.append((stream, rows))
                found += len(rows)
                if len(rows) >= count:
                    busy.append(stream)
            done += len(chunk)
        return blocks, busy, done

    def _block(self, streams: Sequence[bytes], budget: int, due: float) -> tuple[list[Block], float]:
        """One blocking read, until `due`.

        Answers also until when there was nothing but these: an empty reply speaks for all of its wait, and
        one with a stream that has as much as was asked for says nothing of what else it holds.
        """
        now = self._clock()
        count = max(1, budget // len(streams))
        wait_ms = max(1, int((due - now) * 1000))
        blocks: list[Block] = list(self._streams.read(streams, [b">"] * len(streams), count, wait_ms))
        if any(len(rows) >= count for _, rows in blocks):
            return blocks, -inf
        return blocks, now if blocks else min(now + wait_ms / 1000, self._clock())


def _size(blocks: Sequence[Block]) -> int:
    return sum(len(rows) for _, rows in blocks)
