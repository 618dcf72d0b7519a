"""Producers' side: numbered readings, through outages of Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

import redis

import redis_client
from redis_servers import RedisServers

BEGIN = 1_767_225_600  # 2026-01-01T00:00:00Z, the time of the reading numbered 0


class Source:
    """Adds numbered readings, some 10,000 a second, for as long as its block lasts.

    `acknowledged`: how many Redis has said it has, `replicas` of its replicas too; these are the readings 0
    to `acknowledged` - 1. `rest_sec`: pause after each 200 of them. `value_of`: what the reading of a
    number says.
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
        self.acknowledged = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        """An XADD whose reply was lost may be in the stream: it is sent again with the same entry ID, also
        when the end came meanwhile, or there would be one entry more than were counted.
        """
        number, doubtful = 0, False
        client = redis_client.connect(self._url, timeout_sec=5)
        while doubtful or not self._stop.is_set():
            try:
                for n in range(number, number + 200):
                    self._add(client, n)
                    number = n + 1
                    if not self._replicas:
                        self.acknowledged = number
                self._confirm(client)
                self.acknowledged = number
                doubtful = False
            except redis.RedisError as error:
                if not redis_client.is_world(error):
                    raise
                doubtful, number = True, self.acknowledged
                self._stop.wait(0.05)
            self._stop.wait(self._rest_sec)
        client.close()

    def _confirm(self, client: redis.Redis) -> None:
        """What the last master had alone went with it."""
        wanted = self._replicas
        if wanted and redis_client.execute(client, "WAIT", wanted, 2000) < wanted:
            raise redis.TimeoutError("too few replicas have it")

    def _add(self, client: redis.Redis, n: int) -> None:
        fields = ("value", self._value_of(n), "timestamp", str(BEGIN + n))
        try:
            redis_client.execute(
                client, "XADD", f"mqtt_stream:dev-{n % self._devices}:t", f"{n + 1}-1", *fields
            )
        except redis.ResponseError as error:
            if "equal or smaller" not in str(error):
                raise
