"""A worker's one connection to the database: opened when it is needed, and through every outage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import database
from database import BoundedConnection
from metrics import Stats
from retry import Patience, StopFlag

T = TypeVar("T")
BRIEF_SEC = 5.0
BRIEF_LOCK_SEC = 0.3


class Session:
    """Belongs to one thread.

    `on_outage` is called after each failed attempt. Every transaction has `timeout_sec`, counted from
    `connection` or `begin`, on the client too.
    """

    def __init__(
        self,
        url: str,
        timeout_sec: float,
        stop: StopFlag,
        stats: Stats,
        on_outage: Callable[[], None] = lambda: None,
        direct_url: str | None = None,
    ) -> None:
        self._url = url
        self._direct_url = direct_url
        self._timeout_sec = timeout_sec
        self._stop = stop
        self._stats = stats
        self._on_outage = on_outage
        self._patience = Patience("postgresql", database.is_world, stop, stats)
        self._connection: BoundedConnection | None = None
        self.on_drop: Callable[[], None] = lambda: None  # what was known of the server may be wrong

    @property
    def timeout_sec(self) -> float:
        return self._timeout_sec

    @property
    def overdue(self) -> Callable[[], bool]:
        """Whether a stop leaves no more time for waiting."""
        return self._stop.overdue

    @property
    def open(self) -> bool:
        return self._connection is not None and not self._connection.closed

    @property
    def connection(self) -> BoundedConnection:
        """The connection, in no transaction yet. Raises `psycopg.OperationalError`."""
        if self._connection is None or self._connection.closed:
            self._connection = database.connect(self._url, self._timeout_sec, self._stop.overdue)
        database.start_clock(self._connection, self._timeout_sec, self._stop.overdue)
        return self._connection

    def another(self) -> BoundedConnection:
        """A second connection, for what changes its session and must not touch that of the first. The
        caller closes it. Raises: `database.PoolerBetween`, psycopg errors.
        """
        return database.connect_directly(self._url, self._direct_url, self._timeout_sec, self._stop.overdue)

    def begin(self) -> BoundedConnection:
        """The connection, in a transaction that neither side lets run longer than `timeout_sec`."""
        connection = self.connection
        database.begin(connection, self._timeout_sec, self._stop.overdue)
        return connection

    def begin_briefly(self) -> BoundedConnection:
        """As `begin`, for what can be put off: it waits for nobody's lock longer than an instant."""
        connection = self.connection
        seconds = min(self._timeout_sec, BRIEF_SEC)
        database.begin(connection, seconds, self._stop.overdue, lock_sec=BRIEF_LOCK_SEC)
        return connection

    def call(
        self,
        attempt: Callable[[], T],
        *,
        in_hand: bool = False,
        on_error: Callable[[], None] = lambda: None,
    ) -> T:
        """`attempt`'s answer, tried until it succeeds, on a new connection after each error.

        Raises `retry.Stopping` at a stop, and what is not the world's fault.
        """

        def failed() -> None:
            on_error()
            self.drop()
            self._on_outage()

        return self._patience.call(attempt, failed, in_hand)

    def call_first(self, attempt: Callable[[], T]) -> T:
        """As `call`, but a refusal that no waiting mends, such as a wrong password, is raised."""

        def waits(error: BaseException) -> bool:
            return database.is_world(error) and not database.is_refused(error)

        return Patience("postgresql", waits, self._stop, self._stats).call(attempt, self.drop)

    def drop(self) -> None:
        """Close the connection; the next use opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self.on_drop()
