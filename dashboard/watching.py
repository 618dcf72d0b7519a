"""What keeps open pages up to date, and asks nothing while none is open: a loop for each thing.

A loop looks when it is told that something has happened, else at its interval. It takes at most a twentieth
of the time: what takes long is done more seldom.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from dashboard import messages
from dashboard.asking import Asking, Unanswered
from dashboard.hub import Client, Hub, utc_now
from dashboard.pipeline import Gauge
from dashboard.wanted import CARDS, DEVICES, View
from database import BoundedConnection
from live import Series
from query import queries
from query.queries import AlertFilter, Row, SeriesPage
from redis_client import chunks
from thresholds import Status

HISTORY = 20  # rows of each series that a page begins with
REPLAYED = 200  # of each series at most, after a gap
ALERTS_SHOWN = 50
RESOLVED_SHOWN = 8
LIFE_SEC = 5.0  # a page that hears nothing for longer than twice that is cut off
_SHARE = 20
_TOGETHER = 200  # series in one question


class Watching:
    """Belongs to the event loop. `database`: whether the database answers; `listening`: whether new
    readings are heard of.
    """

    def __init__(
        self,
        hub: Hub,
        asking: Asking,
        gauge: Gauge,
        table: str,
        database: Callable[[], bool],
        listening: Callable[[], bool],
        *,
        login: bool,
    ) -> None:
        self._hub = hub
        self._asking = asking
        self._gauge = gauge
        self._table = table
        self._database = database
        self._listening = listening
        self._login = login

    async def run(self) -> None:
        """Until it is cancelled. Raises what is a bug."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._signs_of_life())
            for work, interval, gap, wake in (
                (self.rows, 3600.0, 0.2, self._hub.gone_stale),
                (self.alerts, 2.0, 0.3, self._hub.stirred),
                (self.views, 2.0, 0.5, self._hub.missed),
                (self.pipeline, 2.0, 1.0, asyncio.Event()),
            ):
                group.create_task(self._keep(work, interval, gap, wake))

    async def rows(self) -> None:
        """Read what was missed of shown series, and send it to all who show them."""
        for part in chunks(self._hub.take_stale(), _TOGETHER):
            found = await self.read_rows(part)
            by_series: dict[Series, list[Row]] = {}
            for row in found:
                by_series.setdefault(row[:2], []).append(row)
            for series, rows in by_series.items():
                self._hub.show(series, messages.history(rows))

    async def read_rows(self, series: Sequence[Series]) -> list[Row]:
        return await self._asking.ask(
            lambda connection: queries.last_rows(
                connection, series, HISTORY, now=utc_now(), table=self._table
            )
        )

    async def alerts(self) -> None:
        def look(
            connection: BoundedConnection,
        ) -> tuple[list[queries.AlertRow], int, list[queries.AlertRow]]:
            active, total = queries.alerts(connection, AlertFilter(status=Status.ACTIVE), 1, ALERTS_SHOWN)
            done, _ = queries.alerts(connection, AlertFilter(status=Status.RESOLVED), 1, RESOLVED_SHOWN)
            return active, total, done

        self._hub.say("alerts", messages.alerts(*await self._asking.ask(look)))

    async def views(self) -> None:
        """Series and devices that came or went: each page that shows others now is told."""
        by_view: dict[View, list[Client]] = {}
        for client in self._hub.clients:
            by_view.setdefault(client.view, []).append(client)
        for view, clients in by_view.items():
            found, devices = await self.look(view)
            for client in clients:
                if client in self._hub.clients:
                    self.tell(client, found, devices)

    def tell(self, client: Client, found: SeriesPage, devices: queries.DevicePage) -> None:
        """Show what was found to one browser, unless that is what it shows."""
        self._turn(client, found)
        said = messages.devices(devices)
        if client.devices != said:
            client.devices = said
            client.outbox.put("devices", said)

    async def look(self, view: View) -> tuple[SeriesPage, queries.DevicePage]:
        def ask(connection: BoundedConnection) -> tuple[SeriesPage, queries.DevicePage]:
            devices = queries.device_page(connection, view.words, view.devices_page, DEVICES)
            if not view.named:
                return queries.series_page(connection, view.words, view.page, CARDS), devices
            named = queries.series_named(connection, view.named)
            return SeriesPage(page=1, pages=1, total=len(named), series=named), devices

        return await self._asking.ask(ask)

    async def pipeline(self) -> None:
        found = await asyncio.to_thread(self._gauge.look)
        self._hub.say("pipeline", messages.pipeline(dataclasses.asdict(found)))

    def say_state(self) -> None:
        """To every page: whether the database answers, and the time."""
        said = self.state()
        for client in self._hub.clients:
            client.outbox.put("state", said)

    def state(self) -> str:
        return messages.state(
            utc_now(), database=self._database(), listening=self._listening(), login=self._login
        )

    def _turn(self, client: Client, found: SeriesPage) -> None:
        """Show what was found; rows of series that were not shown before are read soon."""
        said = messages.page(found)
        if client.page == said:
            return
        client.page = said
        client.outbox.put("page", said)
        before = set(client.series)
        self._hub.follow(client, (one[:2] for one in found.series))
        self._hub.stale.update(set(client.series) - before)
        self._hub.gone_stale.set()

    async def _signs_of_life(self) -> None:
        while True:
            self.say_state()
            await asyncio.sleep(LIFE_SEC)

    async def _keep(
        self, work: Callable[[], Awaitable[None]], interval: float, gap: float, wake: asyncio.Event
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(interval):
                    await wake.wait()
            except TimeoutError:
                pass
            wake.clear()
            if not self._hub.clients:
                await self._hub.anybody.wait()
            began = monotonic()
            try:
                await work()
            except Unanswered as unanswered:
                # The pulse has told why; what was missed is read when the database is back (`Many`).
                gap_now = 1.0 if unanswered.away else gap
            else:
                gap_now = gap
            await asyncio.sleep(max(gap_now, _SHARE * (monotonic() - began)))
