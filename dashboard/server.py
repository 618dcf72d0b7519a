"""The process behind `python main.py dashboard`: a web server, its threads, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

import metrics
from config import ConfigError
from dashboard.access import Access
from dashboard.asking import Asking
from dashboard.assets import Assets
from dashboard.charts import Charts
from dashboard.guard import LOOPBACK, Guard
from dashboard.hub import Hub
from dashboard.options import DashboardOptions
from dashboard.patience import MOST_HEAD, Patient
from dashboard.pipeline import Gauge
from dashboard.pushing import SLOW_SEC, Pushing
from dashboard.routes import Routes
from dashboard.watching import Watching
from live import Told
from live_listener import Following
from metrics import Sample, Stats
from progress import Progress, Slowest
from query.options import Tls, is_loopback
from query.pulse import LONGEST_BEAT_SEC, Pulse
from retry import StopFlag, Stopping
from signs import Signs

_LOOK_SEC = 0.1
_MOST_MESSAGE = 4_096  # a page says nothing
_PING_SEC = 20.0
_SPARE = 100  # connections beside those of pages: charts, files, and the next page that loads


class DashboardServer:
    """Serves until `stop`, which any thread or signal handler may call.

    Raises, from `run`: `ConfigError` and `SchemaMismatch` before the first page is served. A database that
    is away at the start is waited for, and pages say so.
    """

    def __init__(self, options: DashboardOptions, stop: StopFlag) -> None:
        self._options = options
        self._stop = stop
        self._failure: BaseException | None = None
        self._hear: Callable[[Told], None] = lambda _told: None
        self._changed: Callable[[], None] = lambda: None
        self._pulse = Pulse(
            options.database_url,
            options.table,
            stop,
            lambda _answers: self._changed(),
            enable_timescale=options.enable_timescale,
            name="dashboard",
        )
        self._stats = Stats()
        self._following = Following(
            options.database_url,
            stop,
            self._stats,
            lambda told: self._hear(told),
            direct_url=options.direct_url,
        )
        self._loop = Progress()
        self._hub: Hub | None = None
        self._asking: Asking | None = None
        self.serving = False
        self.port: int | None = None

    def run(self) -> None:
        """Serve, and at a stop finish the answers in hand."""
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what it says is said here in other words
        try:
            self._pulse.first()
            assets = Assets()
            listener = _listen(self._options)
            self.port = int(listener.getsockname()[1])
        except BaseException:
            self._pulse.close()
            raise
        asyncio.run(self._serve(listener, assets))
        if self._failure is not None:
            raise self._failure
        structlog.get_logger().info("dashboard_stopped")

    def stop(self) -> None:
        """Take no more requests, end every page's connection, and end `run`. Returns at once."""
        self._stop.set()

    def signs(self) -> Signs:
        """What it shows of itself while it runs."""
        return Signs(
            progress=Slowest(self._pulse.progress, self._loop),
            stuck_after_sec=self._options.stuck_sec + LONGEST_BEAT_SEC,
            started=lambda: self.serving,
            stopping=self._stop.is_set,
            checks=self._pulse.check,
            samples=self._samples,
            status=lambda: "serves" if self._pulse.answers else "the database does not answer",
        )

    def _samples(self) -> Iterator[Sample]:
        yield from metrics.of_servers(self._stats)
        yield from self._pulse.samples()
        yield metrics.LISTENING, (), int(self._following.connected)
        if self._hub is not None and self._asking is not None:
            yield metrics.PAGES, (), len(self._hub.clients)
            yield metrics.CONNECTIONS, ("in_use",), self._asking.in_use
            yield metrics.CONNECTIONS, ("idle",), self._asking.idle

    async def _serve(self, listener: socket.socket, assets: Assets) -> None:
        options, loop = self._options, asyncio.get_running_loop()
        hub = self._hub = Hub(options.clients)
        asking = self._asking = Asking(options.database_url, options.timeout_sec)
        gauge = Gauge(options.pipeline)
        watching = Watching(
            hub,
            asking,
            gauge,
            options.table,
            lambda: self._pulse.answers,
            lambda: self._following.connected,
            login=not options.open,
        )
        self._hear = lambda told: _soon(loop, hub.hear, told)
        self._changed = lambda: _soon(loop, watching.say_state)
        server = _Server(self._config(self._application(hub, watching, asking, assets)))
        for work in (self._pulse.run, self._following.run):
            threading.Thread(target=self._guard, args=(work,), daemon=True).start()
        watch = asyncio.create_task(self._watched(watching.run()))
        ending = asyncio.create_task(self._end(server))
        try:
            self._tell_start()
            self.serving = True  # the port takes connections since `_listen`
            await server.serve(sockets=[listener])
        finally:
            self._stop.set()
            for task in (watch, ending):
                task.cancel()
            await asyncio.gather(watch, ending, return_exceptions=True)
            asking.close()
            gauge.close()

    def _application(self, hub: Hub, watching: Watching, asking: Asking, assets: Assets) -> Guard:
        options = self._options
        access = Access(options.password, options.token)
        routes = Routes(
            access,
            assets,
            asking,
            Charts(options.table),
            hub,
            lambda: self._pulse.answers,
            publish_alerts=options.publish_alerts,
        )
        pushing = Pushing(hub, watching, asking, options.table)
        app = Starlette(routes=[*routes.all(), WebSocketRoute("/ws", pushing.answer)])
        own = (*LOOPBACK, options.host) if is_loopback(options.host) else ()
        hosts = (*own, *LOOPBACK, *options.allowed_hosts) if own or options.allowed_hosts else ()
        guard = Guard(app, access, hosts, secure=options.tls is not None)
        routes.guard = guard
        return guard

    def _config(self, app: Guard) -> uvicorn.Config:
        options = self._options
        tls: dict[str, Any] = {}
        if options.tls is not None:
            tls = {
                "ssl_certfile": str(options.tls.certificate),
                "ssl_keyfile": str(options.tls.key),
                "ssl_keyfile_password": "",
            }
        return uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http=Patient,
            h11_max_incomplete_event_size=MOST_HEAD,
            # This one waits for a browser that takes nothing, instead of keeping everything for it.
            ws="websockets-sansio",
            ws_max_size=_MOST_MESSAGE,
            ws_ping_interval=_PING_SEC,
            ws_ping_timeout=_PING_SEC,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2 * options.clients + _SPARE,
            timeout_graceful_shutdown=max(1, int(0.5 * options.shutdown_sec)),
            **tls,
        )

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what keeps pages up to date; its bug ends the process."""
        try:
            await work
        except Exception as bug:  # noqa: BLE001  raised in `run`, by the main thread
            self._failure = bug.exceptions[0] if isinstance(bug, ExceptionGroup) else bug

    async def _end(self, server: uvicorn.Server) -> None:
        while not self._stop.is_set() and self._failure is None:
            self._loop.made()
            await asyncio.sleep(_LOOK_SEC)
        server.should_exit = True

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread; its bug ends the process, in `run`."""
        try:
            with contextlib.suppress(Stopping):  # nothing is in hand there
                work()
        except Exception as bug:  # noqa: BLE001  handed to the main thread, which tells it
            self._failure = bug

    def _tell_start(self) -> None:
        options = self._options
        log = structlog.get_logger()
        log.info(
            "dashboard_started",
            host=options.host,
            port=self.port,
            tls=options.tls is not None,
            password=options.password is not None,
            token=options.token is not None,
        )
        if options.tls is None and not is_loopback(options.host):
            log.warning("dashboard_without_tls", remedy="set DASHBOARD_CERTIFICATE and DASHBOARD_KEY")


class _Server(uvicorn.Server):
    """Signals are `serving.py`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    """From another thread. After the loop's end nobody is left to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def _listen(options: DashboardOptions) -> socket.socket:
    """Raises `ConfigError` for an address where this process cannot listen, and for wrong files."""
    if options.tls is not None:
        _check(options.tls)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=256)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Of a connection whose other end takes nothing: closing it would wait for that without end.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SLOW_SEC * 1000))
        return listener
    except (OSError, OverflowError):
        raise ConfigError(
            f"DASHBOARD_HOST and DASHBOARD_PORT are {options.host}:{options.port}, where this process"
            " cannot listen; they take an address of this machine and a port that is free"
        ) from None


def _check(tls: Tls) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")  # or it would ask at the terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"DASHBOARD_CERTIFICATE is {str(tls.certificate)!r} and DASHBOARD_KEY {str(tls.key)!r}, which"
            f" cannot be used ({error}); they take a certificate and its key in PEM"
        ) from None
