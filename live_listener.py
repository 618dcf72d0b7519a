"""A reader's side of what workers tell of new readings: one connection, for a whole server process.

It needs a session of its own in the database: LISTEN and the lock that tells workers of it do not work
through a pooler in transaction mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic

import psycopg

import database
import live
import live_sql
from counting import CountsErrors
from database import BoundedConnection
from live import Many, Told
from retry import Patience, StopFlag

# Workers look for readers once a second; what they began to store before is in the tables by then, unless
# the database is slow. Until then a reader has to read the tables again.
SETTLED_SEC = 2.0
HUNG_SEC = 30.0
_WAIT_SEC = 0.25  # how soon a stop is noticed
_ANSWER_SEC = 10.0


class Listener:
    """A connection that hears of new readings. Belongs to one thread."""

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection

    def hear(self, timeout_sec: float) -> list[Told]:
        """What has come, in the order of COMMIT; waits until there is something, at most `timeout_sec`.

        Takes what one read of the socket brings, never more. Raises `psycopg.OperationalError` when the
        connection is lost: what is told until the next `listening` is missed.
        """
        database.start_clock(self._connection, timeout_sec + _ANSWER_SEC)
        notices = list(self._connection.notifies(timeout=timeout_sec, stop_after=1))
        return [live.understood(notice.payload) for notice in notices]


@contextlib.contextmanager
def listening(url: str, *, direct_url: str | None = None, hung_sec: float = HUNG_SEC) -> Iterator[Listener]:
    """Listen until the block ends. Workers begin to tell within about a second.

    A reader that takes nothing for `hung_sec` is disconnected by the server, over TCP. Raises psycopg
    errors, `database.PoolerBetween` where `url` leads to a pooler and there is no `direct_url` past it.
    """
    with contextlib.closing(_connect(url, direct_url, hung_sec)) as connection:
        yield Listener(connection)


def _connect(url: str, direct_url: str | None, hung_sec: float) -> BoundedConnection:
    connection = database.connect_directly(url, direct_url, _ANSWER_SEC)
    try:
        connection.execute(live_sql.GIVE_UP, {"milliseconds": str(int(hung_sec * 1000))})
        connection.execute(live_sql.LISTEN)
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


class Following:
    """Listens for as long as it runs, through every outage of the database. Its thread calls `run`.

    `hear` gets everything, from that thread, and must not wait: who is slow for long is disconnected. It
    gets `Many` whenever something may have been missed: after every connection, and once more when workers
    know of it for certain. `connected` may be asked from any thread.
    """

    def __init__(
        self,
        url: str,
        stop: StopFlag,
        stats: CountsErrors,
        hear: Callable[[Told], None],
        clock: Callable[[], float] = monotonic,
        direct_url: str | None = None,
    ) -> None:
        self._url = url
        self._direct_url = direct_url
        self._stop = stop
        self._stats = stats
        self._hear = hear
        self._clock = clock
        self._patience = Patience("postgresql", database.is_world, stop, stats)
        self.connected = False

    def run(self) -> None:
        """Returns after a stop. Raises `retry.Stopping` at a stop in an outage, and what is no outage."""
        while not self._stop.is_set():
            connection = self._patience.call(lambda: _connect(self._url, self._direct_url, HUNG_SEC))
            try:
                with contextlib.closing(connection):
                    self._follow(Listener(connection))
            except psycopg.Error as error:
                if not database.is_world(error):
                    raise
                self._stats.failed("postgresql", type(error).__name__)
                self._patience.outage.failed(error)
                self._stop.pause(_WAIT_SEC)
            finally:
                self.connected = False

    def _follow(self, listener: Listener) -> None:
        self.connected = True
        self._hear(Many())
        settled_at = self._clock() + SETTLED_SEC
        while not self._stop.is_set():
            for told in listener.hear(_WAIT_SEC):
                self._hear(told)
            if self._clock() >= settled_at:
                settled_at = float("inf")
                self._hear(Many())
