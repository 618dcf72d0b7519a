"""The SQL of device events: rules change at once, deleted devices lose all they have in bounded steps.

The streams of events are separate, so events come in any order and more than once. What makes the order
of their moments, not of their arrival, decide is `applied_events`: the newest moment of each subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, LiteralString

import psycopg
from psycopg import sql

import database
from database import BoundedConnection
from schema import DeviceEvent, EventKind
from thresholds import WILDCARDS

# First half of a two-part advisory lock. One event at a time in the whole database: what one event changes
# depends on what another has left behind, also where that is a row that is not there. Events are rare.
_LOCK_CLASS = 0x51C1EE
# Partitions or chunks that one transaction deletes from: each one takes locks (docs/internals.md).
MAX_PARTS = 32
# Statements that one transaction deletes with, where series of few readings share a large part.
MAX_DELETES = 100

_LOCK: LiteralString = f"select pg_advisory_xact_lock({_LOCK_CLASS}, 0)"
_TRY_LOCK: LiteralString = f"select pg_try_advisory_xact_lock({_LOCK_CLASS}, 0)"
# The subjects that had not yet seen an event as new as this one, which they now have.
_NOTE = """
    insert into applied_events (subject, ms, rank, seq)
    select subject, %(ms)s, %(rank)s, %(seq)s from unnest(%(subjects)s::text[]) as subject order by subject
    on conflict (subject) do update set ms = excluded.ms, rank = excluded.rank, seq = excluded.seq
    where (applied_events.ms, applied_events.rank, applied_events.seq)
        < (excluded.ms, excluded.rank, excluded.seq)
    returning subject
"""
_IS_DEVICE_GONE = "select 1 from applied_events where subject = %(subject)s and ms >= %(ms)s"
# What the event does not speak of stays as users have set it, unless it does not fit the kind it has now.
_PUT_RULE = """
    insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value, sensor_id)
    values (%(id)s, %(device)s, %(sensor)s, %(kind)s, %(severity)s, %(value)s, %(sensor_id)s)
    on conflict (id) do update set
        device_pattern = excluded.device_pattern, sensor_pattern = excluded.sensor_pattern,
        kind = excluded.kind, severity = excluded.severity, value = excluded.value,
        sensor_id = excluded.sensor_id, value_text = null, window_sec = null
"""
_DROP_RULE = "delete from thresholds where id = %(id)s"
_REQUEST_DELETION = """
    insert into device_deletions (device_id)
    select device_id from unnest(%(devices)s::text[]) as device_id order by device_id
    on conflict (device_id) do update set requested_at = now()
"""

_NEXT_JOB = """
    select device_id from device_deletions order by requested_at, device_id limit 1 for update skip locked
"""
_PUT_BEHIND = """
    update device_deletions set requested_at = now()
    where device_id = (select device_id from device_deletions order by requested_at, device_id limit 1)
"""
_DONE = "delete from device_deletions where device_id = %(device)s"
# Rows that somebody else has locked are passed over: the next step meets them again.
_DELETE_ALERTS = """
    delete from alerts where id in (
        select id from alerts where device_id = %(device)s order by id limit %(rows)s
        for update skip locked)
"""
_ALERTS_LEFT = "select 1 from alerts where device_id = %(device)s limit 1"
# Not a rule that an event newer than the deletion has made: the device has come back.
_RULES = sql.SQL(
    """
    from thresholds where device_pattern = %(device)s and not exists (
        select from applied_events as rule, applied_events as device
        where rule.subject = 'threshold:' || thresholds.id
            and device.subject = 'device:' || %(device)s and rule.ms > device.ms)
    """
)
_DELETE_RULES = sql.SQL(
    """
    delete from thresholds where id in (select id {rules} order by id limit %(rows)s for update skip locked)
    """
).format(rules=_RULES)
_RULES_LEFT = sql.SQL("select 1 {rules} limit 1").format(rules=_RULES)
_DELETE_SERIES = """
    delete from series where (device_id, sensor_type) in (
        select device_id, sensor_type from series where device_id = %(device)s
        order by sensor_type limit %(rows)s for update skip locked)
"""
_SERIES_LEFT = "select 1 from series where device_id = %(device)s limit 1"
_DELETE_DEVICE = """
    delete from devices where device_id in (
        select device_id from devices where device_id = %(device)s for update skip locked)
"""
_DEVICE_LEFT = "select 1 from devices where device_id = %(device)s"

# Where the parts of the table, its partitions or chunks, begin and end.
_IS_PARTITIONED = "select 1 from pg_partitioned_table where partrelid = to_regclass(quote_ident(%(table)s))"
_HAS_TIMESCALE = "select 1 from pg_extension where extname = 'timescaledb'"
_PARTITION_BOUNDS = r"""
    select bound::text from (
        select distinct
            (regexp_matches(pg_get_expr(relpartbound, oid), '''([^'']+)''', 'g'))[1]::timestamptz as bound
        from pg_inherits join pg_class on oid = inhrelid
        where inhparent = to_regclass(quote_ident(%(table)s))
    ) as bounds order by bound
"""
_CHUNK_BOUNDS = """
    select bound::text from (
        select distinct unnest(array[range_start, range_end]) as bound
        from timescaledb_information.chunks
        where format('%%I.%%I', hypertable_schema, hypertable_name)::regclass
            = to_regclass(quote_ident(%(table)s))
    ) as bounds order by bound
"""
# `within` is written out, so that only the parts that it covers are planned for, opened and locked.
_WITHIN = sql.SQL('device_id = %(device)s and "timestamp" >= {low} and "timestamp" < {high}')
_COUNT = sql.SQL("select count(*) from (select from {table} where {within} limit %(most)s) as found")
_A_SERIES = sql.SQL("select sensor_type from {table} where {within} limit 1")
_NTH_TIME = sql.SQL(
    """
    select "timestamp"::text from {table} where {within} and sensor_type = %(sensor)s
    order by "timestamp" offset %(nth)s limit 1
    """
)
_DELETE = sql.SQL("delete from {table} where {within}")
_DELETE_OF_SERIES = sql.SQL("delete from {table} where {within} and sensor_type = %(sensor)s")
_DELETE_UNTIL = sql.SQL(
    'delete from {table} where {within} and sensor_type = %(sensor)s and "timestamp" <= {until}'
)

Query = LiteralString | sql.Composed
Overdue = Callable[[], bool]
Part = tuple[str, str]


def apply(
    connection: BoundedConnection,
    event: DeviceEvent,
    timeout_sec: float,
    overdue: Overdue = lambda: False,
) -> bool:
    """Apply one event in a transaction of its own. False when it came too late to change anything.

    Idempotent, and whatever the order in which events come, they leave the same behind. Returns after
    COMMIT; a crash before it leaves nothing, and one after it finds, at the redelivery, what it left.
    Raises psycopg errors; the transaction of one that is not the world's fault is rolled back.
    """
    try:
        database.begin(connection, timeout_sec, overdue)
        connection.execute(_LOCK)
        if event.kind is EventKind.DEVICE_DELETED:
            changed = _delete_devices(connection, event)
        else:
            changed = _change_rule(connection, event)
        connection.commit()
    except psycopg.Error as error:
        if not database.is_world(error):
            connection.rollback()
        raise
    return changed


def _delete_devices(connection: BoundedConnection, event: DeviceEvent) -> bool:
    subjects = _note(connection, event, [f"device:{device}" for device in event.devices])
    if not subjects:
        return False
    devices = [subject.removeprefix("device:") for subject in subjects]
    connection.execute(_REQUEST_DELETION, {"devices": devices})
    return True


def _change_rule(connection: BoundedConnection, event: DeviceEvent) -> bool:
    if not _note(connection, event, [f"threshold:{event.threshold_id}"]):
        return False
    (device,) = event.devices
    gone = {"subject": f"device:{device}", "ms": event.moment[0]}
    if _any(connection, _IS_DEVICE_GONE, gone):
        # The newest that is known of this rule is of a deleted device. It may be there yet, as it was
        # made earlier for another device.
        connection.execute(_DROP_RULE, {"id": event.threshold_id})
        return False
    if event.kind is EventKind.THRESHOLD_DELETED:
        connection.execute(_DROP_RULE, {"id": event.threshold_id})
        return True
    rule = {
        "id": event.threshold_id,
        "device": device,
        "sensor": event.sensor_type,
        "kind": event.bound,
        "severity": event.severity,
        "value": event.value,
        "sensor_id": event.sensor_id,
    }
    connection.execute(_PUT_RULE, rule)
    return True


def _note(connection: BoundedConnection, event: DeviceEvent, subjects: Sequence[str]) -> list[str]:
    ms, seq = event.moment
    values = {"ms": ms, "rank": event.kind.value, "seq": seq, "subjects": list(subjects)}
    return [subject for (subject,) in connection.execute(_NOTE, values)]


def deletion_step(
    connection: BoundedConnection,
    table: str,
    timeout_sec: float,
    rows: int = 10_000,
    overdue: Overdue = lambda: False,
) -> bool:
    """Take the oldest deletion of a device one transaction further. Whether there may be more to do.

    In order: alerts, readings, rules that name exactly this device, series and the device, each down to
    the last row that there is now; at most about `rows` rows in all, since TimescaleDB refuses to
    decompress more than 100,000 in a transaction. What is left, or locked by others, is for the next step:
    the job stays until nothing is. Several workers may do this at the same time, each has another device.
    Raises psycopg errors, as `apply` does.
    """
    try:
        database.begin(connection, timeout_sec, overdue)
        job = connection.execute(_NEXT_JOB).fetchone()
        if job is not None:
            _Deletion(connection, table, job[0], rows).run()
        # A crash before this line leaves the job as it was; after it, the next step goes on.
        connection.commit()
    except psycopg.Error as error:
        if not database.is_world(error):
            connection.rollback()
        raise
    return job is not None


def put_behind(connection: BoundedConnection) -> None:
    """Let the other deletions go before the oldest one, which cannot be done. Commits."""
    connection.execute(_PUT_BEHIND)
    connection.commit()


class _Deletion:
    """One step of one job. `left`: how many rows it may still delete."""

    def __init__(self, connection: BoundedConnection, table: str, device: str, rows: int) -> None:
        self._connection = connection
        self._table = table
        self._device = device
        self._left = rows
        self._parts = MAX_PARTS
        self._deletes = MAX_DELETES

    def run(self) -> None:
        if not self._delete(_DELETE_ALERTS, _ALERTS_LEFT) or not self._delete_readings():
            return
        if not self._delete_rules() or not self._delete(_DELETE_SERIES, _SERIES_LEFT):
            return
        if self._delete(_DELETE_DEVICE, _DEVICE_LEFT):
            self._connection.execute(_DONE, {"device": self._device})

    def _delete(self, statement: Query, any_left: Query) -> bool:
        """Whether none are left."""
        values = {"device": self._device, "rows": self._left}
        self._took(self._connection.execute(statement, values).rowcount)
        return not _any(self._connection, any_left, values)

    def _delete_rules(self) -> bool:
        """With the lock of events, which may bring a rule back. Not waiting for it: an event that holds it
        may be waiting for this job.
        """
        if any(sign in self._device for sign in WILDCARDS):
            return True  # as a pattern it names other devices too
        row = self._connection.execute(_TRY_LOCK).fetchone()
        return bool(row and row[0]) and self._delete(_DELETE_RULES, _RULES_LEFT)

    def _delete_readings(self) -> bool:
        """Whether none are left. Part by part, since a transaction must not open them all."""
        parts = self._all_parts()
        for start in range(0, len(parts), MAX_PARTS):
            group = parts[start : start + MAX_PARTS]
            if not self._count((group[0][0], group[-1][1]), 1):
                continue
            for part in group:
                if not self._delete_part(part):
                    return False
        return True

    def _all_parts(self) -> list[Part]:
        """All of time, cut where partitions or chunks begin and end."""
        table = {"table": self._table}
        bounds: list[str] = []
        if _any(self._connection, _IS_PARTITIONED, table):
            bounds = [bound for (bound,) in self._connection.execute(_PARTITION_BOUNDS, table)]
        elif _any(self._connection, _HAS_TIMESCALE, {}):
            bounds = [bound for (bound,) in self._connection.execute(_CHUNK_BOUNDS, table)]
        edges = ["-infinity", *bounds, "infinity"]
        return list(pairwise(edges))

    def _delete_part(self, part: Part) -> bool:
        """Whether none are left in this part."""
        found = self._count(part, self._left + 1)
        if not found:
            return True
        if not self._parts or not self._left:
            return False
        self._parts -= 1
        if found <= self._left:
            self._took(self._run(_DELETE, part).rowcount)
            return True
        while self._left > 0 and self._deletes:
            row = self._run(_A_SERIES, part).fetchone()
            if row is None:
                return True
            self._delete_of_series(part, row[0])
            self._deletes -= 1
        return False

    def _took(self, rows: int) -> None:
        """Perhaps more than it might: of the same time, or come meanwhile."""
        self._left = max(0, self._left - rows)

    def _delete_of_series(self, part: Part, sensor: str) -> None:
        """The oldest of a series, those of the last one's time included."""
        last = self._run(_NTH_TIME, part, sensor=sensor, nth=self._left - 1).fetchone()
        if last is None:
            self._took(self._run(_DELETE_OF_SERIES, part, sensor=sensor).rowcount)
        else:
            self._took(self._run(_DELETE_UNTIL, part, until=last[0], sensor=sensor).rowcount)

    def _count(self, part: Part, most: int) -> int:
        """How many readings there are, counted up to `most`. The locks of looking are given back."""
        with self._connection.transaction(force_rollback=True):
            row = self._run(_COUNT, part, most=most).fetchone()
        return int(row[0]) if row else 0

    def _run(
        self, statement: sql.SQL, part: Part, until: str = "", **values: object
    ) -> psycopg.Cursor[Any]:
        low, high = part
        query = statement.format(
            table=sql.Identifier(self._table),
            within=_WITHIN.format(low=sql.Literal(low), high=sql.Literal(high)),
            until=sql.Literal(until),
        )
        return self._connection.execute(query, {"device": self._device, **values})


def _any(connection: BoundedConnection, query: Query, values: dict[str, Any]) -> bool:
    return connection.execute(query, values).fetchone() is not None
