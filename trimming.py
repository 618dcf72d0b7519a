"""Dropping old entries that every group has acknowledged. One worker at a time does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import redis
import structlog

import redis_scripts
from lease import Lease, NameTaken
from redis_client import chunks


class Trimmer:
    """Trims what is older than `retention_sec`. Raises redis errors as they come; the reader retries."""

    def __init__(
        self, client: redis.Redis, lease: Lease, retention_sec: int, wall_ms: Callable[[], int]
    ) -> None:
        self._script = client.register_script(redis_scripts.TRIM)
        self._lease = lease
        self._retention_sec = retention_sec
        self._wall_ms = wall_ms
        self.interval_sec = max(1.0, min(60.0, retention_sec / 10))

    def trim(self, streams: Sequence[bytes]) -> None:
        try:
            self._lease.renew()
        except NameTaken:
            return
        oldest = max(0, self._wall_ms() - self._retention_sec * 1000)
        trimmed = sum(int(self._script(keys=list(chunk), args=[oldest])) for chunk in chunks(streams))
        if trimmed:
            structlog.get_logger().info("entries_trimmed", entries=trimmed)
