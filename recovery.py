"""Entries that were delivered before and never settled: own ones, stale ones of others, and poison."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import redis
import structlog
from redis.exceptions import ResponseError

import redis_scripts
from metrics import Stats
from redis_client import CHUNK, execute, is_gone
from redis_scripts import Keys
from schema import Entry, Fate, Reason, Rejection, Settled
from scripting import Script
from settlement import Settler
from streams import RawEntry, Streams

ALONE_TRIES = 2
LONGEST_LOOK_SEC = 0.05  # asking many streams whether anything is pending, before new entries are read


class Recovery:
    """Finds what is pending too long. Raises redis errors as they come; the reader retries."""

    def __init__(
        self,
        client: redis.Redis,
        streams: Streams,
        settler: Settler,
        *,
        keys: Keys,
        group: str,
        consumer: str,
        min_idle_sec: float,
        max_deliveries: int,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._streams = streams
        self._settler = settler
        self._group = group
        self._consumer = consumer
        self._min_idle_sec = min_idle_sec
        self._max_deliveries = max_deliveries
        self._stats = stats
        self._clock = clock
        self._keys = keys
        self._claim = Script(client, redis_scripts.CLAIM)
        self._try_alone = Script(client, redis_scripts.TRY_ALONE)
        self._pending = Script(client, redis_scripts.PENDING)
        self._own_wanted = True
        self._own: dict[bytes, bytes] = {}  # streams whose own pending entries are to be read, from where
        self._unasked: deque[Sequence[bytes]] = deque()  # streams to ask whether anything is pending
        self._sweep: deque[tuple[bytes, bytes]] = deque()  # streams to claim from, with the cursor
        self._next_sweep = 0.0
        self._suspects: dict[tuple[bytes, bytes], Entry] = {}
        self._alone: bytes | None = None

    def want_own(self) -> None:
        """Have this consumer's own pending entries read again: a reply may have been lost."""
        self._own_wanted = True

    @property
    def own_wanted(self) -> bool:
        """Whether own pending entries have to be looked for: some may be there."""
        return self._own_wanted or bool(self._own)

    @property
    def due(self) -> bool:
        """Whether there is something to look for, so that nothing should be read ahead of it."""
        under_way = self._own or self._sweep or self._unasked or self._suspects
        return self._own_wanted or bool(under_way) or self._clock() >= self._next_sweep

    def next(self, budget: int) -> list[Entry]:
        """At most `budget` entries, or none when nothing is due. They are settled before the next call."""
        self.excuse()  # a try whose outcome never came here: Redis failed, not the entry
        if self._own_wanted:
            self._own = dict.fromkeys(self._streams.keys, b"0")
            self._own_wanted = False
        while self._own and len(self._suspects) < max(1, budget):
            entries = self._without_suspects(self._read_own(budget))
            if entries:
                return entries
        if not self._sweep:
            self._plan_sweep()
        while self._sweep and len(self._suspects) < max(1, budget):
            entries = self._without_suspects(self._claim_next(budget))
            if entries:
                self._stats.messages_claimed += len(entries)
                structlog.get_logger().info("entries_claimed", entries=len(entries))
                return entries
        return self._next_suspect()

    def excuse(self) -> None:
        """Forget the try of the entry that is being tried alone: it succeeded, or the world failed."""
        if self._alone is not None:
            execute(self._client, "HDEL", self._keys.alone, self._alone)
            self._alone = None

    def _read_own(self, budget: int) -> list[Entry]:
        chunk = list(islice(self._own, min(CHUNK, budget)))
        count = max(1, budget // len(chunk))
        heals = self._streams.heals
        found = self._streams.read(chunk, [self._own[stream] for stream in chunk], count)
        if self._streams.heals != heals:  # nothing was delivered: ask again those that are left
            known = set(self._streams.keys)
            self._own = {stream: after for stream, after in self._own.items() if stream in known}
            return []
        full = {stream: raw[-1][0] for stream, raw in found if len(raw) >= count}
        for stream in chunk:
            del self._own[stream]
        self._own = {**full, **self._own}
        return self._with_deliveries(found)

    def _plan_sweep(self) -> None:
        """Which streams of this worker's share have pending entries at all, of whichever consumer: asked a
        chunk at a time, and not for longer than new entries should wait.
        """
        now = self._clock()
        if not self._unasked and now >= self._next_sweep:
            self._next_sweep = now + max(0.5, self._min_idle_sec / 2)
            parts = self._keys.together(self._streams.share, CHUNK)
            self._unasked.extend(part for _, part in parts)
        while self._unasked and self._clock() - now <= LONGEST_LOOK_SEC:
            chunk = self._unasked[0]
            found = self._pending(keys=list(chunk), args=[self._group])
            self._sweep.extend((chunk[number - 1], b"0-0") for number in found)
            self._unasked.popleft()

    def _claim_next(self, budget: int) -> list[Entry]:
        """The next page of stale entries; the cursor is followed to its end."""
        stream, cursor = self._sweep.popleft()
        idle_ms = int(self._min_idle_sec * 1000)
        args: list[bytes | str | int] = [self._group, self._consumer, idle_ms, cursor, max(1, budget)]
        try:
            following, raw, gone = self._claim(keys=[stream, self._keys.ledger_of(stream)], args=args)
        except ResponseError as error:
            if not is_gone(error):
                raise
            self._streams.heal([stream])
            return []
        if gone:
            self._stats.messages_trimmed += gone
            self._log_trimmed(gone)
        if following != b"0-0":
            self._sweep.append((stream, following))
        return self._with_deliveries([(stream, raw)])

    def _with_deliveries(self, found: Iterable[tuple[bytes, list[RawEntry]]]) -> list[Entry]:
        """Entries with their delivery counts. Those without data were trimmed: they are settled as that."""
        found = [(stream, raw) for stream, raw in found if raw]
        if not found:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for stream, raw in found:
                most = 2 * len(raw) + len(self._suspects)
                execute(pipe, "XPENDING", stream, self._group, raw[0][0], raw[-1][0], most, self._consumer)
            counts = pipe.execute(raise_on_error=False)
        entries: list[Entry] = []
        trimmed: list[Settled] = []
        for (stream, raw), pending in zip(found, counts, strict=True):
            if isinstance(pending, ResponseError) and is_gone(pending):
                continue  # the group went meanwhile: what is still in the stream is read again
            if isinstance(pending, Exception):
                raise pending
            deliveries = {entry_id: delivered for entry_id, _, _, delivered in pending}
            for entry_id, fields in raw:
                entry = Entry(stream, entry_id, fields or (), deliveries.get(entry_id, 2))
                if fields:
                    entries.append(entry)
                else:
                    trimmed.append(Settled(entry, Fate.TRIMMED))
        if trimmed:
            self._settler.settle(trimmed)
            self._log_trimmed(len(trimmed))
        return entries

    @staticmethod
    def _log_trimmed(entries: int) -> None:
        structlog.get_logger().warning(
            "pending_entries_trimmed",
            entries=entries,
            meaning="deleted from their stream by something else before they were stored: data loss",
        )

    def _without_suspects(self, entries: list[Entry]) -> list[Entry]:
        fine = [entry for entry in entries if entry.deliveries <= self._max_deliveries]
        for entry in entries:
            if entry.deliveries > self._max_deliveries:
                self._suspects[entry.stream, entry.id] = entry
        return fine

    def _next_suspect(self) -> list[Entry]:
        """One entry to be tried alone. The try is noted first, so that a crash in it is remembered."""
        while self._suspects:
            entry = self._suspects.pop(next(iter(self._suspects)))
            name = entry.stream + b"|" + entry.id
            self._alone = name  # before the call: its reply may be lost, and then the try does not count
            if self._try_alone(keys=[self._keys.alone], args=[name]) <= ALONE_TRIES:
                return [entry]
            self._alone = None
            sentence = f"delivered {entry.deliveries} times, and it ended the worker when tried alone"
            poison = [Settled(entry, Fate.DEAD_LETTERED, Rejection(Reason.POISON, sentence))]
            self._settler.settle(poison)
            self._settler.note_letters(poison)
            execute(self._client, "HDEL", self._keys.alone, name)
            structlog.get_logger().error("entry_is_poison", deliveries=entry.deliveries)
        return []
