"""Hands on what is told of new readings: to each browser what it shows, to a slow one the newest of it.

Belongs to the event loop. Nothing here waits, and what a browser has yet to take is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime

from dashboard import messages
from dashboard.wanted import View
from live import Many, Newest, News, Series, Told, Touched

# Messages that a browser may be behind before it gets only the newest: some seconds of a busy page. More
# than there can be different ones (a reading and a history for each of 100 series, and a few states).
MOST_QUEUED = 512


class Outbox:
    """What one browser has yet to be sent: in order, and beyond `most` the newest of each key alone."""

    def __init__(self, most: int = MOST_QUEUED) -> None:
        self._most = most
        self._queue: deque[tuple[Hashable, str]] = deque()
        self._filled = asyncio.Event()
        self.overtaken = 0  # messages that were never sent, since a newer one was there

    def put(self, key: Hashable, text: str) -> None:
        self._queue.append((key, text))
        if len(self._queue) > self._most:
            newest = dict(self._queue)  # of two with one key the later stays
            self.overtaken += len(self._queue) - len(newest)
            self._queue = deque(newest.items())
        self._filled.set()

    async def take(self) -> str:
        """The next message, as soon as there is one."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        return self._queue.popleft()[1]

    def __len__(self) -> int:
        return len(self._queue)


class Client:
    """One browser. `page` and `devices`: what was last said of them, so that only changes are sent."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.outbox = Outbox()
        self.series: tuple[Series, ...] = ()
        self.page = ""
        self.devices = ""


class Hub:
    """All browsers. `stale`: shown series of which something was missed, that have to be read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_series: dict[Series, set[Client]] = {}
        self.clients: set[Client] = set()
        self.stale: set[Series] = set()
        self.stirred = asyncio.Event()  # something was stored
        self.gone_stale = asyncio.Event()
        self.missed = asyncio.Event()  # anything may have happened
        self.anybody = asyncio.Event()  # while any page is open
        self._last: dict[Hashable, str] = {}

    @property
    def full(self) -> bool:
        return len(self.clients) >= self._most

    def enter(self, client: Client) -> None:
        """Add a browser, which is told at once what all are told."""
        self.clients.add(client)
        self.anybody.set()
        for key, text in self._last.items():
            client.outbox.put(key, text)

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        self.follow(client, ())
        if not self.clients:
            self.anybody.clear()

    def follow(self, client: Client, series: Iterable[Series]) -> None:
        """From now on tell this browser of these series, and of no other."""
        for one in client.series:
            others = self._by_series[one]
            others.discard(client)
            if not others:
                del self._by_series[one]
                self.stale.discard(one)
        client.series = tuple(dict.fromkeys(series))
        for one in client.series:
            self._by_series.setdefault(one, set()).add(client)

    def hear(self, told: Told) -> None:
        """What the listener has heard."""
        if isinstance(told, Newest):
            for news in told.readings:
                self._hand_on(news)
        elif isinstance(told, Touched):
            self._miss(one for one in told.series if one in self._by_series)
        elif isinstance(told, Many):
            self._miss(self._by_series)
            self.missed.set()
        self.stirred.set()

    def show(self, series: Series, text: str) -> None:
        """Send to all who show this series what was read of it."""
        for client in self._by_series.get(series, ()):
            client.outbox.put(("history", series), text)

    def say(self, key: Hashable, text: str) -> None:
        """Send the state of something to everybody, and to whoever comes later, unless it is the same."""
        if self._last.get(key) != text:
            self._last[key] = text
            for client in self.clients:
                client.outbox.put(key, text)

    def take_stale(self) -> list[Series]:
        self.gone_stale.clear()
        found, self.stale = sorted(self.stale), set()
        return found

    def _hand_on(self, news: News) -> None:
        clients = self._by_series.get(news[:2])
        if not clients:
            return
        if news.value is None and news.value_text is None:  # too long to be told
            self._miss([news[:2]])
            return
        text = messages.reading(news)
        for client in clients:
            client.outbox.put(("reading", news[:2]), text)

    def _miss(self, series: Iterable[Series]) -> None:
        self.stale.update(series)
        if self.stale:
            self.gone_stale.set()


def utc_now() -> datetime:
    return datetime.now(UTC)
