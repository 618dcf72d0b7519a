"""The pipeline itself, as Redis tells it: what waits, how fast it goes, what failed, and who works."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import redis
import structlog

import redis_client
from dashboard.options import PipelineOptions
from ops.ledger import Books, read_ledger
from redis_scripts import Keys
from retry import describe

_ANSWER_SEC = 3.0
_MOST_WORKERS = 200
_STEADY_SEC = 10.0  # a rate is measured over this time


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A consumer whose lease holds, and the process that holds it."""

    name: str
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """All in entries; `rate` in entries settled a second, None until it is known.

    `reachable` False: nothing else is said.
    """

    reachable: bool
    lag: int = 0
    pending: int = 0
    rate: float | None = None
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    dead_letters: int = 0
    streams: int = 0
    missing: int = 0
    workers: tuple[Worker, ...] = ()


class Gauge:
    """Looks at Redis when it is told to. Used by one thread at a time."""

    def __init__(self, options: PipelineOptions, clock: Callable[[], float] = monotonic) -> None:
        self._options = options
        self._clock = clock
        self._client = redis_client.connect(options.redis, timeout_sec=_ANSWER_SEC, name="dashboard")
        self._seen: list[tuple[float, int]] = []
        self._away = False

    def look(self) -> Pipeline:
        """Never raises for a Redis that is away or refuses: then it is not reachable."""
        try:
            found = self._look()
        except (redis.RedisError, OSError) as error:
            if not self._away:
                structlog.get_logger().warning("dashboard_without_redis", error=describe(error))
            self._away = True
            self._seen.clear()
            return Pipeline(reachable=False)
        if self._away:
            structlog.get_logger().info("dashboard_with_redis")
        self._away = False
        return found

    def close(self) -> None:
        self._client.close()

    def _look(self) -> Pipeline:
        options = self._options
        ledger = read_ledger(
            self._client, options.group, options.pattern, options.dead_letter_stream, options.named
        )
        total = ledger.total
        return Pipeline(
            reachable=True,
            lag=total.unread,
            pending=total.pending,
            rate=self._rate(total),
            stored=total.stored,
            duplicate=total.duplicate,
            dead_lettered=total.dead_lettered,
            skipped=total.skipped,
            dead_letters=ledger.dead_letters,
            streams=len(ledger.streams),
            missing=total.missing,
            workers=self._workers(),
        )

    def _rate(self, total: Books) -> float | None:
        now = self._clock()
        if self._seen and total.settled < self._seen[-1][1]:
            self._seen.clear()  # Redis was emptied
        self._seen.append((now, total.settled))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _STEADY_SEC:
            self._seen.pop(0)
        began, before = self._seen[0]
        return (total.settled - before) / (now - began) if now > began else None

    def _workers(self) -> tuple[Worker, ...]:
        keys = Keys(self._options.group)
        names = sorted(self._client.scan_iter(match=keys.workers, count=1000))[:_MOST_WORKERS]
        with self._client.pipeline(transaction=False) as pipe:  # no MGET: in a cluster they are anywhere
            for name in names:
                pipe.get(name)
            held = pipe.execute()
        return tuple(
            _worker(name.decode(errors="replace")[len(keys.workers) - 1 :], lease)
            for name, lease in zip(names, held, strict=True)
            if lease is not None  # it may have ended in between
        )


def _worker(name: str, lease: bytes | str) -> Worker:
    try:
        known = json.loads(lease)
        return Worker(name=name, host=str(known["host"]), pid=int(known["pid"]))
    except (ValueError, KeyError, TypeError):  # another version's
        return Worker(name=name, host="", pid=0)
