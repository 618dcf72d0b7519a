"""What is due between batches: the registry, the sweep, deletions of devices, partitions.

Each piece is short, so that readings keep flowing, and is tried until the database takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from math import inf

import psycopg
import structlog

import database
import event_store
import partitions
from db_session import Session
from partitions import Partitions
from registry import Registry
from retry import describe
from sweep import Sweep, Swept

PARTITIONS_SEC = 60.0
DELETIONS_SEC = 1.0  # between two looks for devices to delete


class Housekeeping:
    """Belongs to the thread of its session. Every call waits out an outage of the database.

    `partitioned`: the table has daily partitions, which this makes ahead and drops; 0 `retention_days`
    drops none. `now` is the time of day, aware.
    """

    def __init__(
        self,
        session: Session,
        registry: Registry,
        sweep: Sweep,
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
        self._table = table
        self._partitioned = partitioned
        self._retention_days = retention_days
        self._ahead_days = partitions_ahead_days
        self._now = now
        self._clock = clock
        self._partitions = Partitions(table, session.timeout_sec, session.overdue)
        self._next_partitions = 0.0
        self._next_deletion = 0.0

    @property
    def due_at(self) -> float:
        """When, by the clock, something is due next."""
        return min(self._registry.due_at, self._sweep.due_at, self._next_deletion)

    def run(self) -> Swept:
        """Do what is due. Answers what the sweep did."""
        if self._clock() >= self._registry.due_at:
            self._session.call(self._write_registry)
        if self._partitioned and self._clock() >= self._next_partitions:
            self._next_partitions = self._clock() + PARTITIONS_SEC
            self._keep_partitions()
        if self._clock() >= self._next_deletion:
            self._delete_devices()
        if self._clock() >= self._sweep.due_at:
            return self._session.call(self._sweep_once)
        return Swept()

    def write_registry(self) -> None:
        """Now, since entries are about to be acknowledged that the registry has not heard of."""
        self._session.call(self._write_registry, in_hand=True)

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
                self._write_registry()
            connection = self._session.begin()
            self._sweep.give_back(connection)
            connection.commit()
        except psycopg.Error as error:
            structlog.get_logger().warning("registry_not_written", error=type(error).__name__)

    def _write_registry(self) -> None:
        """After a crash before this COMMIT, redelivery brings what was new again."""
        began = self._clock()
        connection = self._session.begin()
        self._registry.flush(connection)
        connection.commit()
        self._registry.flushed(self._clock() - began)

    def _sweep_once(self) -> Swept:
        connection = self._session.begin()
        taken = self._sweep.take(connection)
        connection.commit()
        if not taken:
            return Swept()
        began = self._clock()
        connection = self._session.begin()
        swept = self._sweep.run(connection)
        connection.commit()
        self._sweep.done(self._clock() - began, swept)
        return swept

    def _delete_devices(self) -> None:
        """One step of a deletion, then as long a pause as it took, for the readings."""
        session = self._session
        began = self._clock()
        more = session.call(
            lambda: event_store.deletion_step(
                session.connection, self._table, session.timeout_sec, overdue=session.overdue
            )
        )
        now = self._clock()
        self._next_deletion = now + (max(0.02, now - began) if more else DELETIONS_SEC)

    def _drop_partitions(self, oldest: date) -> int:
        with self._session.another() as connection:
            connection.autocommit = True
            return self._partitions.drop_older(connection, oldest)

    def _keep_partitions(self) -> None:
        today = self._now().date()
        self._session.call(lambda: self.ensure_partitions(partitions.ahead(today, self._ahead_days)))
        if not self._retention_days:
            return
        try:
            dropped = self._drop_partitions(today - timedelta(days=self._retention_days))
        except psycopg.Error as error:
            if not database.is_world(error):
                raise
            # Not worth a pause of the worker: a long reader holds a partition, or the server is away.
            structlog.get_logger().warning("retention_postponed", error=type(error).__name__)
        else:
            if dropped:
                structlog.get_logger().info("partitions_dropped", partitions=dropped)
