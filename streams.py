"""Which streams there are, their groups, and the one command that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog
from redis.exceptions import ResponseError

import redis_scripts
from metrics import Stats
from redis_client import execute, execute_packed, packed
from redis_scripts import Keys
from schema import Fate
from scripting import Script

RawEntry = list[Any]
GROUPS_AT_ONCE = 100  # made by one script: more would hold up other clients
LONGEST_TRUST = 15  # searches that may be left out in a row while Redis holds as many keys as before


class Streams:
    """The streams that match a pattern and those that are named, sorted, each with its group made.

    `named` need neither exist nor match. `share_of` answers which of the others this worker reads; the
    named ones everybody reads, since not everybody need know of them. Raises redis errors as they come; the
    reader retries.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        keys: Keys,
        group: str,
        consumer: str,
        pattern: str,
        dead_letter_stream: str,
        interval_sec: float,
        stats: Stats,
        clock: Callable[[], float],
        named: Sequence[str] = (),
        share_of: Callable[[Sequence[bytes]], list[bytes]] = list,
    ) -> None:
        self.keys: list[bytes] = []  # all of them
        self.share: list[bytes] = []  # those that this worker reads; a new list whenever they are others
        self.heals = 0  # how often a read found a group or a stream gone, and so delivered nothing
        self._client = client
        self._group = group
        self._consumer = consumer
        self._pattern = pattern
        self._dead_letters = dead_letter_stream.encode()
        self._interval_sec = interval_sec
        self._stats = stats
        self._clock = clock
        self._keys = keys
        self._share_of = share_of
        self._known: set[bytes] = set()
        self._named = [name.encode() for name in named]
        self._other_type: set[bytes] = set()  # named keys of which it was said that they are no streams
        self._next_scan = self._next_look = self._trusted_until = 0.0
        self._size = -1  # how many keys Redis held before the last search
        self._script = Script(client, redis_scripts.MAKE_GROUPS)

    @property
    def next_discovery(self) -> float:
        """When something is due in `discover`."""
        return min(self._next_scan, self._next_look) if self._named else self._next_scan

    def discover(self) -> None:
        """Search and look for streams where that is due; make the group, from the first entry, where it is
        missing.
        """
        now = self._clock()
        if now >= self._next_scan:
            self._scan()
        if self._named and now >= self._next_look:
            self._look()

    def _scan(self) -> None:
        """SCAN for what matches the pattern; the dead-letter stream usually does too and is left out.

        The pause until the next search grows with what a search costs, so that a million keys do not keep
        Redis busy; and while there are as many keys as before a search is left out, a number of times: one
        may have gone as another came.
        """
        began = self._clock()
        size = self._client.dbsize()
        if size == self._size and began < self._trusted_until:
            self._next_scan = began + self._interval_sec
            return
        scan = self._client.scan_iter(match=self._pattern, count=1000, _type="stream")
        left_out = {self._dead_letters, *self._named}
        found = {key for key in scan if key not in left_out}
        took = self._clock() - began
        self._replace(self._known - set(self._named), found)
        self._next_scan = self._clock() + max(self._interval_sec, 20 * took)
        self._trusted_until = self._clock() + LONGEST_TRUST * self._interval_sec
        self._size = size

    def _look(self) -> None:
        """Ask for the named keys: one round trip, however long a search for the others takes."""
        with self._client.pipeline(transaction=False) as pipe:
            for name in self._named:
                pipe.type(name)
            types = dict(zip(self._named, pipe.execute(), strict=True))
        found = {name for name, kind in types.items() if kind == b"stream"}
        others = {name for name, kind in types.items() if kind not in (b"stream", b"none")}
        for name in sorted(others - self._other_type):
            structlog.get_logger().warning("named_key_is_no_stream", stream=name.decode())
        self._other_type |= others
        self._replace(self._known & set(self._named), found)
        self._next_look = self._clock() + self._interval_sec

    def _replace(self, known: set[bytes], found: set[bytes]) -> None:
        """Of all streams that are known, have `found` in place of `known`."""
        new = self._make_groups(sorted(found - known))
        if new or known - found:
            self._set((self._known - (known - found)) | new)
            structlog.get_logger().info("streams_found", streams=len(self.keys), new=len(new))

    def heal(self, streams: Sequence[bytes]) -> None:
        """Some group or stream is gone (a flush, a failover to an empty replica): make it again from 0."""
        self.heals += 1
        usable = self._make_groups(streams)
        gone = set(streams) - usable
        structlog.get_logger().warning("groups_healed", streams=len(usable), gone=len(gone))
        if gone:
            self._size = -1  # it may come back before anybody counts: search, however many keys there are
            self._set(self._known - gone)

    def read(
        self,
        streams: Sequence[bytes],
        ids: Sequence[bytes],
        count: int,
        block_ms: int | None = None,
    ) -> list[tuple[bytes, list[RawEntry]]]:
        """XREADGROUP over `streams`; (stream, entries) of those that had any. COUNT is for each stream."""
        return self._mended(
            lambda: execute(self._client, *self.command(streams, ids, count, block_ms)), streams
        )

    def read_packed(self, command: bytes, streams: Sequence[bytes]) -> list[tuple[bytes, list[RawEntry]]]:
        """As `read`, with the `command` that `ask` made of `streams`."""
        return self._mended(lambda: execute_packed(self._client, command), streams)

    def _mended(
        self, read: Callable[[], Any], streams: Sequence[bytes]
    ) -> list[tuple[bytes, list[RawEntry]]]:
        try:
            reply = read()
        except ResponseError as error:
            self.mend(error, streams)
            return []
        return reply or []

    def command(
        self, streams: Sequence[bytes], ids: Sequence[bytes], count: int, block_ms: int | None = None
    ) -> tuple[bytes | str | int, ...]:
        """XREADGROUP over `streams`."""
        block: tuple[str | int, ...] = () if block_ms is None else ("BLOCK", block_ms)
        head = ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *block)
        return *head, "STREAMS", *streams, *ids

    def mend(self, error: ResponseError, streams: Sequence[bytes]) -> None:
        """A read of `streams` has failed: mend that, or raise it. One missing group fails the read of
        all, and delivers nothing: the next read does.
        """
        if not str(error).startswith(("NOGROUP", "WRONGTYPE", "UNBLOCKED")):
            raise error
        self.heal(streams)

    def ask(self, streams: Sequence[bytes]) -> bytes:
        """The command that reads one entry of each of `streams`, ready to be sent as often as need be: to
        put it together would take more time than all else.
        """
        return packed(*self.command(streams, [b">"] * len(streams), 1))

    def divide(self) -> None:
        """Find out anew which streams this worker reads: workers have come or gone."""
        if self._named:
            named = self._known & set(self._named)
            others = [stream for stream in self.keys if stream not in named]
            self.share = sorted([*self._share_of(others), *named])
        else:
            self.share = self._share_of(self.keys)

    def _make_groups(self, streams: Sequence[bytes]) -> set[bytes]:
        """The streams that now have the group; those that vanished meanwhile are left out."""
        usable: set[bytes] = set()
        args = [self._group, *(fate.value for fate in Fate), "trimmed_unread"]
        for ledger, chunk in self._keys.together(streams, GROUPS_AT_ONCE):
            made = self._script(keys=[ledger, *chunk], args=args)
            usable.update(stream for stream, answer in zip(chunk, made, strict=True) if answer >= 0)
        return usable

    def _set(self, known: set[bytes]) -> None:
        self._known = known
        self.keys = sorted(known)
        self._stats.streams = len(self.keys)
        self.divide()
