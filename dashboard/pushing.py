"""The WebSocket of a page: what it shows from the database first, then whatever is told, until it ends."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.websockets import WebSocket, WebSocketDisconnect

from dashboard import messages, wanted
from dashboard.asking import Asking, Unanswered
from dashboard.hub import Client, Hub, utc_now
from dashboard.wanted import Wanted, Wrong
from dashboard.watching import HISTORY, REPLAYED, Watching
from live import Series
from query import queries

# The codes of RFC 6455 and of the registry that it made, https://www.iana.org/assignments/websocket
_WRONG, _FULL = 1008, 1013
SLOW_SEC = 60.0  # a browser that takes nothing for so long is let go


class Pushing:
    """Answers `/ws`."""

    def __init__(self, hub: Hub, watching: Watching, asking: Asking, table: str) -> None:
        self._hub = hub
        self._watching = watching
        self._asking = asking
        self._table = table

    async def answer(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            asked = wanted.wanted(wanted.Parameters(socket.scope["query_string"].decode("latin-1")))
        except Wrong as wrong:
            await _refuse(socket, str(wrong), _WRONG)
            return
        if self._hub.full:
            await _refuse(socket, "as many pages are open as DASHBOARD_CLIENTS allows; close one", _FULL)
            return
        client = Client(asked.view)
        self._hub.enter(client)
        try:
            # Of who takes nothing nothing is kept. There is no use in saying good-bye to it either.
            with contextlib.suppress(WebSocketDisconnect, TimeoutError):
                await self._serve(socket, client, asked)
        finally:
            self._hub.leave(client)

    async def _serve(self, socket: WebSocket, client: Client, asked: Wanted) -> None:
        sender = asyncio.create_task(self._send(socket, client, asked))
        reader = asyncio.create_task(_read(socket))
        try:
            done, _ = await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (sender, reader):
                task.cancel()
            await asyncio.gather(sender, reader, return_exceptions=True)

    async def _send(self, socket: WebSocket, client: Client, asked: Wanted) -> None:
        """First the history, then what comes: a browser that takes nothing holds up this task alone."""
        await _send(socket, await self._begin(client, asked))
        client.outbox.put("state", self._watching.state())
        while True:
            await _send(socket, await client.outbox.take())

    async def _begin(self, client: Client, asked: Wanted) -> str:
        """The rows that a page begins with. It is told of its series before they are read, so that nothing
        falls between.

        What it shows comes from here too: somebody has turned to it and waits, and the next look at all
        pages is far off where looking takes long.
        """
        series: tuple[Series, ...] = asked.view.named
        try:
            found, devices = await self._watching.look(asked.view)
            series = series or tuple(one[:2] for one in found.series)
            self._hub.follow(client, series)
            self._watching.tell(client, found, devices)
            return messages.history(await self._rows(series, asked))
        except Unanswered:
            self._hub.follow(client, series)
            return messages.history(())  # the state says so; the rows come when it answers again

    async def _rows(self, series: tuple[Series, ...], asked: Wanted) -> list[queries.Row]:
        return await self._asking.ask(
            lambda connection: queries.last_rows(
                connection,
                series,
                HISTORY,
                now=utc_now(),
                after=asked.after,
                most=REPLAYED,
                table=self._table,
            )
        )


async def _send(socket: WebSocket, text: str) -> None:
    """Waits while the browser takes nothing. Raises `TimeoutError`."""
    async with asyncio.timeout(SLOW_SEC):
        await socket.send_text(text)


async def _read(socket: WebSocket) -> None:
    """A page has nothing to say; what comes is thrown away, until it hangs up."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _refuse(socket: WebSocket, sentence: str, code: int) -> None:
    with contextlib.suppress(WebSocketDisconnect):
        await socket.send_text(messages.error(sentence))
        await socket.close(code, sentence.encode()[:120].decode(errors="ignore"))
