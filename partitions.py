"""Daily partitions of the readings on plain PostgreSQL: made ahead and on demand, dropped when too old.

Nothing here locks out the other workers: a partition is made apart and then attached (SHARE UPDATE
EXCLUSIVE on the table, which COPY does not mind), and detached CONCURRENTLY before it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
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
    where inhparent = {regclass}::regclass
    """
)
# So that bounds are written the one way that is read here.
_PLAIN_DATES = """
    select set_config('datestyle', 'ISO, YMD', %(local)s), set_config('timezone', 'UTC', %(local)s)
"""
_IMPATIENT = """
    select set_config('lock_timeout', %(lock)s, false),
           set_config('statement_timeout', %(statement)s, false)
"""
_TRY_LOCK = sql.SQL("select pg_try_advisory_lock({lock_class}, {regclass}::regclass::oid::int)")
_UNLOCK = sql.SQL("select pg_advisory_unlock({lock_class}, {regclass}::regclass::oid::int)")
# One statement, so that a worker which is stopped in the middle of it cannot hold the lock: the server
# finishes it alone. One worker at a time; who waited finds what the other has made. A detached partition
# of that name may be left over: it is attached again, never dropped, for it may hold data.
_MAKE = sql.SQL(
    """
    do $make$
    declare
        day date;
        partition text;
    begin
        perform set_config('lock_timeout', {lock_timeout}, true);
        perform set_config('timezone', 'UTC', true);
        perform pg_advisory_xact_lock({lock_class}, {table}::regclass::oid::int);
        foreach day in array {days}::date[] loop
            partition := format('%I', {prefix} || to_char(day, 'YYYYMMDD'));
            if exists (
                select from pg_inherits
                where inhparent = {table}::regclass and inhrelid = to_regclass(partition)
                  and inhdetachpending
            ) then  -- a detach was cut off: finish it, to attach it again
                execute format('alter table %s detach partition %s finalize', {table}, partition);
            end if;
            -- This function knows what others have committed while the lock was waited for, at any level of
            -- isolation that the database may have for its default; a look into pg_inherits would not.
            if not exists (
                select from pg_partition_ancestors(to_regclass(partition)) as above
                where above.relid = {table}::regclass
            ) then
                execute format('create table if not exists %s (like %s including defaults'
                    ' including constraints including indexes)', partition, {table});
                execute format('alter table %s attach partition %s for values from (%L) to (%L)',
                    {table}, partition, day::timestamptz, (day + 1)::timestamptz);
            end if;
        end loop;
    end
    $make$
    """
)
_DETACH = sql.SQL("alter table {table} detach partition {partition} concurrently")
_FINALIZE = sql.SQL("alter table {table} detach partition {partition} finalize")
_DROP = sql.SQL("drop table if exists {partition}")


class Partitions:
    """The partitions of one table, remembered so that a batch whose days are known asks nothing."""

    def __init__(self, table: str, timeout_sec: float, overdue: Callable[[], bool] = lambda: False) -> None:
        self._table = table
        self._timeout_sec = timeout_sec
        self._overdue = overdue
        self._known: set[int] | None = None

    def forget(self) -> None:
        """Somebody may have dropped a partition: look again before the next write."""
        self._known = None

    def ensure(self, connection: BoundedConnection, days: set[int]) -> None:
        """Have a partition for each of `days` (days since 1970), committed. Raises psycopg errors."""
        if self._known is not None and days <= self._known:
            return
        if self._known is None:
            database.begin(connection, self._timeout_sec, self._overdue)
            self._known = self.days(connection)
            connection.commit()
        missing = days - self._known
        if missing:
            self._make(connection, missing)

    def _make(self, connection: BoundedConnection, missing: set[int]) -> None:
        database.start_clock(connection, self._timeout_sec, self._overdue)
        statement = _MAKE.format(
            table=sql.Literal(sql.Identifier(self._table).as_string(None)),
            prefix=sql.Literal(f"{self._table}_p"),
            days=sql.Literal([(_EPOCH + timedelta(days=day)).isoformat() for day in sorted(missing)]),
            lock_class=sql.Literal(_LOCK_CLASS),
            lock_timeout=sql.Literal(str(int(self._timeout_sec * 500))),
        )
        connection.autocommit = True
        try:
            connection.execute(statement)
        finally:
            if not connection.closed:
                connection.autocommit = False
        self._known = (self._known or set()) | missing
        structlog.get_logger().info("partitions_made", partitions=len(missing))

    def drop_older(self, connection: BoundedConnection, oldest: date) -> int:
        """Drop the partitions of days before `oldest`, one worker at a time. Returns how many.

        A detach that was cut off is finished first: while one is pending PostgreSQL begins no other.
        `connection` is in autocommit, as DETACH … CONCURRENTLY asks, and its session is not used for
        anything else. Raises psycopg errors; `LockNotAvailable` where somebody reads the table for long.
        """
        database.start_clock(connection, self._timeout_sec)
        timeouts = {"lock": str(_PATIENCE_MS), "statement": str(int(self._timeout_sec * 1000))}
        connection.execute(_IMPATIENT, timeouts)
        connection.execute(_PLAIN_DATES, {"local": False})
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

    def days(self, connection: BoundedConnection) -> set[int]:
        """The days that have a partition, as days since 1970. Leaves a transaction open."""
        connection.execute(_PLAIN_DATES, {"local": True})
        rows = connection.execute(self._fill(_LIST)).fetchall()
        return {day for _, pending, bound in rows if not pending for day in _days_of(bound)}

    def _fill(self, template: sql.SQL, partition: str = "") -> sql.Composed:
        table = sql.Identifier(self._table)
        return template.format(
            table=table,
            regclass=sql.Literal(table.as_string(None)),
            lock_class=sql.Literal(_LOCK_CLASS),
            partition=sql.Identifier(partition),
        )


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
