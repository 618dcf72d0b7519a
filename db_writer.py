"""One transaction a batch: readings in, their fates out, and nothing returned before COMMIT.

New readings go by binary COPY straight into the table. Whatever may be there already (redelivered
entries, anything after an error, a batch that meets a unique violation) goes through a staging table
and INSERT … ON CONFLICT DO NOTHING, in the order of the key, so that workers writing the same rows
cannot deadlock. A row that the database refuses is found by bisecting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic

import psycopg
import structlog

import database
import partitions
import schema_check
from alerting import Alerting, Judged
from database import BoundedConnection
from knowledge import Knowledge
from metrics import Stats
from partitions import Partitions
from portions import Portions
from registry import Registry
from retry import Patience, StopFlag, describe
from rule_store import RuleStore
from schema import Answer, Batch, Outcome, Reading, RowFate, days_of, decide
from staging import copy_rows, merge_rows

UPKEEP_SEC = 60.0


class AlertsRefused(Exception):
    """The database took the readings and refused what they did to alerts. A bug: they stay pending."""


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
    accept_unknown_series: bool = True
    rules_reload_sec: float = 60.0
    publish_alerts: bool = False


class DatabaseWriter:
    """Writes batches for one worker. Belongs to one thread.

    `write` and `upkeep` wait out an outage of the database, and raise `retry.Stopping` only at shutdown.
    `on_outage` is called after every failed attempt, `on_due` when there are alerts to publish; `now` is
    the time of day, aware.
    """

    def __init__(
        self,
        options: WriterOptions,
        stop: StopFlag,
        stats: Stats,
        *,
        now: Callable[[], datetime],
        on_outage: Callable[[], None] = lambda: None,
        on_due: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._stop = stop
        self._stats = stats
        self._now = now
        self._on_outage = on_outage
        self._on_due = on_due
        self._clock = clock
        self._patience = Patience("postgresql", database.is_world, stop, stats)
        self._partitions = Partitions(options.table, options.timeout_sec, stop.overdue)
        self._registry = Registry(accept_unknown=options.accept_unknown_series, clock=clock)
        store = RuleStore()
        self._knowledge = Knowledge(store, self._registry, options.rules_reload_sec, clock)
        self._alerting = Alerting(
            options.table, store.rules, publish=options.publish_alerts, owner_of=self._registry.owner_of
        )
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
        self._patience.call(self._learn, self._failed)
        return found

    def write(self, batch: Batch) -> Outcome:
        """Store the batch's readings and say what became of each entry. Returns only after COMMIT."""
        self._patience.call(self._learn, self._failed, in_hand=True)
        self._note(batch)
        readings = batch.readings
        refused = self._refused(readings)
        wanted = [one for n, one in enumerate(readings) if n not in refused] if refused else readings
        portions = Portions(wanted, self.commit, most=self._options.batch_size, staged=batch.redelivered)
        answers = portions.run()
        if refused:
            stored = iter(answers)
            answers = [refused[n] if n in refused else next(stored) for n in range(len(readings))]
        if self._registry.urgent:
            self._patience.call(self._flush, self._failed, in_hand=True)
        return decide(batch, answers, retried=portions.retried)

    def _learn(self) -> None:
        """Take up what was changed in rules and registry since the last batch."""
        self._knowledge.refresh(self._connected())

    def _note(self, batch: Batch) -> None:
        """What the entries say beside their readings."""
        for parsed in batch.parsed:
            if parsed.owner and parsed.readings:
                self._registry.note_owner(parsed.readings[0].device_id, parsed.owner)
            if parsed.status is not None:
                self._registry.note_status(parsed.status)

    def _refused(self, readings: Sequence[Reading]) -> dict[int, Answer]:
        """Readings that are not to be stored: of series that are switched off, or not registered."""
        unknown = self._registry.unknown(readings)
        if unknown:

            def ask() -> None:
                connection = self._connected()
                self._registry.learn(connection, unknown)
                connection.rollback()

            self._patience.call(ask, self._failed, in_hand=True)
        return self._registry.refused(readings)

    def _flush(self) -> None:
        """Write the registry. After a crash before this COMMIT, redelivery brings what was new again."""
        began = self._clock()
        connection = self._connected()
        database.begin(connection, self._options.timeout_sec, self._stop.overdue)
        self._registry.flush(connection)
        connection.commit()
        self._registry.flushed(self._clock() - began)

    def upkeep(self) -> None:
        """What is due between batches: the registry twice a second, partitions every minute."""
        if self._clock() >= self._registry.due_at:
            self._patience.call(self._flush, self._failed)
        self._partition_upkeep()

    @property
    def due_at(self) -> float:
        """When, by the clock, `upkeep` has something to do next, if no batch comes before."""
        return self._registry.due_at

    def _partition_upkeep(self) -> None:
        """On plain PostgreSQL: make partitions ahead, drop those past RETENTION_DAYS."""
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
        """Write what is noted of the registry, if the database is there, and disconnect."""
        try:
            if self._connection is not None and self._registry.due_at < float("inf"):
                self._flush()
        except psycopg.Error as error:
            structlog.get_logger().warning("registry_not_written", error=type(error).__name__)
        self._disconnect()

    def commit(self, readings: Sequence[Reading], staged: bool) -> tuple[list[Answer], bool]:
        """One transaction, tried until it commits. Answers the fates, and whether it took a second try.

        After any error the same rows go through staging: the failed attempt may have committed.
        Raises: what the rows themselves are to blame for.
        """
        failures = 0

        def attempt() -> tuple[list[Answer], Judged]:
            connection = self._connected()
            try:
                self._ensure_partitions(connection, days_of(readings))
                database.begin(connection, self._options.timeout_sec, self._stop.overdue)
                if staged or failures:
                    self._stats.batches_staged += 1
                    fates = merge_rows(connection, self._options.table, readings)
                else:
                    fates = copy_rows(connection, self._options.table, readings)
                judged = self._judge(connection, readings, fates)
                # A crash before this line stores nothing; after it, redelivery finds the rows there.
                connection.commit()
            except psycopg.Error as error:
                if partitions.is_missing_partition(error):
                    self._partitions.forget()
                    raise psycopg.OperationalError("a partition was dropped meanwhile") from error
                if not database.is_world(error):
                    connection.rollback()
                raise
            return fates, judged

        def failed() -> None:
            nonlocal failures
            failures += 1
            self._failed()

        fates, judged = self._patience.call(attempt, failed, in_hand=True)
        self._committed(readings, fates, judged)
        return fates, failures > 0

    def _judge(
        self, connection: BoundedConnection, readings: Sequence[Reading], fates: Sequence[Answer]
    ) -> Judged:
        """What is new in the table goes to the alerts; what was there already has been there before."""
        stored = [one for one, fate in zip(readings, fates, strict=True) if fate is RowFate.STORED]
        try:
            return self._alerting.judge(connection, stored)
        except psycopg.Error as error:
            if database.is_row_fault(error):
                raise AlertsRefused(describe(error)) from error
            raise

    def _committed(self, readings: Sequence[Reading], fates: Sequence[Answer], judged: Judged) -> None:
        self._registry.note(
            [one for one, fate in zip(readings, fates, strict=True) if isinstance(fate, RowFate)]
        )
        self._alerting.committed(judged)
        self._stats.alerts_opened += judged.activated
        self._stats.alerts_resolved += judged.resolved
        if judged.due:
            self._on_due()

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
            self._alerting.forget()
