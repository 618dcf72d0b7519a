"""Reading a consumer's share of a group: bounded, fair, and through every outage of Redis.

What one call brings is bounded in entries, in bytes and in readings, whatever the number of streams and
whatever they hold. A reader belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import monotonic

import redis
import structlog

import redis_server
from entries import Entries, weight
from lease import TTL_SEC, NameTaken
from metrics import Stats
from reader_parts import ReaderOptions, parts_of
from redis_client import execute, is_denied, is_world, is_wrong_type
from redis_server import RedisServer
from refusals import is_refused
from retry import Patience, StopFlag
from sampling import Backlog
from schema import Entry, Outcome
from trimming import LETTERS_EVERY_SEC

CYCLE_SEC = 0.2  # what one batch should take at most: who comes now waits for up to three
READ_BYTES = 8 * 1024 * 1024  # what one batch may weigh before the next one is made smaller


def _passes(error: BaseException) -> bool:
    """Streams of another type are left out where they are read. What is left is a key that dead letters or
    the ledger need, taken by something else, or a right that was taken away: somebody has to put that
    right, and nothing is let go before.
    """
    return is_world(error) or is_wrong_type(error) or is_denied(error)


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
        self._patience = Patience("redis", _passes, stop, stats)
        # A worker that was just started had better end than wait for what nobody may come to mend.
        self._first = Patience("redis", lambda error: _passes(error) and not is_refused(error), stop, stats)
        parts = parts_of(client, options, stop, stats, token=token, wall_ms=wall_ms, clock=clock)
        self._accepted_key = parts.keys.flood_accepted
        self._lease = parts.lease
        self._sharing = parts.sharing
        self._streams = parts.streams
        self._rounds = parts.rounds
        self._ahead = parts.ahead
        self._may_read_ahead = parts.may_read_ahead
        self._recovery = parts.recovery
        self._settler = parts.settler
        self._trimmer = parts.trimmer
        self._letter_trimmer = parts.letter_trimmer
        self._losses = parts.losses
        self._leftovers = parts.leftovers
        self._sampler = parts.sampler
        self._budget = min(options.batch_size, 500)
        self._asked_for = 0  # of what is read ahead, how many entries at most
        self._backlog = False  # the last read brought about as much as was asked for
        self._readings_per_entry = 1.0
        self._given_at = 0.0  # when the last entries were handed out
        self._in_a_cycle = options.batch_size  # how many entries a worker stores in CYCLE_SEC
        self._caught_up = -inf
        self._next_lease = self._next_trim = self._next_letter_trim = 0.0

    def server(self) -> RedisServer:
        """Which server this is. Waits out an outage. Raises: what is refused for good (`refusals.py`)."""
        return self._first.call(lambda: redis_server.look(self._client))

    def start(self) -> bool:
        """Take the consumer name and look for streams. False when a stop came before the name was free.

        Raises: what is refused for good (`refusals.py`).
        """
        if not self._first.call(lambda: self._lease.acquire(self._stop.wait, self._stop.is_set)):
            return False
        self._next_lease = self._clock() + TTL_SEC / 3
        self._first.call(self._streams.discover)
        self._first.call(self._beat)  # not before: what others leave to this worker it must know
        return True

    def recover(self) -> list[Entry]:
        """Entries that may have been delivered before, or none. To be called before each `read`.

        First this consumer's own pending entries (at start, and whenever a reply may have been lost);
        then, again and again, what has been pending too long with whichever consumer. An entry past
        MAX_DELIVERIES comes alone, and after it has brought the process down twice like that it is
        dead-lettered as poison.
        """
        if self._rounds.under_way:
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
        entries = self._patience.call(lambda: self._read(until), on_error=self._recovery.want_own)
        self._stats.messages_read += len(entries)
        self._given_at = self._clock()
        return entries

    def read_ahead(self) -> None:
        """Have Redis get the next batch ready while this one is written, where there is a backlog and no
        pending entries are to be looked for. Waits for nothing.
        """
        if self._may_read_ahead and self._backlog and not self._recovery.due and not self._stop.is_set():
            self._asked_for = self._budget
            self._rounds.ask_ahead(self._budget)

    @property
    def has_more(self) -> bool:
        """Whether `read` has something that was read ahead."""
        return self._rounds.under_way

    @property
    def has_pending(self) -> bool:
        """Whether this consumer may have entries pending that nobody holds in hand."""
        return self._rounds.under_way or self._recovery.own_wanted

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
        # After an outage Redis may be back from an older state: what it has pending for this consumer is
        # asked for, as after a lost reply.
        again = self._recovery.want_own
        self._patience.call(lambda: self._ahead.settle(outcome.settled), on_error=again, in_hand=True)
        self._patience.call(self._recovery.excuse, in_hand=True)
        self._settler.note_batch(outcome.settled)
        if outcome.readings_rejected:
            self._settler.note_letters(outcome.settled)
        self._stats.batches_processed += 1
        self._stats.readings_written += outcome.readings_stored
        self._stats.readings_duplicate += outcome.readings_duplicate
        self._stats.readings_failed += outcome.readings_rejected
        self._stats.readings_skipped += outcome.readings_skipped
        readings = outcome.readings_stored + outcome.readings_duplicate + outcome.readings_rejected
        average = max(1.0, readings / max(1, len(outcome.settled)))
        took = self._clock() - self._given_at
        if took > CYCLE_SEC / 4:  # of less nothing can be told
            self._in_a_cycle = int(len(outcome.settled) * CYCLE_SEC / took)
        self._readings_per_entry = 0.5 * self._readings_per_entry + 0.5 * average

    def upkeep(self) -> None:
        """What is due between batches: renew the name, trim what everybody has acknowledged, and letters.

        When the name was lost meanwhile (this process was stopped for long), wait for it again.
        """
        if self._clock() >= self._next_lease:
            self._patience.call(self._keep_name, on_error=self._recovery.want_own)
        if self._clock() >= self._sharing.next_beat:
            self._patience.call(self._beat, on_error=self._recovery.want_own)
        if self._options.sample and self._clock() >= self._sampler.due_at:
            self._patience.call(
                lambda: self._sampler.step(self._streams.keys), on_error=self._recovery.want_own
            )
        if self._clock() >= self._losses.due_at:
            self._patience.call(lambda: self._losses.step(self._streams.keys))
        if self._clock() >= self._leftovers.due_at:
            self._patience.call(lambda: self._leftovers.step(self._streams.keys))
        due = self._options.stream_retention_sec and self._clock() >= self._next_trim
        if due and self._patience.call(lambda: self._trimmer.trim(self._streams.keys)):
            self._next_trim = self._clock() + self._trimmer.interval_sec
        due = self._options.dead_letter_retention_sec and self._clock() >= self._next_letter_trim
        if due and self._patience.call(self._letter_trimmer.trim):
            self._next_letter_trim = self._clock() + LETTERS_EVERY_SEC

    def flood_accepted(self) -> bool:
        """Whether an operator lets a flood of dead letters through: the key is there."""
        asked = self._patience.call(lambda: execute(self._client, "GET", self._accepted_key), in_hand=True)
        return asked is not None

    def recall(self) -> None:
        """Have what is pending with this consumer delivered again."""
        self._recovery.want_own()

    @property
    def part(self) -> float:
        """The part of all streams that this worker reads, about."""
        return self._sharing.part

    @property
    def backlog(self) -> Backlog | None:
        """How far this worker's part of the group is behind; None before the first look. For any thread."""
        return self._sampler.latest

    def finish(self) -> None:
        """Have everything that was settled certain."""
        self._patience.call(self._ahead.confirm, in_hand=True)

    def close(self) -> None:
        """Give the streams and the name back. Pending entries stay for whoever takes it over."""
        try:
            if self._lease.held:
                self._sharing.leave()
                self._lease.release()
        except redis.RedisError as error:
            structlog.get_logger().warning("consumer_name_not_released", error=type(error).__name__)
        self._ahead.close()
        self._client.close()

    def _read(self, until: float) -> Sequence[Entry]:
        budget = self._budget
        if not self._stop.is_set() and self._clock() >= self._streams.next_discovery:
            self._streams.discover()
        if self._rounds.under_way:
            budget = self._asked_for
            entries, asked = self._rounds.take()
        else:
            entries, asked = self._rounds.read(budget, self._next_due(until))
        if len(entries) < budget:
            self._caught_up = max(self._caught_up, asked)
        self._backlog = len(entries) >= budget // 2
        self._adapt(entries)
        return entries

    @property
    def caught_up_at(self) -> float:
        """Until when, by the clock, everything there was has been read, by this worker or by those that it
        shares the streams with; minus infinity before the first.
        """
        return min(self._caught_up, self._sharing.others_caught_up())

    def _next_due(self, until: float) -> float:
        """Until when a read may wait at most: `until`, or what is due next, or BATCH_TIMEOUT_SEC."""
        return min(
            until,
            self._streams.next_discovery,
            self._sharing.next_beat,
            self._next_lease,
            self._clock() + self._options.block_sec,
        )

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Read more when reads come back full, less when they are heavy or entries hold many readings."""
        if not entries:
            return
        size = entries.weight() if isinstance(entries, Entries) else weight(entries)
        budget = self._budget
        if size > READ_BYTES:
            budget = len(entries) * READ_BYTES // size
        elif len(entries) >= 0.9 * budget:
            budget *= 2
        ceiling = int(self._options.batch_size / self._readings_per_entry)
        self._budget = max(1, min(budget, ceiling, max(self._options.batch_size // 2, self._in_a_cycle)))

    def _beat(self) -> None:
        if self._sharing.beat(self._caught_up):
            self._streams.divide()

    def _keep_name(self) -> None:
        try:
            self._lease.renew()
        except NameTaken:
            self._lease.acquire(self._stop.wait, self._stop.is_set)
            self._recovery.want_own()
        self._next_lease = self._clock() + TTL_SEC / 3
