"""What the tests of the dashboard share: a server in this process, and WebSockets that remember."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from dashboard.options import DashboardOptions, PipelineOptions
from dashboard.server import DashboardServer
from retry import StopFlag
from tests.support import Database, in_thread, wait_until

NOWHERE = "redis://127.0.0.1:1/0"


class Socket:
    """A WebSocket of a page. Each message that has come, in order."""

    def __init__(self, url: str, **options: Any) -> None:
        self.connection: ClientConnection = connect(url, max_size=None, **options)
        self.messages: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for text in self.connection:
                self.messages.append(json.loads(text))
        close = self.connection.protocol
        self.closed = (close.close_code or 0, close.close_reason or "")

    def of(self, kind: str) -> list[Any]:
        return [one["data"] for one in list(self.messages) if one["type"] == kind]

    def wait_for(self, kind: str, condition: Callable[[Any], object] = lambda _data: True) -> Any:
        """The first message of this kind of which the condition holds."""
        found: list[Any] = []

        def came() -> bool:
            found[:] = [data for data in self.of(kind) if condition(data)]
            return bool(found)

        wait_until(came, 20, f"a message {kind!r}, beside {[one['type'] for one in self.messages][-20:]}")
        return found[0]

    def wait_closed(self) -> tuple[int, str]:
        wait_until(lambda: self.closed, 20, "the end of the WebSocket")
        assert self.closed
        return self.closed

    def close(self) -> None:
        self.connection.close()
        self._thread.join(10)


class Page:
    """A dashboard that serves, and what asks it."""

    def __init__(self, server: DashboardServer) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.http = httpx.Client(base_url=f"http://{self.address}", timeout=20)
        self._sockets: list[Socket] = []

    def socket(self, query: str = "", **options: Any) -> Socket:
        made = Socket(f"ws://{self.address}/ws{query}", **options)
        self._sockets.append(made)
        return made

    def close(self) -> None:
        self.http.close()
        for socket in self._sockets:
            socket.close()


def options_for(
    database: Database, url: str = "", redis_url: str = NOWHERE, **changes: Any
) -> DashboardOptions:
    values: dict[str, Any] = {
        "database_url": url or database.url,
        "table": "sensor_readings",
        "enable_timescale": database.timescale,
        "host": "127.0.0.1",
        "port": 0,
        "clients": 10,
        "timeout_sec": 10.0,
        "shutdown_sec": 8.0,
        "pipeline": PipelineOptions(
            redis=redis_url,
            group="db_writer",
            pattern="mqtt_stream:*",
            dead_letter_stream="mqtt_stream:failed",
        ),
    }
    return DashboardOptions(**(values | changes))


@contextmanager
def showing(database: Database, url: str = "", redis_url: str = NOWHERE, **changes: Any) -> Iterator[Page]:
    """A dashboard until the block ends, which must be clean."""
    server = DashboardServer(options_for(database, url, redis_url, **changes), StopFlag(8.0))
    with in_thread(server) as errors:
        wait_until(lambda: server.serving or errors, what="a dashboard that serves")
        if errors:
            raise errors[0]
        page = Page(server)
        try:
            yield page
        finally:
            server.stop()
            page.close()
