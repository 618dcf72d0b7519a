"""The part of a call that asks the database: bounded in time and number, and cancelled with its call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Protocol, TypeVar

import psycopg
import structlog

import database
from database import BoundedConnection
from query.connections import Connections, opening
from query.refusal import Code, Refused

T = TypeVar("T")
AWAY = "the database does not answer; try again later"
_SETTLE_SEC = 3.0  # a server that is told to cancel, or to open a transaction, answers within this time
_GRACE_SEC = 1.0  # beyond the server's own limit, for its answer to arrive
_CANCEL_AGAIN_SEC = 0.25
_CANCELLERS = 4


class Context(Protocol):
    """What of grpc.ServicerContext is used here."""

    def time_remaining(self) -> float | None: ...

    def add_callback(self, callback: Callable[[], None]) -> bool: ...


class Calls:
    """May be used by any thread. `workers`: how many use the database at once; others wait.

    `answers`: whether the database is known to answer at this moment.
    """

    def __init__(self, url: str, workers: int, timeout_sec: float, answers: Callable[[], bool]) -> None:
        self._timeout_sec = timeout_sec
        self._answers = answers
        self._connections = Connections(url, min(_SETTLE_SEC, timeout_sec))
        self._permits = threading.BoundedSemaphore(workers)
        self._lock = threading.Lock()
        self.in_use = 0  # calls that use the database now
        self._cancellers = ThreadPoolExecutor(_CANCELLERS, "cancel")

    def ask(self, context: Context, work: Callable[[BoundedConnection], T], *, writes: bool = False) -> T:
        """`work`'s answer, in a transaction of its own, committed.

        It has until the caller's deadline, at most the time that was set. Raises `Refused`, and what is a
        bug.
        """
        remaining = context.time_remaining()
        deadline = monotonic() + min(
            self._timeout_sec, self._timeout_sec if remaining is None else remaining
        )
        if not self._permits.acquire(timeout=max(0.0, deadline - monotonic())):
            raise self._busy()
        self._count(1)
        try:
            return self._transaction(context, work, deadline, writes=writes)
        except psycopg.Error as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._count(-1)
            self._permits.release()

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return self._connections.idle

    def _count(self, change: int) -> None:
        with self._lock:
            self.in_use += change

    def close(self) -> None:
        """Take back what is idle, and wait for nothing."""
        self._connections.close()
        self._cancellers.shutdown(wait=False)

    def _busy(self) -> Refused:
        """Why there was no turn in time: too much is asked, or what is asked is not answered."""
        if not self._answers():
            return Refused(Code.UNAVAILABLE, AWAY)
        return Refused(
            Code.RESOURCE_EXHAUSTED, "the server is busy with as many calls as QUERY_WORKERS allows"
        )

    def _transaction(
        self, context: Context, work: Callable[[BoundedConnection], T], deadline: float, *, writes: bool
    ) -> T:
        seconds = deadline - monotonic()
        if seconds <= 0:
            raise self._busy()
        connection = self._connections.begin(opening(seconds, writes=writes))
        watch = _Watch(connection, self._cancellers)
        try:
            if not context.add_callback(watch.call_ended):
                raise Refused(Code.CANCELLED, "the call has ended")
            database.start_clock(connection, seconds + _GRACE_SEC, watch.overdue)
            answer = work(connection)
            connection.commit()
        except BaseException:
            # Whatever it was in the middle of: rolling back may take as long as the time-out.
            watch.finish()
            connection.close()
            raise
        watch.finish()
        if watch.cancelled:
            connection.close()  # the server may yet cancel whatever comes next on it
        else:
            self._connections.give_back(connection)
        return answer


class LongCall:
    """A call that asks again and again: gRPC would keep the callback of every question until its end."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._ended = False
        self._of_stream: Callable[[], None] = lambda: None
        self._of_question: Callable[[], None] = lambda: None
        if not context.add_callback(self._end):
            self._ended = True

    @property
    def ended(self) -> bool:
        return self._ended

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    def on_end(self, callback: Callable[[], None]) -> None:
        """For as long as the call lasts; at once if it has ended."""
        with self._lock:
            self._of_stream = callback
            ended = self._ended
        if ended:
            callback()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """In place of the one of the last question."""
        with self._lock:
            self._of_question = callback
            return not self._ended

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            callbacks = (self._of_question, self._of_stream)
        for callback in callbacks:
            callback()


class _Watch:
    """Cancels in the database what a connection is doing, if the call ends before `finish`."""

    def __init__(self, connection: BoundedConnection, cancellers: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._cancellers = cancellers
        self._lock = threading.Lock()  # held while a cancellation is on its way
        self._finished = threading.Event()
        self._give_up_at: float | None = None
        self.cancelled = False

    def call_ended(self) -> None:
        """Called by gRPC's own thread, at the end of every call: cancelling takes a connection, so another
        thread does it.
        """
        if not self._finished.is_set():
            self._give_up_at = monotonic() + _SETTLE_SEC
            with contextlib.suppress(RuntimeError):  # the server has stopped: nothing is left to cancel
                self._cancellers.submit(self._cancel)

    def overdue(self) -> bool:
        return self._give_up_at is not None and monotonic() > self._give_up_at

    def finish(self) -> None:
        """Returns when no cancellation is on its way any more: it would hit whoever is next."""
        self._finished.set()
        with self._lock:
            pass

    def _cancel(self) -> None:
        """Again and again, since one that arrives between two statements cancels neither."""
        while not self.overdue():
            with self._lock:
                if self._finished.is_set():
                    return
                self.cancelled = True
                with contextlib.suppress(psycopg.Error):  # unreachable: `overdue` ends the wait
                    self._connection.cancel_safe(timeout=_SETTLE_SEC)
            if self._finished.wait(_CANCEL_AGAIN_SEC):
                return


def _refusal(error: psycopg.Error) -> Refused | None:
    """What a caller is told of an error of the database; None where it is a bug of ours."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Refused(
            Code.DEADLINE_EXCEEDED, "the query took longer than the call's deadline or QUERY_TIMEOUT_SEC"
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Refused(Code.UNAVAILABLE, "somebody else holds a lock on what was asked for; try again")
    if isinstance(error, psycopg.errors.NumericValueOutOfRange):
        return Refused(
            Code.INVALID_ARGUMENT,
            "the numbers of this range are too large to add up; ask for raw ones",
        )
    if database.is_world(error):
        if (error.sqlstate or "").startswith("42"):
            # Grants or the schema: no waiting mends it, and the operator must hear of it.
            structlog.get_logger().error("query_refused_by_database", sqlstate=error.sqlstate)
            return Refused(Code.UNAVAILABLE, "the database refuses what this service asks; see its log")
        return Refused(Code.UNAVAILABLE, AWAY)
    return None
