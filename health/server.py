"""HTTP for probes and for Prometheus: three addresses, short requests, few at once.

Threads, since a look at servers that are away takes seconds and must not hold up `/livez`. One owner: who
opens it closes it. What a peer sends is read to its first blank line, within bounds of size and time, and
each connection ends with its answer.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer
from time import monotonic
from typing import Any, NamedTuple

from config import ConfigError
from signs import OK, Signs

MOST_AT_ONCE = 8
READ_SEC = 2.0
MOST_BYTES = 8192
_ROOM_SEC = 1.0  # in which a connection that was ended leaves its place
_JSON = "application/json"


class Page(NamedTuple):
    """An answer."""

    status: HTTPStatus
    kind: str
    body: bytes


class HealthServer:
    """Listens from `start` to `close`. Raises, from `start`: `ConfigError` where it cannot."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._address = (host, port)
        self._pages = pages
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = port

    def start(self) -> None:
        host, port = self._address
        try:
            self._server = _Server(self._address, self._pages)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"HEALTH_HOST and HEALTH_PORT are {host}:{port}, where this process cannot listen "
                f"({getattr(error, 'strerror', None) or error}); they take an address of this machine and "
                "a port that is free, another one for each process"
            ) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def pages_of(signs: Signs, render: Callable[[], bytes], kind: str) -> dict[str, Callable[[], Page]]:
    """The three addresses. `render` makes the metrics, of content type `kind`."""

    def live() -> Page:
        age = round(signs.progress.age_sec, 3)
        body = {"live": not signs.stuck, "progress_age_sec": age, "stuck_after_sec": signs.stuck_after_sec}
        return _page(body, good=not signs.stuck)

    def ready() -> Page:
        checks = signs.checks()
        started = signs.started()
        good = started and all(said == OK for said in checks.values())
        told = {name: said or "ok" for name, said in checks.items()}
        return _page({"ready": good, "started": started, **told}, good=good)

    def measured() -> Page:
        return Page(HTTPStatus.OK, kind, render())

    return {"/livez": live, "/readyz": ready, "/metrics": measured}


def _page(body: dict[str, Any], *, good: bool) -> Page:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(status, _JSON, json.dumps(body).encode() + b"\n")


class _Server(TCPServer):
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Callable[[], Page]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.pages = pages
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._silent: dict[socket.socket, None] = {}  # whose request is not there, the longest first
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, where there is a place or who asks nothing makes one; else the connection
        is closed unread.
        """
        if not self._places.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        with self._lock:
            self._silent[request] = None
        threading.Thread(target=self._answer, args=(request, client_address), daemon=True).start()

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the peer is gone, or too slow: there is nobody to tell
        finally:
            self.has_asked(request)
            self.shutdown_request(request)
            self._places.release()

    def has_asked(self, request: Any) -> None:
        """Its request is there: it is answered, whoever else comes. Called before it is closed."""
        with self._lock:
            self._silent.pop(request, None)

    def _make_room(self) -> bool:
        """End the connection that has asked nothing for longest: else eight of them end every probe."""
        with self._lock:
            if not self._silent:
                return False
            longest = next(iter(self._silent))
            del self._silent[longest]
            with suppress(OSError):  # it has hung up already
                longest.shutdown(socket.SHUT_RDWR)
        return self._places.acquire(timeout=_ROOM_SEC)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "sluice"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(READ_SEC)
        self.rfile.close()
        self.rfile = BytesIO(_head(self.connection))
        self.server.has_asked(self.connection)

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            known = " ".join(self.server.pages)
            self._send(Page(HTTPStatus.NOT_FOUND, "text/plain", f"there are {known}\n".encode()))
        else:
            self._send(page())

    do_HEAD = do_GET  # noqa: N815

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Probes come all the time, and what they send is anybody's."""


def _head(connection: socket.socket) -> bytes:
    """What is sent up to the first blank line. Raises `TimeoutError` when it takes longer than READ_SEC."""
    ends = monotonic() + READ_SEC
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MOST_BYTES:
        connection.settimeout(max(0.001, ends - monotonic()))
        part = connection.recv(MOST_BYTES - len(head))
        if not part:
            break
        head += part
        if monotonic() > ends:
            raise TimeoutError
    connection.settimeout(READ_SEC)
    return head
