"""Tells readers of new readings, in the transaction that stores them: so when they are there, and once.

What is told costs every worker's COMMIT a lock that only one transaction of the server holds at a time, so
nothing is told where nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

import psycopg
import structlog

import live
import live_sql
from database import BoundedConnection
from metrics import Stats
from schema import Reading

LOOK_SEC = 1.0  # how long a reader that is new may go unheard
# Of the server's queue of notifications, 8 GB unless it is set smaller: beyond, a reader has hung.
MOST_QUEUED = 0.05
SILENCE_SEC = 60.0  # after the queue was found full


class Telling:
    """Belongs to the thread of its connection."""

    def __init__(self, stats: Stats, clock: Callable[[], float] = monotonic) -> None:
        self._stats = stats
        self._clock = clock
        self._wanted = False
        self._next_look = 0.0
        self._said = 0  # in the transaction that runs
        self._kept = False  # something was stored and not told

    def tell(self, connection: BoundedConnection, stored: Sequence[Reading]) -> None:
        """Say what is newest of what this transaction has put in, sorted by key, if anybody listens.

        Whoever listens hears it after COMMIT, and nothing after a rollback. The first to be told after
        something was stored untold hears that, too: it has to be read. Raises psycopg errors.
        """
        self._said = 0
        if not stored:
            return
        now = self._clock()
        if now >= self._next_look:
            row = connection.execute(live_sql.IS_WANTED, {"most": MOST_QUEUED}).fetchone()
            self._wanted = bool(row and row[0])
            self._next_look = now + LOOK_SEC
        if not self._wanted:
            self._kept = True
        else:
            said = live.payloads(stored)
            if self._kept:
                said.append(live.MANY)
            connection.execute(live_sql.TELL, {"payloads": said})
            self._said = len(said)

    def committed(self) -> None:
        """The transaction of the last `tell` has committed."""
        if self._said:
            self._stats.notifications_sent += self._said
            self._said = 0
            self._kept = False

    def to_blame(self, error: psycopg.Error) -> bool:
        """The transaction has failed. Whether that may come from a full queue of notifications, which
        COMMIT finds and reports in the class of errors that rows make.

        Then nothing is told for a minute: readings are stored whether readers hear of them or not.
        """
        said, self._said = self._said, 0
        if not said or not isinstance(error, psycopg.errors.ProgramLimitExceeded):
            return False
        structlog.get_logger().warning("readers_not_told", seconds=SILENCE_SEC)
        self._wanted = False
        self._next_look = self._clock() + SILENCE_SEC
        return True
