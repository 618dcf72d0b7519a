"""Reading a consumer's share of a group: bounded, fair, and through every outage of Redis.

What one call brings is bounded in entries, in bytes and in readings, whatever the number of streams and
whatever they hold. A reader belongs to one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic

import redis
import structlog

from ahead import Ahead, plan
from entries import Block, Entries
from lease import TTL_SEC, Lease, NameTaken
from metrics import Stats
from recovery import Recovery
from redis_client import CHUNK, is_world, is_wrong_type
from redis_line import Line
from redis_scripts import Keys
from retry import Patience, StopFlag
from schema import Entry, Outcome
from settlement import Settler
from streams import Streams
from trimming import Trimmer

BLOCKING_STREAMS = 500  # with more, a blocked read makes every XADD that wakes it pay
READ_BYTES = 8 * 1024 * 1024  # what one batch may weigh before the next one is made smaller
LONGEST_PAUSE_SEC = 0.25


def _passes(error: BaseException) -> bool:
    """Streams of another type are left out where they are read. What is left is a key that dead letters or
    the ledger need, taken by something else: somebody has to put that right, and nothing is let go before.
    """
    return is_world(error) or is_wrong_type(error)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderOptions:
    """Plain values of the settings that reading depends on. Times in seconds.

    `named_streams` are read whether they match `pattern` or not.
    """

    group: str
    consumer: str
    pattern: str = "mqtt_stream:*"
    dead_letter_stream: str = "mqtt_stream:failed"
    batch_size: int = 5000
    block_sec: float = 1.0
    claim_min_idle_sec: float = 60.0
    discovery_interval_sec: float = 2.0
    max_deliveries: int = 5
    stream_retention_sec: int = 0
    named_streams: tuple[str, ...] = ()


class RedisReader:
    """Reads one consumer's share of a group, and settles it.

    `read` and `recover` answer entries that stay pending until `settle` has been given their outcome.
    Every call waits out an outage of Redis, and raises `retry.Stopping` only at shutdown.
    `token` is unique to this reader; `wall_ms` is the time of day in milliseconds since 1970.
    """

    def __init__(
        self,
        client: redis.Redis,
        options: ReaderOptions,
        stop: StopFlag,
        stats: Stats,
        *,
        token: str,
        wall_ms: Callable[[], int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._client = client
        self._options = options
        self._stop = stop
        self._stats = stats
        self._clock = clock
        keys = Keys(options.group)
        self._patience = Patience("redis", _passes, stop, stats)
        self._lease = Lease(client, keys.worker(options.consumer), token)
        upkeep = Lease(client, keys.upkeep, token)
        self._trimmer = Trimmer(client, upkeep, options.stream_retention_sec, wall_ms)
        self._settler = Settler(client, options.group, options.dead_letter_stream, stats, wall_ms)
        self._streams = Streams(
            client,
            group=options.group,
            consumer=options.consumer,
            pattern=options.pattern,
            dead_letter_stream=options.dead_letter_stream,
            interval_sec=options.discovery_interval_sec,
            stats=stats,
            clock=clock,
            named=options.named_streams,
        )
        self._recovery = Recovery(
            client,
            self._streams,
            self._settler,
            group=options.group,
            consumer=options.consumer,
            min_idle_sec=options.claim_min_idle_sec,
            max_deliveries=options.max_deliveries,
            stats=stats,
            clock=clock,
        )
        self._ahead = Ahead(Line(client), self._streams, self._settler)
        self._asked_at = -inf  # when what is read ahead was asked for
        self._asked_for = 0  # how many entries, at most
        self._full = False  # the last read brought about as much as was asked for
        self._busy: list[bytes] = []  # streams that had more than their share at the last read
        self._position = 0  # where the next round over the streams begins
        self._budget = min(options.batch_size, 500)
        self._readings_per_entry = 1.0
        self._pause = 0.0
        self._idle = False
        self._caught_up = -inf
        self._next_lease = self._next_trim = 0.0

    def eviction_policy(self) -> str:
        """The server's `maxmemory-policy`; empty where it may not be asked. Waits out an outage.

        Raises: `redis.AuthenticationError`, which no waiting mends.
        """
        patience = Patience(
            "redis",
            lambda error: is_world(error) and not isinstance(error, redis.AuthenticationError),
            self._stop,
            self._stats,
        )
        try:
            info = patience.call(lambda: self._client.info("memory"))
        except redis.exceptions.NoPermissionError:
            return ""
        return str(info.get("maxmemory_policy", ""))

    def start(self) -> bool:
        """Take the consumer name and look for streams. False when a stop came before the name was free."""
        if not self._patience.call(lambda: self._lease.acquire(self._stop.wait, self._stop.is_set)):
            return False
        self._next_lease = self._clock() + TTL_SEC / 3
        self._patience.call(self._streams.discover)
        return True

    def recover(self) -> list[Entry]:
        """Entries that may have been delivered before, or none. To be called before each `read`.

        First this consumer's own pending entries (at start, and whenever a reply may have been lost);
        then, again and again, what has been pending too long with whichever consumer. An entry past
        MAX_DELIVERIES comes alone, and after it has brought the process down twice like that it is
        dead-lettered as poison.
        """
        if self._ahead.reading:
            return []  # what it brings comes first
        self._patience.call(self._ahead.confirm, in_hand=True)
        entries = self._patience.call(
            lambda: self._recovery.next(self._budget), on_error=self._recovery.want_own
        )
        self._stats.messages_read += len(entries)
        self._adapt(entries)
        return entries

    def read(self, until: float = inf) -> Sequence[Entry]:
        """New entries, at most about BATCH_SIZE readings in all; empty after an idle block or at a stop.

        Waits for them no longer than `until`, by the clock.
        """
        entries = self._patience.call(
            lambda: self._take() if self._ahead.reading else self._read(until),
            on_error=self._recovery.want_own,
        )
        self._stats.messages_read += len(entries)
        return entries

    def read_ahead(self) -> None:
        """Have Redis get the next batch ready while this one is written, where there is a backlog and
        nothing else to do. Waits for nothing.
        """
        now = self._clock()
        due = min(self._streams.next_discovery, self._next_lease, self._next_trim or inf)
        if not self._full or now >= due or self._recovery.due or self._stop.is_set():
            return
        streams = self._streams.keys
        start = self._position % len(streams)
        asked = plan(streams[start:] + streams[:start], self._busy, self._budget)
        self._position = start + sum(len(one.streams) for one in asked if one.most == asked[0].most)
        self._asked_at, self._asked_for = now, self._budget
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):  # `read` tells, and waits
            self._ahead.read(asked)

    @property
    def has_more(self) -> bool:
        """Whether `read` has something that was read ahead."""
        return self._ahead.reading

    def during_outage(self) -> None:
        """The database failed an attempt. An entry that is being tried alone is not to blame: this try does
        not count. And this worker still lives: it keeps its name.
        """
        self._patience.call(self._recovery.excuse, in_hand=True)
        if self._clock() >= self._next_lease:
            self._patience.call(self._keep_name, in_hand=True)

    def settle(self, outcome: Outcome) -> None:
        """Acknowledge and dead-letter what is safe in the database, and count it in the ledger.

        Idempotent: what somebody else settled meanwhile is neither acknowledged nor counted again.
        """
        self._patience.call(lambda: self._ahead.settle(outcome.settled), in_hand=True)
        self._patience.call(self._recovery.excuse, in_hand=True)
        self._stats.batches_processed += 1
        self._stats.readings_written += outcome.readings_stored
        self._stats.readings_duplicate += outcome.readings_duplicate
        self._stats.readings_failed += outcome.readings_rejected
        self._stats.readings_skipped += outcome.readings_skipped
        readings = outcome.readings_stored + outcome.readings_duplicate + outcome.readings_rejected
        average = max(1.0, readings / max(1, len(outcome.settled)))
        self._readings_per_entry = 0.5 * self._readings_per_entry + 0.5 * average

    def upkeep(self) -> None:
        """What is due between batches: renew the name, trim what everybody has acknowledged.

        When the name was lost meanwhile (this process was stopped for long), wait for it again.
        """
        if self._clock() >= self._next_lease:
            self._patience.call(self._keep_name)
        if self._options.stream_retention_sec and self._clock() >= self._next_trim:
            self._next_trim = self._clock() + self._trimmer.interval_sec
            self._patience.call(lambda: self._trimmer.trim(self._streams.keys))

    def finish(self) -> None:
        """Have everything that was settled certain."""
        self._patience.call(self._ahead.confirm, in_hand=True)

    def close(self) -> None:
        """Give the name back. Pending entries stay for whoever takes it over."""
        try:
            if self._lease.held:
                self._lease.release()
        except redis.RedisError as error:
            structlog.get_logger().warning("consumer_name_not_released", error=type(error).__name__)
        self._ahead.close()
        self._client.close()

    def _take(self) -> Sequence[Entry]:
        """What was read ahead."""
        found = self._ahead.take()
        entries = Entries([block for _, blocks in found for block in blocks])
        full = (block[0] for asked, blocks in found for block in blocks if len(block[1]) >= asked.most)
        self._busy = list(dict.fromkeys(full))
        self._note(entries, self._asked_at, self._asked_for)
        return entries

    def _read(self, until: float) -> Sequence[Entry]:
        if self._clock() >= self._streams.next_discovery:
            self._streams.discover()
        if not self._streams.keys:
            longest = min(self._options.block_sec, self._options.discovery_interval_sec)
            self._caught_up = self._clock()
            self._stop.wait(max(0.0, min(longest, until - self._clock())))
            return []
        entries: Sequence[Entry] = []
        # When it was asked, not answered: this process may be stopped between the answer and the clock.
        asked = self._clock()
        blocking = len(self._streams.keys) <= min(BLOCKING_STREAMS, self._budget)
        if not (self._idle and blocking):
            entries = self._read_round()
        if not entries and not self._stop.is_set():
            if blocking:
                entries, asked = self._block(until)
            else:
                entries = self._rest()
        self._note(entries, asked, self._budget)
        return entries

    def _note(self, entries: Sequence[Entry], asked_at: float, asked_for: int) -> None:
        """What a read has brought says how the next ones are made."""
        self._idle = not entries
        if len(entries) < asked_for:
            self._caught_up = asked_at
        self._full = len(entries) >= asked_for // 2
        self._adapt(entries)

    @property
    def caught_up_at(self) -> float:
        """Until when, by the clock, everything there was has been read; minus infinity before the first."""
        return self._caught_up

    def _read_round(self) -> Sequence[Entry]:
        """Every stream gets its equal share; then those that had more share what is left."""
        streams = self._streams.keys
        start = self._position % len(streams)
        blocks, busy, done = self._fetch_round(streams[start:] + streams[:start], self._budget)
        self._position = start + done
        self._busy = busy
        entries = Entries(blocks)
        while busy and len(entries) < self._budget:
            more, busy, _ = self._fetch_round(busy, self._budget - len(entries))
            if not more:
                break
            entries = Entries([*entries.blocks, *more])
        return entries

    def _fetch_round(self, streams: Sequence[bytes], budget: int) -> tuple[list[Block], list[bytes], int]:
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
            for block in self._streams.read(chunk, [b">"] * len(chunk), count):
                blocks.append(block)
                size = len(block[1])
                found += size
                if size >= count:
                    busy.append(block[0])
            done += len(chunk)
        return blocks, busy, done

    def _block(self, until: float) -> tuple[Sequence[Entry], float]:
        """Few streams: one blocking read over all of them, not beyond what is due next.

        Answers also until when there was nothing but these: an empty reply speaks for all of its wait.
        """
        streams = self._streams.keys
        now = self._clock()
        until = min(until, self._streams.next_discovery, self._next_lease, now + self._options.block_sec)
        count = max(1, self._budget // len(streams))
        wait_ms = max(1, int((until - now) * 1000))
        entries = Entries(self._streams.read(streams, [b">"] * len(streams), count, wait_ms))
        return entries, now if entries else min(now + wait_ms / 1000, self._clock())

    def _rest(self) -> list[Entry]:
        """Many streams: a pause that grows while nothing comes."""
        self._pause = min(LONGEST_PAUSE_SEC, 2 * self._pause or 0.01)
        self._stop.wait(self._pause)
        return []

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Read more when reads come back full, less when they are heavy or entries hold many readings."""
        if not entries:
            return
        self._pause = 0.0
        size = (
            entries.weight()
            if isinstance(entries, Entries)
            else sum(len(one) for entry in entries for one in entry.fields)
        )
        budget = self._budget
        if size > READ_BYTES:
            budget = len(entries) * READ_BYTES // size
        elif len(entries) >= 0.9 * budget:
            budget *= 2
        ceiling = int(self._options.batch_size / self._readings_per_entry)
        self._budget = max(1, min(budget, ceiling))

    def _keep_name(self) -> None:
        try:
            self._lease.renew()
        except NameTaken:
            self._lease.acquire(self._stop.wait, self._stop.is_set)
            self._recovery.want_own()
        self._next_lease = self._clock() + TTL_SEC / 3
