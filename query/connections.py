"""The service's connections to the database: reused, each for one call at a time.

No pool of psycopg's, because that tells a caller nothing until a time-out when the database is away, and
waits longer and longer before it tries again; here each call finds out by itself, at once.
"""

from __future__ import annotations

import threading

import psycopg
from psycopg.pq import TransactionStatus

import database
from database import BoundedConnection, Unreachable


class Connections:
    """May be used by any thread. There are as many as were ever taken at once, which the caller bounds.

    `timeout_sec`: how long a server may take to begin a transaction.
    """

    def __init__(self, url: str, timeout_sec: float) -> None:
        self._url = url
        self._timeout_sec = timeout_sec
        self._idle: list[BoundedConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    def begin(self, opening: str) -> BoundedConnection:
        """A connection in the transaction that `opening` begins. Raises `psycopg.OperationalError`.

        One that the server has closed meanwhile shows by that very statement; then all that lay idle are
        suspect, and a new one is made.
        """
        with self._lock:
            reused = self._idle.pop() if self._idle else None
        if reused is not None:
            try:
                self._open(reused, opening)
            except psycopg.Error as error:
                reused.close()
                self._drop_idle()
                if isinstance(error, Unreachable):  # a new one would not be answered either
                    raise
            else:
                return reused
        return self._begin_anew(opening)

    def give_back(self, connection: BoundedConnection) -> None:
        """Take a connection that is in no transaction; any other one, or one too many, is closed."""
        usable = connection.pgconn.transaction_status == TransactionStatus.IDLE
        with self._lock:
            if usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    @property
    def idle(self) -> int:
        """How many wait for a call. Any thread may ask."""
        return len(self._idle)

    def close(self) -> None:
        self._closed = True
        self._drop_idle()

    def _begin_anew(self, opening: str) -> BoundedConnection:
        connection = database.connect(self._url, self._timeout_sec)
        try:
            connection.autocommit = True  # `opening` says BEGIN, together with all that belongs to it
            self._open(connection, opening)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, connection: BoundedConnection, opening: str) -> None:
        database.start_clock(connection, self._timeout_sec)
        connection.execute(opening.encode())

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def opening(seconds: float, *, writes: bool) -> str:
    """BEGIN with its limits, one round trip; in the transaction, so that it works through a pooler.

    Questions see one snapshot: what rollups hold, and what is late in them, must be of the same moment.
    """
    milliseconds = max(1, int(seconds * 1000))
    return (
        f"begin {'read write' if writes else 'isolation level repeatable read read only'};"
        f" set local statement_timeout = {milliseconds};"
        f" set local lock_timeout = {max(1, milliseconds // 2)};"
        f" set local idle_in_transaction_session_timeout = {max(5_000, milliseconds)}"
    )
