"""What is due between batches: the registry, the sweep, deletions of devices, rollups, partitions.

Each piece is short, so that readings keep flowing. What the database does not take at once, because it is
away or somebody holds a lock, is put off, told, and tried again later: it must never hold up a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from math import inf

import psycopg
import structlog

import database
import event_store
import partitions
from database import BoundedConnection
from db_session import Session
from keeping import Keeping
from partitions import Partitions
from registry import Registry
from retry import describe
from rolling import Rolling
from sweep import Sweep, Swept

PARTITIONS_SEC = 60.0
FIRST_PAUSE_SEC = 1.0  # after something could not be done
LONGEST_PAUSE_SEC = 60.0
DELETIONS_SEC = 1.0  # between two looks for devices to delete
REFUSED_SEC = 600.0  # before it is told again that something refers to a device
WAIT_SEC = 5.0  # before dropping readings is tried again that are not summed up yet


@dataclass(slots=True)
class _Piece:
    """One thing to do: when it is due, by the clock, and not before when, after it failed."""

    name: str
    due_at: Callable[[], float]
    do: Callable[[], None]
    not_before: float = 0.0
    pause: float = FIRST_PAUSE_SEC


class Housekeeping:
    """Belongs to the thread of its session.

    `partitioned`: the table has daily partitions, which this makes ahead and drops; 0 `retention_days`
    drops none, unless the database says otherwise. `now` is the time of day, aware.
    """

    def __init__(
        self,
        session: Session,
        registry: Registry,
        sweep: Sweep,
        rolling: Rolling,
        *,
        table: str,
        partitioned: bool,
        retention_days: int,
        partitions_ahead_days: int,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._registry = registry
        self._sweep = sweep
        self._rolling = rolling
        self._table = table
        self._partitioned = partitioned
        self._keeping = Keeping(retention_days)
        self._next_drop = 0.0
        self._ahead_days = partitions_ahead_days
        self._now = now
        self._clock = clock
        self._partitions = Partitions(table, session.timeout_sec, session.overdue)
        self._next_partitions = 0.0 if partitioned else inf
        self._next_deletion = 0.0
        self._tell_refused: dict[str, float] = {}  # when again, by what refers to the device
        self._swept = Swept()
        self._pieces = (
            _Piece("registry", lambda: registry.due_at, self._registry_now),
            _Piece("deletions", lambda: self._next_deletion, self._delete_devices),
            _Piece("sweep", lambda: sweep.due_at, self._sweep_once),
            _Piece("rollups", lambda: rolling.due_at, self._roll_once),
            _Piece(
                "partitions", lambda: self._next_partitions if partitioned else inf, self._keep_partitions
            ),
        )

    @property
    def due_at(self) -> float:
        """When, by the clock, something is due next."""
        return min(max(piece.due_at(), piece.not_before) for piece in self._pieces)

    def run(self) -> Swept:
        """Do what is due. Answers what the sweep did."""
        self._swept = Swept()
        for piece in self._pieces:
            if self._clock() < max(piece.due_at(), piece.not_before):
                continue
            try:
                piece.do()
                piece.pause = FIRST_PAUSE_SEC
            except psycopg.Error as error:
                if not database.is_world(error):
                    raise
                self._put_off(piece, error)
        return self._swept

    def _put_off(self, piece: _Piece, error: psycopg.Error) -> None:
        """Give up for now. The pause grows, so that a lock held for an hour costs next to nothing."""
        self._session.drop()
        piece.not_before = self._clock() + piece.pause
        structlog.get_logger().warning(
            "housekeeping_put_off", what=piece.name, seconds=piece.pause, error=describe(error)
        )
        piece.pause = min(LONGEST_PAUSE_SEC, 2 * piece.pause)

    def write_registry(self) -> None:
        """Now, since entries are about to be acknowledged that the registry has not heard of."""
        self._session.call(lambda: self._write_registry(self._session.begin, urgent=True), in_hand=True)

    def ensure_partitions(self, days: set[int]) -> None:
        """Have a partition for each of `days`. What goes wrong here is never a row's fault."""
        if not self._partitioned:
            return
        try:
            self._partitions.ensure(self._session.connection, days)
        except psycopg.Error as error:
            if database.is_world(error):
                raise
            raise psycopg.OperationalError(f"no partition could be made: {describe(error)}") from error

    def forget_partitions(self) -> None:
        """Somebody dropped one: look again before the next write."""
        self._partitions.forget()

    def close(self) -> None:
        """Write what is noted and give the duty back, where the database is there."""
        if not self._session.open:
            return
        try:
            if self._registry.due_at < inf:
                self._write_registry(self._session.begin_briefly)
            connection = self._session.begin_briefly()
            self._sweep.give_back(connection)
            self._rolling.give_back(connection)
            connection.commit()
        except psycopg.Error as error:
            structlog.get_logger().warning("registry_not_written", error=type(error).__name__)

    def _write_registry(self, begin: Callable[[], BoundedConnection], *, urgent: bool = False) -> None:
        """After a crash before this COMMIT, redelivery brings what was new again."""
        began = self._clock()
        connection = begin()
        self._registry.flush(connection, urgent=urgent)
        connection.commit()
        self._registry.flushed(self._clock() - began, urgent=urgent)

    def _registry_now(self) -> None:
        self._write_registry(self._session.begin_briefly)

    def _sweep_once(self) -> None:
        connection = self._session.begin_briefly()
        taken = self._sweep.take(connection)
        connection.commit()
        if not taken:
            return
        began = self._clock()
        self._swept = self._sweep.run(self._session.begin_briefly)
        self._sweep.done(self._clock() - began, self._swept)

    def _roll_once(self) -> None:
        connection = self._session.begin_briefly()
        taken = self._rolling.take(connection)
        connection.commit()
        if not taken:
            return
        self._rolling.run(self._session.begin_briefly)
        if self._clock() >= self._next_drop:
            self._next_drop = self._clock() + PARTITIONS_SEC
            dropped = self._keeping.drop_rollups(self._session.begin_briefly, self._now().date())
            if dropped:
                structlog.get_logger().info("rollups_dropped", partitions=dropped)

    def _delete_devices(self) -> None:
        """One step of a deletion, then as long a pause as it took, for the readings."""
        session = self._session
        began = self._clock()
        try:
            more = event_store.deletion_step(
                session.connection, self._table, session.timeout_sec, overdue=session.overdue
            )
        except psycopg.Error as error:
            if not database.is_row_fault(error):
                raise
            # Something of the user's refers to the device, and keeps it: others need not wait for it.
            self._refused(error)
            event_store.put_behind(session.begin_briefly())
            more = False
        now = self._clock()
        self._next_deletion = now + (max(0.02, now - began) if more else DELETIONS_SEC)

    def _refused(self, error: psycopg.Error) -> None:
        what = error.diag.constraint_name or type(error).__name__
        if self._clock() >= self._tell_refused.get(
            what, 0.0
        ):  # it is tried every second, for as long as it lasts
            self._tell_refused[what] = self._clock() + REFUSED_SEC
            structlog.get_logger().error("deletion_refused", sqlstate=error.sqlstate, constraint=what)

    def _drop_partitions(self, oldest: date) -> int:
        with self._session.another() as connection:
            connection.autocommit = True
            return self._partitions.drop_older(connection, oldest)

    def _keep_partitions(self) -> None:
        self._next_partitions = self._clock() + PARTITIONS_SEC
        today = self._now().date()
        self.ensure_partitions(partitions.ahead(today, self._ahead_days))
        oldest, wait = self._keeping.readings_from(self._session.begin_briefly, today)
        if wait:
            self._next_partitions = self._clock() + WAIT_SEC
        if oldest is None:
            return
        try:
            dropped = self._drop_partitions(oldest)
        except psycopg.Error as error:
            if not database.is_world(error):
                raise
            # Not worth a pause of the worker: a long reader holds a partition, or the server is away.
            structlog.get_logger().warning("retention_postponed", error=describe(error))
        else:
            if dropped:
                structlog.get_logger().info("partitions_dropped", partitions=dropped)
