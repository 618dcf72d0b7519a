"""Everything around a running process that tells of it: opened before it runs, closed after it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

import structlog

from health.notify import Notifier
from health.server import HealthServer, pages_of
from signs import Signs

STATUS_SEC = 5.0
TICK_SEC = 0.5
EXTEND_SEC = 30.0  # by which a start, or an end, may take longer while it gets on


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthOptions:
    """`port` 0: no HTTP. `shutdown_sec`: how long an end may take."""

    host: str
    port: int
    shutdown_sec: float


class Vitals:
    """A context around a process's `run`. Raises, when entered: `ConfigError`.

    Threads of its own, because the loop may be what has to be told of: one tells systemd, where there is
    one to tell, and one answers HTTP, where a port is set. Both only read.
    """

    def __init__(self, options: HealthOptions, role: str, signs: Signs, notifier: Notifier) -> None:
        self._options = options
        self._role = role
        self._signs = signs
        self._teller = Teller(signs, notifier, options.shutdown_sec)
        self._server: HealthServer | None = None

    def __enter__(self) -> Self:
        if self._options.port:
            from health.exposition import CONTENT_TYPE, Exposition  # a package that is not always needed

            pages = pages_of(self._signs, Exposition(self._role, self._signs).render, CONTENT_TYPE)
            self._server = HealthServer(self._options.host, self._options.port, pages)
            self._server.start()
            structlog.get_logger().info("health_served", host=self._options.host, port=self._server.port)
        self._teller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._teller.close()
        if self._server is not None:
            self._server.close()

    def reload(self) -> None:
        """For a signal handler: takes a note."""
        self._teller.reload_asked = True


class Teller:
    """Tells systemd what it wants to know: that the process is ready, gets on, reloads and ends.

    The watchdog is fed while the loop gets on, which waiting for a server is. A loop that is stuck gets no
    more food, and systemd starts the process anew.
    """

    def __init__(
        self,
        signs: Signs,
        notifier: Notifier,
        shutdown_sec: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._signs = signs
        self._notifier = notifier
        self._shutdown_sec = shutdown_sec
        self._clock = clock
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._ready = self._stopping = False
        self._next_food = self._next_status = self._next_extension = 0.0
        self.reload_asked = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="systemd", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the last word is said."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if not self._stopping:
            self._stop()

    def _run(self) -> None:
        interval = min(TICK_SEC, self._notifier.watchdog_sec / 4 or TICK_SEC)
        while not self._closing.wait(interval):
            self.tick()

    def tick(self) -> None:
        """Say what is due."""
        signs, now = self._signs, self._clock()
        if self.reload_asked:
            self.reload_asked = False
            self._reload()
        if signs.stopping():
            if not self._stopping:
                self._stop()
            return
        if not self._ready and signs.started():
            self._ready = True
            self._notifier.send("READY=1")
            self._next_status = now
        if not signs.stuck:
            self._feed(now)
        if now >= self._next_status:
            self._next_status = now + STATUS_SEC
            stuck = f"STUCK: no progress for {signs.progress.age_sec:.0f} s; " if signs.stuck else ""
            self._notifier.send(f"STATUS={stuck}{signs.status()}")

    def _feed(self, now: float) -> None:
        if self._notifier.watchdog_sec and now >= self._next_food:
            self._next_food = now + self._notifier.watchdog_sec / 3
            self._notifier.send("WATCHDOG=1")
        if not self._ready and now >= self._next_extension:
            # A database that is away at the start is waited for, however long it takes.
            self._next_extension = now + EXTEND_SEC / 3
            self._notifier.send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_SEC * 1_000_000)}")

    def _stop(self) -> None:
        self._stopping = True
        longest = int((self._shutdown_sec + 5) * 1_000_000)
        self._notifier.send(
            "STOPPING=1", "STATUS=finishes what is in hand", f"EXTEND_TIMEOUT_USEC={longest}"
        )

    def _reload(self) -> None:
        self._notifier.reloading()
        self._signs.reload()
        self._notifier.send("READY=1")
