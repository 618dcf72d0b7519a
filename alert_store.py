"""The table of alerts, and what deciding asks of the readings: statements, named, and rows as values.

Everything here runs in the caller's transaction and raises psycopg errors as they come.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from database import BoundedConnection
from rules import Run
from thresholds import Alert, Kind, Rule, Sample, Series, Status, alert_id

Key = tuple[str, str, str]  # rule, device, sensor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Of all advisory locks in the database: the class that partitions.py uses too, with numbers that are no
# table's oid.
LOCK_CLASS = 0x51C1CE
LOCK_NUMBER = 2

_ALERT = """
    id, threshold_id, device_id, sensor_type, status, value, value_text, last_value, last_value_text,
    peak_value, violations, first_time, last_time, last_message_id, created_at
"""

_EVERYTHING_OPEN = sql.SQL(
    "select threshold_id, device_id, sensor_type from alerts where status <> 'resolved'"
)
_OPEN_SINCE = sql.SQL(
    """
    select number, status <> 'resolved', threshold_id, device_id, sensor_type from alerts
    where number > %(seen)s
    """
)
# In the order of the key, so that two workers that want the same alerts wait for each other in turn.
_FETCH_OPEN = sql.SQL(
    f"""
    select {_ALERT} from alerts
    where status <> 'resolved' and (threshold_id, device_id, sensor_type) in (
        select * from unnest(%(rules)s::text[], %(devices)s::text[], %(sensors)s::text[])
    )
    order by threshold_id collate "C", device_id, sensor_type for update
    """  # noqa: S608  a constant
)
# As many as could all be of the batch itself, and one more.
_NEWEST = sql.SQL(
    """
    select asked.device, asked.sensor, newest."timestamp", newest.message_id
    from unnest(%(devices)s::text[], %(sensors)s::text[], %(since)s::timestamptz[], %(most)s::int[])
        as asked (device, sensor, since, most),
    lateral (
        select r."timestamp", r.message_id from {table} r
        where r.device_id = asked.device and r.sensor_type = asked.sensor and r."timestamp" >= asked.since
        order by r."timestamp" desc, r.message_id desc limit asked.most
    ) newest
    """
)
_OLDEST_IN_WINDOW = sql.SQL(
    """
    select asked.number, past."timestamp", past.value
    from unnest(
        %(devices)s::text[], %(sensors)s::text[], %(begins)s::timestamptz[], %(ends)s::timestamptz[]
    ) with ordinality as asked (device, sensor, begins, ends, number),
    lateral (
        select r."timestamp", r.value from {table} r
        where r.device_id = asked.device and r.sensor_type = asked.sensor
          and r."timestamp" >= asked.begins and r."timestamp" < asked.ends and r.value is not null
        order by r."timestamp", r.message_id limit 1
    ) past
    """
)
_INSERT = sql.SQL(
    """
    insert into alerts (
        id, threshold_id, sensor_id, device_id, sensor_type, place_id, threshold_type, severity,
        threshold_value, threshold_text, status, value, value_text, last_value, last_value_text, peak_value,
        violations, first_time, last_time, last_message_id, created_at, resolved_at, created_due,
        resolved_due
    ) values (
        %(id)s, %(threshold_id)s, %(sensor_id)s, %(device_id)s, %(sensor_type)s, %(place_id)s,
        %(threshold_type)s, %(severity)s, %(threshold_value)s, %(threshold_text)s, %(status)s, %(value)s,
        %(value_text)s, %(last_value)s, %(last_value_text)s, %(peak_value)s, %(violations)s, %(first_time)s,
        %(last_time)s, %(last_message_id)s, %(created_at)s, %(resolved_at)s,
        %(publish)s and %(status)s <> 'pending', %(publish)s and %(status)s = 'resolved'
    )
    on conflict (id) do nothing  -- its first reading was deleted once, and has come again
    """
)
_UPDATE = sql.SQL(
    """
    update alerts set
        status = %(status)s, value = %(value)s, value_text = %(value_text)s, last_value = %(last_value)s,
        last_value_text = %(last_value_text)s, peak_value = %(peak_value)s, violations = %(violations)s,
        last_time = %(last_time)s, last_message_id = %(last_message_id)s, created_at = %(created_at)s,
        resolved_at = %(resolved_at)s,
        created_due = created_due or (%(publish)s and status = 'pending' and %(status)s <> 'pending'),
        resolved_due = %(publish)s and %(status)s = 'resolved'
    where id = %(id)s
    """
)
_DELETE = sql.SQL("delete from alerts where id = any(%(ids)s)")
# How long it was silent, in seconds, is what was measured.
_RESOLVE_SILENCE = sql.SQL(
    """
    update alerts set
        status = 'resolved', resolved_at = now(), resolved_due = %(due)s, last_time = now(),
        last_value = extract(epoch from now() - first_time),
        peak_value = extract(epoch from now() - first_time)
    where id = any(%(ids)s)
    """
)


@dataclass(slots=True)
class Changes:
    """What one transaction writes: alerts that are new, moved, dropped, and silences that ended."""

    new: list[tuple[Rule, Alert]] = field(default_factory=list)
    moved: list[Alert] = field(default_factory=list)
    dropped: list[Alert] = field(default_factory=list)
    heard: list[Alert] = field(default_factory=list)


def silence_id(rule_id: str, series: Series, first: datetime) -> uuid.UUID:
    """The id of an alert that no reading began: a silence, since its last one."""
    return alert_id(rule_id, series, _micros(first), b"")


def lock(connection: BoundedConnection, *, exclusive: bool) -> None:
    """Set a savepoint to come back to, and take the advisory lock until COMMIT."""
    how = "" if exclusive else "_shared"
    take = f"savepoint sluice_judge; select pg_advisory_xact_lock{how}({LOCK_CLASS}, {LOCK_NUMBER})"
    connection.execute(sql.SQL(take))


def unlock(connection: BoundedConnection) -> None:
    """Back to the savepoint: everything since, the lock too, is given back."""
    connection.execute("rollback to savepoint sluice_judge")


def opened_since(connection: BoundedConnection, seen: int | None) -> tuple[set[Key], int]:
    """The alerts with a higher number that are open, or all that are; and the highest number now."""
    if seen is not None:
        found = connection.execute(_OPEN_SINCE, {"seen": seen}).fetchall()
        keys = {(rule, device, sensor) for _, still, rule, device, sensor in found if still}
        return keys, max((number for number, *_ in found), default=seen)
    newest = connection.execute("select coalesce(max(number), 0) from alerts").fetchone()
    found = connection.execute(_EVERYTHING_OPEN).fetchall()
    return {(rule, device, sensor) for rule, device, sensor in found}, newest[0] if newest else 0


def fetch_open(connection: BoundedConnection, keys: Sequence[Key]) -> dict[Key, Alert]:
    """The open ones of these, each locked until the end of the transaction."""
    if not keys:
        return {}
    rules, devices, sensors = (list(column) for column in zip(*keys, strict=True))
    asked = {"rules": rules, "devices": devices, "sensors": sensors}
    found = [_alert(row) for row in connection.execute(_FETCH_OPEN, asked).fetchall()]
    return {(alert.rule_id, *alert.series): alert for alert in found}


def newest_of_others(
    connection: BoundedConnection, table: str, runs: Iterable[Run]
) -> dict[Series, tuple[int, bytes]]:
    """For each series the time and message of its newest stored reading that is not among these, where it
    is not older than the first of these.
    """
    each = {run.series: run for run in runs}
    if not each:
        return {}
    asked = {
        "devices": [device for device, _ in each],
        "sensors": [sensor for _, sensor in each],
        "since": [_time(run.readings[0].timestamp_us) for run in each.values()],
        "most": [len(run.readings) + 1 for run in each.values()],
    }
    own = {
        series: {(one.timestamp_us, one.message_id) for one in run.readings} for series, run in each.items()
    }
    newest: dict[Series, tuple[int, bytes]] = {}
    for device, sensor, moment, message in connection.execute(
        _NEWEST.format(table=sql.Identifier(table)), asked
    ):
        key = _micros(moment), message.bytes
        if key not in own[device, sensor]:
            newest[device, sensor] = max(key, newest.get((device, sensor), key))
    return newest


def rates(connection: BoundedConnection, table: str, runs: Iterable[Run]) -> dict[Key, list[Sample]]:
    """For each rule about a rate: how fast each reading has come from the oldest one in its window.

    The past is asked of the table: other workers may have stored it. A reading that finds no earlier one
    in its window has no rate.
    """
    wanted = [
        (rule, run, one)
        for run in runs
        if run.watched.other
        for rule in run.watched.rules
        if rule.kind is Kind.RATE
        for one in run.readings
    ]
    if not wanted:
        return {}
    asked = {
        "devices": [run.series[0] for _, run, _ in wanted],
        "sensors": [run.series[1] for _, run, _ in wanted],
        "begins": [
            _time(one.timestamp_us - int((rule.window_sec or 0) * 1_000_000)) for rule, _, one in wanted
        ],
        "ends": [_time(one.timestamp_us) for _, _, one in wanted],
    }
    query = _OLDEST_IN_WINDOW.format(table=sql.Identifier(table))
    past = {number - 1: (_micros(at), value) for number, at, value in connection.execute(query, asked)}
    found: dict[Key, list[Sample]] = {}
    for number, (rule, run, one) in enumerate(wanted):
        rate = None
        if number in past and one.value is not None:
            before_us, before = past[number]
            rate = (one.value - before) * 1_000_000 / (one.timestamp_us - before_us)
        sample = Sample(one.timestamp_us, one.message_id, rate)
        found.setdefault((rule.id, *run.series), []).append(sample)
    return found


def write(
    connection: BoundedConnection, changes: Changes, *, publish: bool, owners: dict[str, str]
) -> None:
    """Put the changes into the table. What ends an alert comes before what opens the next one."""
    for statement, alerts in ((_DELETE, changes.dropped), (_RESOLVE_SILENCE, changes.heard)):
        if alerts:
            connection.execute(statement, {"ids": [alert.id for alert in alerts], "due": publish})
    with connection.cursor() as cursor:
        if changes.moved:
            cursor.executemany(_UPDATE, [_row(alert, publish) for alert in changes.moved])
        if changes.new:
            rows = [
                _row(alert, publish) | _origin(rule, alert, owners.get(alert.series[0], ""))
                for rule, alert in changes.new
            ]
            cursor.executemany(_INSERT, rows)
        if changes.moved or changes.new:
            # executemany is a pipeline, and after one the server's time-out for idle transactions did not
            # run: a worker that was stopped right here kept the lock from all others for good.
            cursor.execute("select 1")


def _row(alert: Alert, publish: bool) -> dict[str, Any]:
    return {
        "id": alert.id,
        "status": alert.status.value,
        "value": alert.value,
        "value_text": alert.text,
        "last_value": alert.last_value,
        "last_value_text": alert.last_text,
        "peak_value": alert.peak,
        "violations": alert.violations,
        "first_time": _time(alert.first_us),
        "last_time": _time(alert.last_us),
        "last_message_id": alert.last_message.hex() or None,
        "created_at": None if alert.created_us is None else _time(alert.created_us),
        "resolved_at": None if alert.resolved_us is None else _time(alert.resolved_us),
        "publish": publish,
    }


def _origin(rule: Rule, alert: Alert, owner: str) -> dict[str, Any]:
    return {
        "threshold_id": rule.id,
        "sensor_id": rule.sensor_id,
        "device_id": alert.series[0],
        "sensor_type": alert.series[1],
        "place_id": owner,
        "threshold_type": rule.kind.value,
        "severity": rule.severity.value,
        "threshold_value": rule.value,
        "threshold_text": rule.text,
    }


def _alert(row: tuple[Any, ...]) -> Alert:
    (id_, rule, device, sensor, status, value, text, last, last_text, peak, violations, *times) = row
    first, last_time, message, created = times
    return Alert(
        id=id_,
        rule_id=rule,
        series=(device, sensor),
        status=Status(status),
        first_us=_micros(first),
        last_us=_micros(last_time),
        last_message=message.bytes if message else b"",
        value=value,
        text=text,
        last_value=last,
        last_text=last_text,
        peak=peak,
        violations=violations,
        created_us=_micros(created) if created else None,
    )


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
