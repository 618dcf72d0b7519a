"""One transaction a batch: readings in, their fates out, and nothing returned before COMMIT.

New readings go by binary COPY straight into the table. Whatever may be there already (redelivered
entries, anything after an error, a batch that meets a unique violation) goes through a staging table
and INSERT … ON CONFLICT DO NOTHING, in the order of the key, so that workers writing the same rows
cannot deadlock. A row that the database refuses is found by bisecting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic

import psycopg
import structlog

import database
import partitions
import schema_check
from database import BoundedConnection
from metrics import Stats
from partitions import Partitions
from retry import Patience, StopFlag, describe
from schema import DAY_US, Batch, Outcome, Reading, Reason, Rejection, RowFate, days_of, decide
from staging import Answer, copy_rows, merge_rows

# A transaction that touches many days takes many locks and, where chunks are missing, keeps every other
# worker from making one: 1,000 days took 1.3 s, 3,000 died of "out of shared memory" (docs/internals.md).
MAX_DAYS = 32
UPKEEP_SEC = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterOptions:
    """Plain values of the settings that writing depends on. Times in seconds unless named otherwise."""

    url: str
    table: str = "sensor_readings"
    enable_timescale: bool = False
    batch_size: int = 5000
    timeout_sec: float = 30.0
    retention_days: int = 0
    partitions_ahead_days: int = 3


class DatabaseWriter:
    """Writes batches for one worker. Belongs to one thread.

    `write` and `upkeep` wait out an outage of the database, and raise `retry.Stopping` only at shutdown.
    `on_outage` is called after every failed attempt; `now` is the time of day, aware.
    """

    def __init__(
        self,
        options: WriterOptions,
        stop: StopFlag,
        stats: Stats,
        *,
        now: Callable[[], datetime],
        on_outage: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._stop = stop
        self._stats = stats
        self._now = now
        self._on_outage = on_outage
        self._clock = clock
        self._patience = Patience("postgresql", database.is_world, stop, stats)
        self._partitions = Partitions(options.table, options.timeout_sec, stop.overdue)
        self._connection: BoundedConnection | None = None
        self._next_upkeep = 0.0

    def start(self) -> schema_check.Found:
        """Wait for the database, then refuse it when its schema is not the one this version needs.

        Raises: `schema_check.SchemaMismatch`; psycopg errors that no waiting mends (a wrong password).
        """

        def attempt() -> schema_check.Found:
            return schema_check.look(self._connected(), self._options.table)

        patience = Patience(
            "postgresql",
            lambda error: (
                database.is_world(error)
                and not (isinstance(error, psycopg.Error) and database.is_refused(error))
            ),
            self._stop,
            self._stats,
        )
        found = patience.call(attempt, on_error=self._disconnect)
        schema_check.check(found, self._options.table, enable_timescale=self._options.enable_timescale)
        return found

    def write(self, batch: Batch) -> Outcome:
        """Store the batch's readings and say what became of each entry. Returns only after COMMIT."""
        writing = _Writing(self, batch)
        return decide(batch, writing.run(), retried=writing.retried)

    def upkeep(self) -> None:
        """On plain PostgreSQL: make partitions ahead, drop those past RETENTION_DAYS. Every minute."""
        if self._options.enable_timescale or self._clock() < self._next_upkeep:
            return
        self._next_upkeep = self._clock() + UPKEEP_SEC
        today = self._now().date()
        days = partitions.ahead(today, self._options.partitions_ahead_days)
        self._patience.call(lambda: self._ensure_partitions(self._connected(), days), self._failed)
        if self._options.retention_days:
            oldest = today - timedelta(days=self._options.retention_days)
            try:
                with database.connect(self._options.url, self._options.timeout_sec) as connection:
                    connection.autocommit = True
                    dropped = self._partitions.drop_older(connection, oldest)
            except psycopg.Error as error:
                if not database.is_world(error):
                    raise
                # Not worth a pause of the worker: a long reader holds a partition, or the server is away.
                structlog.get_logger().warning("retention_postponed", error=type(error).__name__)
            else:
                if dropped:
                    structlog.get_logger().info("partitions_dropped", partitions=dropped)

    def close(self) -> None:
        self._disconnect()

    def commit(self, readings: Sequence[Reading], staged: bool) -> tuple[list[Answer], bool]:
        """One transaction, tried until it commits. Answers the fates, and whether it took a second try.

        After any error the same rows go through staging: the failed attempt may have committed.
        Raises: what the rows themselves are to blame for.
        """
        failures = 0

        def attempt() -> list[Answer]:
            connection = self._connected()
            try:
                self._ensure_partitions(connection, days_of(readings))
                database.begin(connection, self._options.timeout_sec, self._stop.overdue)
                if staged or failures:
                    self._stats.batches_staged += 1
                    fates = merge_rows(connection, self._options.table, readings)
                else:
                    fates = copy_rows(connection, self._options.table, readings)
                # A crash before this line stores nothing; after it, redelivery finds the rows there.
                connection.commit()
            except psycopg.Error as error:
                if partitions.is_missing_partition(error):
                    self._partitions.forget()
                    raise psycopg.OperationalError("a partition was dropped meanwhile") from error
                if not database.is_world(error):
                    connection.rollback()
                raise
            return fates

        def failed() -> None:
            nonlocal failures
            failures += 1
            self._failed()

        fates = self._patience.call(attempt, failed, in_hand=True)
        return fates, failures > 0

    def _ensure_partitions(self, connection: BoundedConnection, days: set[int]) -> None:
        """On plain PostgreSQL. What goes wrong here is never a row's fault: it is waited out, and told."""
        if self._options.enable_timescale:
            return
        try:
            self._partitions.ensure(connection, days)
        except psycopg.Error as error:
            if database.is_world(error):
                raise
            raise psycopg.OperationalError(f"no partition could be made: {describe(error)}") from error

    def _failed(self) -> None:
        self._disconnect()
        self._on_outage()

    def _connected(self) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = database.connect(
                self._options.url, self._options.timeout_sec, self._stop.overdue
            )
        database.start_clock(self._connection, self._options.timeout_sec, self._stop.overdue)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def batch_size(self) -> int:
        return self._options.batch_size


class _Writing:
    """The way of one batch: sorted, twins apart, cut into transactions, bisected where refused."""

    def __init__(self, writer: DatabaseWriter, batch: Batch) -> None:
        self._writer = writer
        self._staged = batch.redelivered
        self._readings = batch.readings
        self._fates: list[Answer] = [RowFate.STORED] * len(self._readings)
        self.retried = False

    def run(self) -> list[Answer]:
        once, twins = self._sorted()
        for part in cut(self._readings, once, self._writer.batch_size):
            self._store(part, self._staged)
        # Only the table knows what a twin repeats: its sibling may have been refused, or be a conflict.
        for part in cut(self._readings, twins, self._writer.batch_size):
            self._store(part, staged=True)
        return self._fates

    def _sorted(self) -> tuple[list[int], list[int]]:
        """Indices in the order of the key: each key once, and the later ones of a key, its twins."""
        keys = [reading.key for reading in self._readings]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        once: list[int] = []
        twins: list[int] = []
        for index in order:
            (twins if once and keys[once[-1]] == keys[index] else once).append(index)
        return once, twins

    def _store(self, part: Sequence[int], staged: bool) -> None:
        readings = [self._readings[index] for index in part]
        try:
            fates, retried = self._writer.commit(readings, staged)
        except psycopg.errors.UniqueViolation:
            if staged:
                raise
            self._store(part, staged=True)
        except psycopg.Error as error:
            if not database.is_row_fault(error):
                raise
            self._bisect(part, staged, error)
        else:
            self.retried = self.retried or retried
            for index, fate in zip(part, fates, strict=True):
                self._fates[index] = fate

    def _bisect(self, part: Sequence[int], staged: bool, error: psycopg.Error) -> None:
        """Halve until the row to blame stands alone: about 2 log2(n) transactions for one bad row."""
        if len(part) == 1:
            self._fates[part[0]] = _refused(self._readings[part[0]], error)
            return
        middle = len(part) // 2
        self._store(part[:middle], staged)
        self._store(part[middle:], staged)


def cut(readings: Sequence[Reading], order: Sequence[int], most: int) -> Iterable[Sequence[int]]:
    """Parts of `order` for one transaction each: at most `most` readings and MAX_DAYS distinct days.

    Usually that is all of it at once. Each part keeps the order of the key.
    """
    days = days_of(readings)
    if len(order) <= most and len(days) <= MAX_DAYS:
        if order:
            yield order
        return
    ordered_days = sorted(days)
    for start in range(0, len(ordered_days), MAX_DAYS):
        first, last = ordered_days[start], ordered_days[min(start + MAX_DAYS, len(ordered_days)) - 1]
        within = [i for i in order if first <= readings[i].timestamp_us // DAY_US <= last]
        for begin in range(0, len(within), most):
            yield within[begin : begin + most]


def _refused(reading: Reading, error: psycopg.Error) -> Rejection:
    what = error.diag.constraint_name or type(error).__name__
    return Rejection(
        Reason.REFUSED_BY_DATABASE,
        f"the database refused the row: SQLSTATE {error.sqlstate}, {what}",
        reading.device_id,
        reading.sensor_type,
        str(reading.value if reading.value is not None else reading.value_text)[:200],
    )
