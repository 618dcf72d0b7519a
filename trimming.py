"""Dropping old entries that every group has acknowledged, and old dead letters. One worker at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import redis
import structlog

import redis_scripts
from lease import Lease, NameTaken
from redis_client import CHUNK, execute, is_wrong_type
from redis_scripts import Keys
from scripting import Script

LONGEST_SEC = 0.05  # at a time, before new entries are read
LETTERS_EVERY_SEC = 60.0
_LETTERS_AT_ONCE = 10_000  # removed by one command: a millisecond or two


class Trimmer:
    """Trims what is older than `retention_sec`. Raises redis errors as they come; the reader retries."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        lease: Lease,
        retention_sec: int,
        wall_ms: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._script = Script(client, redis_scripts.TRIM)
        self._keys = keys
        self._lease = lease
        self._retention_sec = retention_sec
        self._wall_ms = wall_ms
        self._clock = clock
        self._left: deque[tuple[str, Sequence[bytes]]] = deque()
        self._trimmed = 0
        self.interval_sec = max(1.0, min(60.0, retention_sec / 10))

    def trim(self, streams: Sequence[bytes]) -> bool:
        """Go through `streams`, or on through those of the call before. False while some are left."""
        try:
            self._lease.renew()
        except NameTaken:
            self._left.clear()
            return True
        began = self._clock()
        oldest = max(0, self._wall_ms() - self._retention_sec * 1000)
        self._left = self._left or deque(self._keys.together(streams, CHUNK))
        while self._left and self._clock() - began <= LONGEST_SEC:
            ledger, some = self._left[0]
            self._trimmed += int(self._script(keys=[ledger, *some], args=[oldest]))
            self._left.popleft()
        if self._left:
            return False
        if self._trimmed:
            structlog.get_logger().info("entries_trimmed", entries=self._trimmed)
        self._trimmed = 0
        return True


class LetterTrimmer:
    """Removes dead letters older than `retention_sec`, by the time in their IDs: when they failed. Never by
    number. Raises redis errors as they come; the reader retries.
    """

    def __init__(
        self,
        client: redis.Redis,
        lease: Lease,
        stream: str,
        retention_sec: int,
        wall_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._lease = lease
        self._stream = stream
        self._retention_sec = retention_sec
        self._wall_ms = wall_ms
        self._removed = 0

    def trim(self) -> bool:
        """Remove some. False while more are left."""
        try:
            self._lease.renew()
        except NameTaken:
            return True
        oldest = max(0, self._wall_ms() - self._retention_sec * 1000)
        whole_nodes = ("MINID", "~", oldest, "LIMIT", _LETTERS_AT_ONCE)
        try:
            removed = int(execute(self._client, "XTRIM", self._stream, *whole_nodes))
            more = removed > 0
            if not more:  # what is left is part of one node
                removed = int(execute(self._client, "XTRIM", self._stream, "MINID", oldest))
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            return True  # whoever dead-letters an entry tells of it; trimming need not hold up reading
        self._removed += removed
        if not more and self._removed:
            days = self._retention_sec // 86_400
            structlog.get_logger().info("dead_letters_removed", letters=self._removed, older_than_days=days)
            self._removed = 0
        return not more
