"""Producers' side: numbered readings, through outages of Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Self

import redis

import redis_client
from redis_servers import RedisServers

LONGEST_DOUBT_SEC = 60.0  # after the end of the block: the test has failed then, and is not to hang
BEGIN = 1_767_225_600  # 2026-01-01T00:00:00Z, the time of the reading numbered 0


class Source:
    """Adds numbered readings, some 10,000 a second, for as long as its block lasts.

    `acknowledged`: how many Redis has said it has, `replicas` of its replicas too; these are the readings 0
    to `acknowledged` - 1. `added`: how many a master has said it has, at least. `rest_sec`: pause after
    each 200 of them. `value_of`: what the reading of a number says.
    """

    def __init__(
        self,
        url: RedisServers | str,
        devices: int = 20,
        *,
        replicas: int = 0,
        rest_sec: float = 0.01,
        value_of: Callable[[int], str] = str,
    ) -> None:
        self._url = url
        self._devices = devices
        self._replicas = replicas
        self._rest_sec = rest_sec
        self._value_of = value_of
        self.acknowledged = self.added = 0
        self._stop = threading.Event()
        self._ends_at = inf
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends_at = monotonic() + LONGEST_DOUBT_SEC
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        """An XADD whose reply was lost may be in the stream: it is sent again with the same entry ID, also
        when the end came meanwhile, or there would be one entry more than were counted.
        """
        number, doubtful = 0, False
        client = redis_client.connect(self._url, timeout_sec=5)
        while (doubtful and monotonic() < self._ends_at) or not self._stop.is_set():
            try:
                for n in range(number, number + 200):
                    self._add(client, n)
                    number = n + 1
                    self.added = max(self.added, number)
                    if not self._replicas:
                        self.acknowledged = number
                doubtful = not self._confirmed(client)
                if not doubtful:
                    self.acknowledged = number
            except redis.RedisError as error:
                if not redis_client.is_world(error):
                    raise
                doubtful, number = True, self.acknowledged
                self._stop.wait(0.05)
            self._stop.wait(self._rest_sec)
        client.close()

    def _confirmed(self, client: redis.Redis) -> bool:
        """What the last master had alone goes with it. While replicas are slow, more is added meanwhile."""
        wanted = self._replicas
        return not wanted or redis_client.execute(client, "WAIT", wanted, 500) >= wanted

    def _add(self, client: redis.Redis, n: int) -> None:
        fields = ("value", self._value_of(n), "timestamp", str(BEGIN + n))
        try:
            redis_client.execute(
                client, "XADD", f"mqtt_stream:dev-{n % self._devices}:t", f"{n + 1}-1", *fields
            )
        except redis.ResponseError as error:
            if "equal or smaller" not in str(error):
                raise
