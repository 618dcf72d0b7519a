"""Questions to the database and to Redis, from the event loop: in threads, bounded in number and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg
import structlog

import database
from database import BoundedConnection
from query.connections import Connections, opening

T = TypeVar("T")
WORKERS = 6  # questions at once
MOST_WAITING = 200
_SETTLE_SEC = 3.0
_GRACE_SEC = 1.0


class Unanswered(Exception):
    """The message is a sentence for people. `away`: the database is, rather than being slow or busy."""

    def __init__(self, sentence: str, *, away: bool = False) -> None:
        super().__init__(sentence)
        self.away = away


class Asking:
    """Belongs to the event loop. Each question is a transaction of its own, of `timeout_sec` at most."""

    def __init__(self, url: str, timeout_sec: float) -> None:
        self._timeout_sec = timeout_sec
        self._connections = Connections(url, min(_SETTLE_SEC, timeout_sec))
        self._threads = ThreadPoolExecutor(WORKERS, "ask")
        self._waiting = 0

    async def ask(self, work: Callable[[BoundedConnection], T], *, writes: bool = False) -> T:
        """`work`'s answer. Raises `Unanswered`, and what is a bug.

        It goes on to its time-out when nobody waits for it any more: whoever asks again and again fills
        `MOST_WAITING` places and no memory.
        """
        if self._waiting >= MOST_WAITING:
            raise Unanswered("the server is busy with as many questions as it takes; try again later")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._transaction(work, writes=writes)
        )
        future.add_done_callback(self._answered)
        try:
            return await asyncio.shield(future)
        except psycopg.Error as error:
            told = _told(error)
            if told is None:
                raise
            raise told from error

    @property
    def in_use(self) -> int:
        """Questions that are being asked now. Any thread may ask."""
        return min(self._waiting, WORKERS)

    @property
    def idle(self) -> int:
        """Connections that wait for a question."""
        return self._connections.idle

    def close(self) -> None:
        """Take back what is idle, and wait for nothing."""
        self._connections.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answered(self, future: asyncio.Future[T]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # seen, also where nobody waits for it any more

    def _transaction(self, work: Callable[[BoundedConnection], T], *, writes: bool) -> T:
        connection = self._connections.begin(opening(self._timeout_sec, writes=writes))
        try:
            database.start_clock(connection, self._timeout_sec + _GRACE_SEC)
            answer = work(connection)
            connection.commit()
        except BaseException:
            connection.close()  # whatever it was in the middle of: rolling back may take as long again
            raise
        self._connections.give_back(connection)
        return answer


def _told(error: psycopg.Error) -> Unanswered | None:
    """What people are told of an error of the database; None where it is a bug of ours."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Unanswered("the question took longer than DASHBOARD_TIMEOUT_SEC; ask for less")
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Unanswered("somebody else holds a lock on what was asked for; try again")
    if isinstance(error, psycopg.errors.NumericValueOutOfRange):
        return Unanswered("the numbers of this range are too large to add up")
    if not database.is_world(error):
        return None
    if (error.sqlstate or "").startswith("42"):
        # Grants or the schema: no waiting mends it, and the operator must hear of it.
        structlog.get_logger().error("dashboard_refused_by_database", sqlstate=error.sqlstate)
        return Unanswered("the database refuses what the dashboard asks; its log says more")
    return Unanswered("the database does not answer; try again later", away=True)
