"""Whether the servers that a process needs are all right, asked at most once a second.

A look connects anew, so it finds out what a new connection would, and leaves none behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic

import psycopg
import redis

import database
import redis_client
import schema_check
from redis_servers import RedisServers
from schema_check import SchemaMismatch
from signs import OK

KEPT_SEC = 1.0
ANSWER_SEC = 3.0
Check = Callable[[], dict[str, str]]


class Readiness:
    """`look` may be called by any thread: one asks, the others wait for its answer."""

    def __init__(self, checks: Sequence[Check], clock: Callable[[], float] = monotonic) -> None:
        self._checks = checks
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, str] = {}
        self._until = 0.0

    def look(self, *, fresh: bool = False) -> dict[str, str]:
        """What each check says: `OK`, or what is wrong; `fresh`: not what was found within the last second.
        Never raises; takes some seconds where a server is away.
        """
        with self._lock:
            if fresh or self._clock() >= self._until:
                self._found = {name: said for check in self._checks for name, said in check().items()}
                self._until = self._clock() + KEPT_SEC
            return self._found


def redis_check(servers: RedisServers | str) -> Check:
    """Whether Redis answers. What it says instead stands in the log: an answer to a probe names no host."""

    def look() -> dict[str, str]:
        try:
            with redis_client.connect(servers, timeout_sec=ANSWER_SEC, name="sluice-health") as client:
                client.ping()
        except (redis.RedisError, OSError, ValueError) as error:
            return {"redis": type(error).__name__}
        return {"redis": OK}

    return look


def database_check(url: str, table: str, *, enable_timescale: bool) -> Check:
    """Whether the database answers, and has the schema that is needed."""

    def look() -> dict[str, str]:
        try:
            with database.connect(url, timeout_sec=ANSWER_SEC) as connection:
                found = schema_check.look(connection, table)
                schema_check.check(found, table, enable_timescale=enable_timescale)
        except SchemaMismatch as mismatch:
            return {"database": OK, "schema": str(mismatch)}
        except (psycopg.Error, OSError) as error:
            return {"database": type(error).__name__, "schema": "unknown"}
        return {"database": OK, "schema": OK}

    return look
