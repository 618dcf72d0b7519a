"""The bad world: how long to wait, when to give up, and what to log while a server is away.

`Patience` is used by the adapters only, `redis_reader.py`, `db_writer.py` and `stream_writer.py`; the
thread that publishes alerts must not block, and keeps its own time. An outage never costs an entry:
whatever was in hand is tried again, and what is given up at shutdown stays pending.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

import structlog
import tenacity

from counting import CountsErrors
from progress import Progress

T = TypeVar("T")
FIRST_REPEAT_SEC = 10.0
LONGEST_REPEAT_SEC = 600.0
REACTION_SEC = 0.05  # how soon a pause notices a stop


class Stopping(Exception):
    """Shutdown was asked for in an outage. What was in hand, if anything, stays pending."""

    def __init__(self, message: str, *, in_hand: bool) -> None:
        super().__init__(message)
        self.in_hand = in_hand


class StopFlag:
    """Asks a worker to stop, and tells how long it may take.

    `set` may be called from any thread and from a signal handler. So there is no lock in here: an Event
    would deadlock when its own waiter is interrupted by the handler that sets it. Whoever waits, waits
    here, so `progress` is noted here: a wait that goes on is no loop that is stuck.
    """

    def __init__(self, timeout_sec: float, clock: Callable[[], float] = monotonic) -> None:
        self._timeout_sec = timeout_sec
        self._clock = clock
        self._deadline: float | None = None
        self.progress = Progress(clock)

    def set(self) -> None:
        if self._deadline is None:
            self._deadline = self._clock() + self._timeout_sec

    def is_set(self) -> bool:
        return self._deadline is not None

    def overdue(self) -> bool:
        """Whether the time to finish is used up, but for the part that closing needs."""
        return self._deadline is not None and self._left() < 0

    def _left(self) -> float:
        deadline = float("inf") if self._deadline is None else self._deadline
        return deadline - 0.25 * self._timeout_sec - self._clock()

    def pause(self, seconds: float) -> None:
        """Sleep, unless and until a stop comes."""
        self.progress.made()
        ends = self._clock() + seconds
        while not self.is_set() and (left := ends - self._clock()) > 0:
            sleep(min(left, REACTION_SEC))
            self.progress.made()

    def wait(self, seconds: float) -> None:
        """Pause between two attempts, also once a stop was asked for: then short."""
        if self.is_set():
            self.progress.made()
            sleep(max(REACTION_SEC, min(seconds, 1.0, self._left())))
        else:
            self.pause(seconds)


class Outage:
    """What is said of a server that is away: once at the start, at growing intervals, and at the end."""

    def __init__(self, server: str, clock: Callable[[], float] = monotonic) -> None:
        self._server = server
        self._clock = clock
        self._began: float | None = None
        self._next_word = 0.0
        self._interval = FIRST_REPEAT_SEC
        self._attempts = 0
        self._said_stopping = False

    def failed(self, error: BaseException, stopping: bool = False) -> None:
        """An attempt failed. Logs, or keeps silent because it has just logged.

        `stopping`: shutdown waits for this server; that is said once too.
        """
        now = self._clock()
        self._attempts += 1
        log = structlog.get_logger()
        words = {"server": self._server, "error": describe(error), "attempts": self._attempts}
        if self._began is None:
            self._began = now
            self._interval = FIRST_REPEAT_SEC
            self._next_word = now + self._interval
            log.warning("outage_began", **words)
        elif stopping and not self._said_stopping:
            self._said_stopping = True
            log.warning("stop_waits_for_server", **words)
        elif now >= self._next_word:
            self._interval = min(2 * self._interval, LONGEST_REPEAT_SEC)
            self._next_word = now + self._interval
            log.warning("outage_continues", seconds=round(now - self._began, 1), **words)

    def over(self) -> None:
        """An attempt succeeded."""
        if self._began is not None:
            structlog.get_logger().info(
                "outage_ended",
                server=self._server,
                seconds=round(self._clock() - self._began, 1),
                attempts=self._attempts,
            )
            self._began = None
            self._attempts = 0

    def __bool__(self) -> bool:
        return self._began is not None


def describe(error: BaseException) -> str:
    """An error in one line, without values from rows: those may be anything a device sent."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no message'}"[:300]


class Patience:
    """Calls something until it succeeds: capped exponential backoff with full jitter between attempts.

    `errors` are the exceptions of a bad world; every other one is a bug and passes. `on_error` runs
    after each failed attempt, to throw away a connection.
    """

    def __init__(
        self,
        server: str,
        errors: tuple[type[BaseException], ...] | Callable[[BaseException], bool],
        stop: StopFlag,
        stats: CountsErrors,
        longest_sec: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        self.outage = Outage(server)
        self._server = server
        self._stop = stop
        self._stats = stats
        self._longest_sec = longest_sec
        self._rng = rng or random.Random()
        self._world = errors if not isinstance(errors, tuple) else lambda error: isinstance(error, errors)

    def call(
        self, attempt: Callable[[], T], on_error: Callable[[], None] = lambda: None, in_hand: bool = False
    ) -> T:
        """`attempt`'s answer. Raises `Stopping` at a stop: at once, or, with something in hand that is
        worth waiting for, when the time to finish is used up.
        """

        def failed(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self._stats.failed(self._server, type(error).__name__)
            self._stop.progress.made()  # the attempt has ended
            if error is not None:
                self.outage.failed(error, stopping=self._stop.is_set())
            on_error()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._world),
            wait=self._backoff,
            sleep=self._stop.wait,
            stop=lambda _: self._stop.overdue() if in_hand else self._stop.is_set(),
            after=failed,
            retry_error_cls=_GaveUp,
        )
        try:
            result = retrying(attempt)
        except _GaveUp as gave_up:
            raise Stopping(str(gave_up.last_attempt.exception()), in_hand=in_hand) from gave_up
        self._stop.progress.made()
        if self.outage:
            self._stats.recovered(self._server)
            self.outage.over()
        return result

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        ceiling = min(self._longest_sec, 0.1 * 2.0 ** min(state.attempt_number, 20))
        return self._rng.uniform(0.05, ceiling)


class _GaveUp(tenacity.RetryError):
    """Raised by tenacity when `stop` says so."""
