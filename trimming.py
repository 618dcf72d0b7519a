"""Dropping old entries that every group has acknowledged. One worker at a time does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import redis
import structlog

import redis_scripts
from lease import Lease, NameTaken
from redis_client import chunks
from scripting import Script

LONGEST_SEC = 0.05  # at a time, before new entries are read


class Trimmer:
    """Trims what is older than `retention_sec`. Raises redis errors as they come; the reader retries."""

    def __init__(
        self,
        client: redis.Redis,
        lease: Lease,
        retention_sec: int,
        wall_ms: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._script = Script(client, redis_scripts.TRIM)
        self._lease = lease
        self._retention_sec = retention_sec
        self._wall_ms = wall_ms
        self._clock = clock
        self._left: deque[Sequence[bytes]] = deque()
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
        self._left = self._left or deque(chunks(streams))
        while self._left and self._clock() - began <= LONGEST_SEC:
            self._trimmed += int(self._script(keys=list(self._left[0]), args=[oldest]))
            self._left.popleft()
        if self._left:
            return False
        if self._trimmed:
            structlog.get_logger().info("entries_trimmed", entries=self._trimmed)
        self._trimmed = 0
        return True
