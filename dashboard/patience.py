"""Connections that ask nothing: each keeps a place that a browser may need, so it is not kept for long.

h11, not the quicker httptools: that one reads a request's head however long it is, and keeps all of it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ASK_SEC = 10.0  # from the beginning, or from an answer, until the next request is there with its whole head
MOST_HEAD = 16_384  # bytes


class Patient(H11Protocol):
    """A connection. Where there are as many as may be, whoever has asked nothing for longest makes room."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._due: asyncio.TimerHandle | None = None
        self._waits_since = monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether it is the peer's turn to ask. What is left of an answer may still be on its way."""
        return self in self.connections and (self.cycle is None or self.cycle.response_complete)

    def _watch(self) -> None:
        """A part of a head does not begin the time anew."""
        if not self._waits:
            self._forget()
        elif self._due is None:
            self._waits_since = monotonic()
            self._due = self.loop.call_later(ASK_SEC, self.transport.close)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _make_room(self) -> None:
        """Aborted, since closing would wait for whoever takes nothing of its answer."""
        idle = [
            one for one in self.connections if isinstance(one, Patient) and one is not self and one._waits
        ]
        if idle:
            longest = min(idle, key=lambda one: one._waits_since)
            self.connections.discard(longest)
            longest.transport.abort()
