"""The SQL of device events: rules change at once, deleted devices lose all they have in bounded steps.

The streams of events are separate, so events come in any order and more than once. What makes the order
of their moments, not of their arrival, decide is `applied_events`: the newest moment of each subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

import database
from database import BoundedConnection
from removal import Removal
from schema import DeviceEvent, EventKind
from thresholds import WILDCARDS

# First half of a two-part advisory lock. One event at a time in the whole database: what one event changes
# depends on what another has left behind, also where that is a row that is not there. Events are rare.
_LOCK_CLASS = 0x51C1EE
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

Overdue = Callable[[], bool]


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
    if connection.execute(_IS_DEVICE_GONE, gone).fetchone():
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

    In order: alerts, readings, rollups, rules that name exactly this device, series and the device, each
    down to the last row that there is now; at most about `rows` rows in all, since TimescaleDB refuses to
    decompress more than 100,000 in a transaction. What is left, or locked by others, is for the next step:
    the job stays until nothing is. Several workers may do this at the same time, each has another device.
    Raises psycopg errors, as `apply` does.
    """
    try:
        database.begin(connection, timeout_sec, overdue)
        job = connection.execute(_NEXT_JOB).fetchone()
        if job is not None:
            _remove(connection, Removal(connection, table, rows), job[0])
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


def _remove(connection: BoundedConnection, removal: Removal, device: str) -> None:
    """As far as the step goes. A table only when the one before it is empty."""
    if not (removal.alerts(device) and removal.readings(device) and removal.rollups(device)):
        return
    if not _remove_rules(connection, removal, device):
        return
    if removal.delete(_DELETE_SERIES, _SERIES_LEFT, device) and removal.delete(
        _DELETE_DEVICE, _DEVICE_LEFT, device
    ):
        connection.execute(_DONE, {"device": device})


def _remove_rules(connection: BoundedConnection, removal: Removal, device: str) -> bool:
    """With the lock of events, which may bring a rule back. Not waiting for it: an event that holds it may
    be waiting for this job.
    """
    if any(sign in device for sign in WILDCARDS):
        return True  # as a pattern it names other devices too
    row = connection.execute(_TRY_LOCK).fetchone()
    return bool(row and row[0]) and removal.delete(_DELETE_RULES, _RULES_LEFT, device)
