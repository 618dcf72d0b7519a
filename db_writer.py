"""One transaction a batch: readings in, their fates out, and nothing returned before COMMIT.

New readings go by binary COPY straight into the table. Whatever may be there already (redelivered
entries, anything after an error, a batch that meets a unique violation) goes through a staging table
and INSERT … ON CONFLICT DO NOTHING, in the order of the key, so that workers writing the same rows
cannot deadlock. A row that the database refuses is found by bisecting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import repeat
from time import monotonic

import psycopg

import database
import event_store
import partitions
import schema_check
import stuck
from alerting import Alerting, Judged
from database import BoundedConnection
from db_session import Session
from fates import decide
from housekeeping import Housekeeping
from knowledge import Knowledge
from late import Late
from metrics import Stats
from portions import Portions
from registry import Registry
from retry import StopFlag, describe
from rolling import Rolling
from rule_store import RuleStore
from schema import (
    Answer,
    Batch,
    DeviceEvent,
    EventKind,
    Outcome,
    Parsed,
    Reading,
    Reason,
    Rejection,
    RowFate,
    days_of,
)
from staging import copy_rows, merge_rows
from sweep import Sweep
from telling import Telling


class AlertsRefused(Exception):
    """The database took the readings and refused what they did to alerts. A bug: they stay pending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterOptions:
    """Plain values of the settings that writing depends on. Times in seconds unless named otherwise."""

    url: str = field(repr=False)
    direct_url: str | None = field(default=None, repr=False)
    table: str = "sensor_readings"
    enable_timescale: bool = False
    batch_size: int = 10_000
    timeout_sec: float = 30.0
    retention_days: int = 0
    partitions_ahead_days: int = 3
    accept_unknown_series: bool = True
    rules_reload_sec: float = 60.0
    publish_alerts: bool = False
    holder: str = "worker"


class DatabaseWriter:
    """Writes batches for one worker. Belongs to one thread.

    `write` and `upkeep` wait out an outage of the database, and raise `retry.Stopping` only at shutdown.
    `on_outage` is called after every failed attempt, `on_due` when there are alerts to publish;
    `caught_up_at` answers when, by the clock, everything there was had been read; `now` is the time of
    day, aware.
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
        caught_up_at: Callable[[], float] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._stats = stats
        self._now = now
        self._clock = clock
        self._on_due = on_due
        self._locked_out = False
        self._session = Session(
            options.url, options.timeout_sec, stop, stats, on_outage, options.direct_url
        )
        self._registry = Registry(accept_unknown=options.accept_unknown_series, clock=clock)
        store = RuleStore()
        self._knowledge = Knowledge(store, self._registry, options.rules_reload_sec, clock)
        self._alerting = Alerting(
            options.table, store.rules, publish=options.publish_alerts, owner_of=self._registry.owner_of
        )
        self._session.on_drop = self._alerting.forget
        self._telling = Telling(stats, clock)
        self._late = Late()
        sweep = Sweep(
            options.table,
            options.holder,
            publish=options.publish_alerts,
            caught_up_at=caught_up_at or clock,
            now=now,
            clock=clock,
        )
        self._housekeeping = Housekeeping(
            self._session,
            self._registry,
            sweep,
            Rolling(options.table, options.holder, caught_up_at=caught_up_at or clock, clock=clock),
            table=options.table,
            partitioned=not options.enable_timescale,
            retention_days=options.retention_days,
            partitions_ahead_days=options.partitions_ahead_days,
            now=now,
            clock=clock,
        )

    def start(self) -> schema_check.Found:
        """Wait for the database, then refuse it when its schema is not the one this version needs.

        Raises: `schema_check.SchemaMismatch`; psycopg errors that no waiting mends (a wrong password).
        """
        table = self._options.table
        found = self._session.call_first(lambda: schema_check.look(self._session.connection, table))
        schema_check.check(found, table, enable_timescale=self._options.enable_timescale)
        self._session.call(self._learn)
        return found

    def write(self, batch: Batch) -> Outcome:
        """Store the batch's readings and say what became of each entry. Returns only after COMMIT."""
        batch = self._apply_events(batch)
        self._session.call(self._learn, in_hand=True)
        self._note(batch)
        readings = batch.readings
        refused = self._refused(readings)
        portions = Portions(
            [one for n, one in enumerate(readings) if n not in refused] if refused else readings,
            self.commit,
            most=self._options.batch_size,
            staged=batch.redelivered,
            distinct=batch.distinct,
        )
        answers = portions.run()
        if refused:
            stored = repeat(RowFate.STORED) if answers is None else iter(answers)
            answers = [refused[n] if n in refused else next(stored) for n in range(len(readings))]
        if self._registry.urgent:
            self._housekeeping.write_registry()
        return decide(batch, answers, retried=portions.retried)

    def upkeep(self) -> None:
        """Do what is due between batches."""
        swept = self._housekeeping.run()
        self._stats.alerts_opened += swept.silent
        self._stats.alerts_resolved += swept.orphaned
        if swept.due:
            self._on_due()

    def devices_heard(self) -> int:
        """How many devices have been heard of in the last day, by any worker."""

        def ask() -> int:
            connection = self._session.begin()
            heard = self._registry.heard(connection)
            connection.rollback()
            return heard

        return self._session.call(ask, in_hand=True)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the database now. Any thread may ask."""
        return self._session.open

    @property
    def due_at(self) -> float:
        """When, by the clock, `upkeep` has something to do next, if no batch comes before."""
        return self._housekeeping.due_at

    def reload(self) -> None:
        """Look at all rules and the registry again before the next batch, told of a change or not."""
        self._knowledge.look_again()

    def close(self) -> None:
        """Write down what is noted, if the database is there, and disconnect."""
        self._housekeeping.close()
        self._session.drop()

    def commit(self, readings: Sequence[Reading], staged: bool) -> tuple[Sequence[Answer] | None, bool]:
        """One transaction, tried until it commits. Answers the fates, None where all were stored, and
        whether it took a second try.

        After any error the same rows go through staging: the failed attempt may have committed.
        Raises: what the rows themselves are to blame for.
        """
        failures = 0

        def failed() -> None:
            nonlocal failures
            failures += 1

        fates, judged = self._session.call(
            lambda: self._attempt(readings, staged or failures > 0), in_hand=True, on_error=failed
        )
        self._registry.note(_those(readings, fates, (RowFate.STORED, RowFate.DUPLICATE)))
        self._note_ages(readings)
        self._alerting.committed(judged)
        self._telling.committed()
        self._stats.alerts_opened += judged.activated
        self._stats.alerts_resolved += judged.resolved
        if judged.due:
            self._on_due()
        return fates, failures > 0

    def _attempt(self, readings: Sequence[Reading], staged: bool) -> tuple[Sequence[Answer] | None, Judged]:
        connection = self._session.connection
        try:
            fates: Sequence[Answer] | None
            if self._locked_out:
                self._locked_out = False
                stuck.end_copies(connection, self._options.timeout_sec / 3)
            self._housekeeping.ensure_partitions(days_of(readings))
            connection = self._session.begin()
            if staged:
                self._stats.batches_staged += 1
                fates = merge_rows(connection, self._options.table, readings)
            else:
                copy_rows(connection, self._options.table, readings)
                fates = None
            stored = _those(readings, fates, (RowFate.STORED,))
            self._late.note(connection, stored)
            self._telling.tell(connection, stored)
            judged = self._judge(connection, stored)
            began = self._clock()
            # A crash before this line stores nothing; after it, redelivery finds the rows there.
            connection.commit()
            self._stats.commit_sec.observe(self._clock() - began)
        except psycopg.Error as error:
            self._locked_out = isinstance(error, psycopg.errors.LockNotAvailable)
            if self._telling.to_blame(error):
                raise psycopg.OperationalError("the queue of notifications is full") from error
            if partitions.is_missing_partition(error):
                self._housekeeping.forget_partitions()
                raise psycopg.OperationalError("a partition was dropped meanwhile") from error
            if not database.is_world(error):
                connection.rollback()
            raise
        return fates, judged

    def _note_ages(self, readings: Sequence[Reading]) -> None:
        """How old the first and the last of what was committed are."""
        now_us = self._now().timestamp() * 1_000_000
        for place in {0, len(readings) - 1} if readings else ():
            age_us = now_us - readings[place].timestamp_us
            self._stats.reading_age_sec.observe(max(0.0, age_us / 1_000_000))

    def _judge(self, connection: BoundedConnection, stored: Sequence[Reading]) -> Judged:
        """What is new in the table goes to the alerts; what was there already has been there before."""
        try:
            return self._alerting.judge(connection, stored)
        except psycopg.Error as error:
            if database.is_row_fault(error):
                raise AlertsRefused(describe(error)) from error
            raise

    def _learn(self) -> None:
        """Take up what was changed in rules and registry since the last batch."""
        self._knowledge.refresh(self._session.connection)

    def _apply_events(self, batch: Batch) -> Batch:
        """Apply the events of a batch, each committed by itself; one that the database refuses is bad."""
        if not any(parsed.event for parsed in batch.others.values()):
            return batch
        applied = {place: self._applied(parsed) for place, parsed in batch.others.items()}
        return replace(batch, others=applied)

    def _applied(self, parsed: Parsed) -> Parsed:
        event = parsed.event
        if event is None:
            return parsed
        session = self._session
        try:
            session.call(
                lambda: event_store.apply(session.connection, event, session.timeout_sec, session.overdue),
                in_hand=True,
            )
        except psycopg.Error as error:
            if not database.is_row_fault(error):
                raise
            return Parsed((), (_refused(event, error),))
        if event.kind is EventKind.DEVICE_DELETED:
            for device in event.devices:
                self._registry.forget_device(device)
        return parsed

    def _note(self, batch: Batch) -> None:
        """What the entries say beside their readings."""
        for parsed in batch.others.values():
            if parsed.owner and parsed.readings:
                self._registry.note_owner(parsed.readings[0].device_id, parsed.owner)
            if parsed.status is not None:
                self._registry.note_status(parsed.status)

    def _refused(self, readings: Sequence[Reading]) -> dict[int, Answer]:
        """Readings that are not to be stored: of series that are switched off, or not registered."""
        unknown = self._registry.unknown(readings)
        if unknown:

            def ask() -> None:
                connection = self._session.begin()
                self._registry.learn(connection, unknown)
                connection.rollback()

            self._session.call(ask, in_hand=True)
        return self._registry.refused(readings)


def _those(
    readings: Sequence[Reading], fates: Sequence[Answer] | None, wanted: tuple[RowFate, ...]
) -> Sequence[Reading]:
    """The readings with these fates; usually all of them are stored."""
    if fates is None:
        return readings
    return [one for one, fate in zip(readings, fates, strict=True) if fate in wanted]


def _refused(event: DeviceEvent, error: psycopg.Error) -> Rejection:
    what = error.diag.constraint_name or type(error).__name__
    return Rejection(
        Reason.REFUSED_BY_DATABASE,
        f"the database refused the event: SQLSTATE {error.sqlstate}, {what}",
        event.devices[0] if len(event.devices) == 1 else "",
        event.sensor_type,
    )
