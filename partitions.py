"""Daily partitions of the readings on plain PostgreSQL: made ahead and on demand, dropped when too old.

Nothing here locks out the other workers: a partition is made apart and then attached (SHARE UPDATE
EXCLUSIVE on the table, which COPY does not mind), and detached CONCURRENTLY before it is dropped.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import psycopg
import structlog
from psycopg import sql

import database
from database import BoundedConnection

_EPOCH = date(1970, 1, 1)
# How long dropping waits for a reader of the table: it holds up this worker, and others that need a new
# partition. The server has to give up by itself: a client that goes away leaves the statement waiting.
_PATIENCE_MS = 2000
_LOCK_CLASS = 0x51C1CE  # first half of the two-part advisory lock; the second is the table's oid

_LIST = sql.SQL(
    """
    select child.relname::text, inhdetachpending, pg_get_expr(child.relpartbound, child.oid)
    from pg_inherits join pg_class child on child.oid = inhrelid
    where inhparent = {table}::regclass
    """
)
# So that bounds are written the one way that is read here.
_PLAIN_DATES = "select set_config('datestyle', 'ISO, YMD', false), set_config('timezone', 'UTC', false)"
_LOCK = sql.SQL("select pg_advisory_xact_lock({lock_class}, {table}::regclass::oid::int)")
_IMPATIENT = """
    select set_config('lock_timeout', %(lock)s, false),
           set_config('statement_timeout', %(statement)s, false)
"""
_TRY_LOCK = sql.SQL("select pg_try_advisory_lock({lock_class}, {table}::regclass::oid::int)")
_UNLOCK = sql.SQL("select pg_advisory_unlock({lock_class}, {table}::regclass::oid::int)")
# A detached partition of that name may be left over; it is attached again, never dropped: it may hold data.
_CREATE = sql.SQL(
    "create table if not exists {partition}"
    " (like {table} including defaults including constraints including indexes)"
)
_ATTACH = sql.SQL("alter table {table} attach partition {partition} for values from ({low}) to ({high})")
_DETACH = sql.SQL("alter table {table} detach partition {partition} concurrently")
_FINALIZE = sql.SQL("alter table {table} detach partition {partition} finalize")
_DROP = sql.SQL("drop table if exists {partition}")


class Partitions:
    """The partitions of one table, remembered so that a batch whose days are known asks nothing."""

    def __init__(self, table: str, timeout_sec: float) -> None:
        self._table = table
        self._timeout_sec = timeout_sec
        self._known: set[int] | None = None

    def forget(self) -> None:
        """Somebody may have dropped a partition: look again before the next write."""
        self._known = None

    def ensure(self, connection: BoundedConnection, days: set[int]) -> None:
        """Have a partition for each of `days` (days since 1970), committed. Raises psycopg errors."""
        if self._known is not None and days <= self._known:
            return
        if self._known is None:
            database.begin(connection, self._timeout_sec)
            self._known = self.days(connection)
            connection.commit()
        missing = days - self._known
        if missing:
            self._make(connection, missing)

    def _make(self, connection: BoundedConnection, missing: set[int]) -> None:
        """One worker at a time; the one that waited finds what the other has made."""
        database.begin(connection, self._timeout_sec)
        connection.execute(self._fill(_LOCK))
        known = self.days(connection)
        for name, pending, bound in connection.execute(self._fill(_LIST)).fetchall():
            if pending and missing.intersection(_days_of(bound)):  # a detach was cut off: attach it again
                connection.execute(self._fill(_FINALIZE, name))
        for day in sorted(missing - known):
            partition = self.name(day)
            connection.execute(self._fill(_CREATE, partition))
            connection.execute(self._fill(_ATTACH, partition, day))
        connection.commit()
        self._known = known | missing
        structlog.get_logger().info("partitions_made", partitions=len(missing - known))

    def drop_older(self, connection: BoundedConnection, oldest: date) -> int:
        """Drop the partitions of days before `oldest`, one worker at a time. Returns how many.

        A detach that was cut off is finished first: while one is pending PostgreSQL begins no other.
        `connection` is in autocommit, as DETACH … CONCURRENTLY asks, and its session is not used for
        anything else. Raises psycopg errors; `LockNotAvailable` where somebody reads the table for long.
        """
        database.start_clock(connection, self._timeout_sec)
        timeouts = {"lock": str(_PATIENCE_MS), "statement": str(int(self._timeout_sec * 1000))}
        connection.execute(_IMPATIENT, timeouts)
        connection.execute(_PLAIN_DATES)
        row = connection.execute(self._fill(_TRY_LOCK)).fetchone()
        if not row or not row[0]:
            return 0
        dropped = 0
        found = connection.execute(self._fill(_LIST)).fetchall()
        for name, pending, bound in sorted(found, key=lambda row: not row[1]):
            days = _days_of(bound)
            old = bool(days) and days[-1] < (oldest - _EPOCH).days
            if pending or old:
                connection.execute(self._fill(_FINALIZE if pending else _DETACH, name))
            if old:
                connection.execute(self._fill(_DROP, name))
                dropped += 1
        connection.execute(self._fill(_UNLOCK))
        self.forget()
        return dropped

    def name(self, day: int) -> str:
        """The name of a day's partition: `sensor_readings_p20150204`."""
        return f"{self._table}_p{_EPOCH + timedelta(days=day):%Y%m%d}"

    def days(self, connection: BoundedConnection) -> set[int]:
        """The days that have a partition, as days since 1970. Leaves a transaction open."""
        connection.execute(_PLAIN_DATES)
        rows = connection.execute(self._fill(_LIST)).fetchall()
        return {day for _, pending, bound in rows if not pending for day in _days_of(bound)}

    def _fill(self, template: sql.SQL, partition: str = "", day: int = 0) -> sql.Composed:
        low = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
        parts: dict[str, sql.Composable] = {
            "lock_class": sql.Literal(_LOCK_CLASS),
            "partition": sql.Identifier(partition),
            "low": sql.Literal(low.isoformat()),
            "high": sql.Literal((low + timedelta(days=1)).isoformat()),
        }
        quoted = sql.Identifier(self._table)
        if "::regclass" in template.as_string(None):
            return template.format(table=sql.Literal(quoted.as_string(None)), **parts)
        return template.format(table=quoted, **parts)


def _days_of(bound: str | None) -> range:
    """Days since 1970 in `FOR VALUES FROM ('2015-02-04 00:00:00+00') TO ('2015-02-05 00:00:00+00')`.

    Somebody may have made coarser partitions by hand: those hold several days.
    """
    try:
        low, high = (datetime.fromisoformat(text) for text in (bound or "").split("'")[1:4:2])
    except (IndexError, ValueError):
        return range(0)
    return range((low.astimezone(UTC).date() - _EPOCH).days, (high.astimezone(UTC).date() - _EPOCH).days)


def ahead(today: date, days: int) -> set[int]:
    """The days, as days since 1970, that should have a partition before they are needed."""
    first = (today - _EPOCH).days
    return set(range(first - 1, first + days + 1))


def is_missing_partition(error: psycopg.Error) -> bool:
    """Whether a row found no partition: a check violation that names no constraint."""
    return isinstance(error, psycopg.errors.CheckViolation) and not error.diag.constraint_name
