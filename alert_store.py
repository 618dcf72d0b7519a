"""The table of alerts, and what deciding asks of the readings: rows as values.

Everything here runs in the caller's transaction and raises psycopg errors as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

import alert_sql as statements
from database import BoundedConnection
from rules import Run
from thresholds import Alert, Kind, Rule, Sample, Series, Status

Key = tuple[str, str, str]  # rule, device, sensor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Changes:
    """What one transaction writes: alerts that are new, moved, dropped, and silences that ended."""

    new: list[tuple[Rule, Alert]] = field(default_factory=list)
    moved: list[Alert] = field(default_factory=list)
    dropped: list[Alert] = field(default_factory=list)
    heard: list[Alert] = field(default_factory=list)


def lock(connection: BoundedConnection, *, exclusive: bool) -> None:
    """Set a savepoint to come back to, and take the advisory lock until COMMIT."""
    how = "" if exclusive else "_shared"
    key = f"{statements.LOCK_CLASS}, {statements.LOCK_NUMBER}"
    take = f"savepoint sluice_judge; select pg_advisory_xact_lock{how}({key})"
    connection.execute(sql.SQL(take))


def unlock(connection: BoundedConnection) -> None:
    """Back to the savepoint: everything since, the lock too, is given back."""
    connection.execute("rollback to savepoint sluice_judge")


def opened_since(connection: BoundedConnection, seen: int | None) -> tuple[set[Key], int]:
    """The alerts with a higher number that are open, or all that are; and the highest number now."""
    if seen is not None:
        found = connection.execute(statements.OPEN_SINCE, {"seen": seen}).fetchall()
        keys = {(rule, device, sensor) for _, still, rule, device, sensor in found if still}
        return keys, max((number for number, *_ in found), default=seen)
    newest = connection.execute("select coalesce(max(number), 0) from alerts").fetchone()
    found = connection.execute(statements.EVERYTHING_OPEN).fetchall()
    return {(rule, device, sensor) for rule, device, sensor in found}, newest[0] if newest else 0


def fetch_open(connection: BoundedConnection, keys: Sequence[Key]) -> dict[Key, Alert]:
    """The open ones of these, each locked until the end of the transaction."""
    if not keys:
        return {}
    rules, devices, sensors = (list(column) for column in zip(*keys, strict=True))
    asked = {"rules": rules, "devices": devices, "sensors": sensors}
    found = [_alert(row) for row in connection.execute(statements.FETCH_OPEN, asked).fetchall()]
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
    asked: dict[str, list[Any]] = {
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
        statements.NEWEST.format(table=sql.Identifier(table), earliest=_literal(min(asked["since"]))), asked
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
    asked: dict[str, list[Any]] = {
        "devices": [run.series[0] for _, run, _ in wanted],
        "sensors": [run.series[1] for _, run, _ in wanted],
        "begins": [
            _time(one.timestamp_us - int((rule.window_sec or 0) * 1_000_000)) for rule, _, one in wanted
        ],
        "ends": [_time(one.timestamp_us) for _, _, one in wanted],
    }
    query = statements.OLDEST_IN_WINDOW.format(
        table=sql.Identifier(table),
        earliest=_literal(min(asked["begins"])),
        latest=_literal(max(asked["ends"])),
    )
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
    for statement, alerts in (
        (statements.DELETE, changes.dropped),
        (statements.RESOLVE_SILENCE, changes.heard),
    ):
        if alerts:
            connection.execute(statement, {"ids": [alert.id for alert in alerts], "due": publish})
    if changes.moved:
        connection.execute(statements.UPDATE, _columns([_row(alert) for alert in changes.moved], publish))
    if changes.new:
        rows = [
            _row(alert) | _origin(rule, alert, owners.get(alert.series[0], ""))
            for rule, alert in changes.new
        ]
        connection.execute(statements.INSERT, _columns(rows, publish))


def _columns(rows: Sequence[dict[str, Any]], publish: bool) -> dict[str, Any]:
    columns = {name: [row.get(name) for row in rows] for name in statements.COLUMNS}
    return columns | {"publish": publish}


def _row(alert: Alert) -> dict[str, Any]:
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


def _literal(moment: datetime) -> sql.Literal:
    return sql.Literal(moment.isoformat())


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
