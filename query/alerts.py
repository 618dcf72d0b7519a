"""Alerts as users see them, and resolving one by hand. A pending one is no alert yet, and is not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from thresholds import Kind, Severity, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertFilter:
    """Which alerts; None: all. `start` and `end`: created in [start, end)."""

    place_id: str | None = None
    status: Status | None = None
    severity: Severity | None = None
    sensor_id: str | None = None
    device_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertRow:
    """One alert. `key` is the series within the device; docs/alerts.md describes the columns.

    `value` and `threshold_value` are None where rule and reading are of states, which `value_text` and
    `threshold_text` hold.
    """

    id: UUID
    sensor_id: str | None
    threshold_id: str
    device_id: str
    place_id: str
    key: str
    value: float | None
    value_text: str | None
    threshold_value: float | None
    threshold_text: str | None
    threshold_type: Kind
    severity: Severity
    status: Status
    created_at: datetime
    resolved_at: datetime | None


_COLUMNS = sql.SQL(
    """
    id, sensor_id, threshold_id, device_id, place_id, sensor_type, value, value_text, threshold_value,
    threshold_text, threshold_type, severity, status, created_at, resolved_at
    """
)
_PAGE = sql.SQL(
    """
    select {columns} from alerts where {chosen}
    order by created_at desc, number desc limit %(most)s offset %(skipped)s
    """
)
_COUNT = sql.SQL("select count(*) from alerts where {chosen}")
_SHOWN = sql.SQL("status <> 'pending'")
_CONDITIONS = {
    "place_id": sql.SQL("place_id = %(place_id)s"),
    "status": sql.SQL("status = %(status)s"),
    "severity": sql.SQL("severity = %(severity)s"),
    "sensor_id": sql.SQL("sensor_id = %(sensor_id)s"),
    "device_id": sql.SQL("device_id = %(device_id)s"),
    "start": sql.SQL("created_at >= %(start)s"),
    "end": sql.SQL("created_at < %(end)s"),
}
# The first condition is the one of the index `alerts_open`, which holds little else.
_COUNTS = """
    select place_id, count(*) from alerts
    where status <> 'resolved' and status = 'active'
      and (%(places)s::text[] = '{}' or place_id = any(%(places)s::text[]))
    group by place_id
"""
_LOCK = sql.SQL("select {columns} from alerts where id = %(id)s and status <> 'pending' for update").format(
    columns=_COLUMNS
)
# A silence is told as over by its last time, or the sweep would open it again at once: nothing has come
# since. How long it was silent, in seconds, is what was measured (as in alert_sql.RESOLVE_SILENCE).
_RESOLVE = sql.SQL(
    """
    update alerts set
        status = 'resolved', resolved_at = greatest(%(now)s, created_at), resolved_due = %(publish)s,
        last_time = case when silent then now() else last_time end,
        last_value = case when silent then extract(epoch from now() - first_time) else last_value end,
        peak_value = case when silent then extract(epoch from now() - first_time) else peak_value end
    from (select %(silent)s::bool as silent) as kind
    where id = %(id)s
    returning {columns}
    """
).format(columns=_COLUMNS)


def alerts(
    connection: psycopg.Connection[Any], which: AlertFilter, page: int, per_page: int
) -> tuple[list[AlertRow], int]:
    """One page, counted from 1, of the alerts that were chosen, and how many there are on all pages.

    The newest by `created_at` come first, those of the same time in the order of recording, the last one
    first. A page beyond the last is empty. The count is of a moment earlier than the page, unless the
    transaction keeps one snapshot.
    """
    values = {name: getattr(which, name) for name in _CONDITIONS}
    conditions = [condition for name, condition in _CONDITIONS.items() if values[name] is not None]
    chosen = sql.SQL(" and ").join([_SHOWN, *conditions])
    values |= {"most": per_page, "skipped": (page - 1) * per_page}
    total = connection.execute(_COUNT.format(chosen=chosen), values).fetchone()
    found = connection.execute(_PAGE.format(columns=_COLUMNS, chosen=chosen), values)
    return [_alert(row) for row in found], total[0] if total else 0


def alert_counts(
    connection: psycopg.Connection[Any], place_ids: Sequence[str]
) -> tuple[dict[str, int], int]:
    """How many alerts are active in each of these places, and in all of them together.

    No places: everywhere. Places without an active alert are left out.
    """
    found = dict(connection.execute(_COUNTS, {"places": list(place_ids)}).fetchall())
    return found, sum(found.values())


def resolve_alert(
    connection: psycopg.Connection[Any], alert_id: UUID, now: datetime, *, publish: bool = True
) -> AlertRow | None:
    """End an active alert by hand: the alert as it is then, or None where there is no such alert.

    One that is resolved already is answered as it is. `publish`: as for the workers, the end is marked as
    due for publishing. Runs in the transaction that is open, else in one of its own, which it commits.
    Raises `LockNotAvailable` where a worker has the alert for longer than the caller's lock_timeout.

    Right against a worker that touches the same alert at the same moment: both go by the lock of its row.
    Whoever comes second waits for the first one's COMMIT and looks again. We then find the alert as the
    worker has left it, and end it only if it is still active. The worker finds no open alert, as when
    another worker had ended it; if its readings violate the rule, it queues for the advisory lock and opens
    a new one. The advisory lock itself is not needed: it orders those who open alerts, and those who
    conclude from their absence that there is nothing to end. One row is locked and nothing else, so that
    nobody deadlocks.
    """
    with connection.transaction():
        row = connection.execute(_LOCK, {"id": alert_id}).fetchone()
        if row is None:
            return None
        alert = _alert(row)
        if alert.status is Status.RESOLVED:
            return alert
        silent = alert.threshold_type is Kind.SILENCE
        asked = {"id": alert_id, "now": now, "publish": publish, "silent": silent}
        row = connection.execute(_RESOLVE, asked).fetchone()
    return None if row is None else _alert(row)


def _alert(row: tuple[Any, ...]) -> AlertRow:
    (id_, sensor_id, threshold_id, device, place, sensor, value, text, limit, limit_text, *rest) = row
    kind, severity, status, created, resolved = rest
    return AlertRow(
        id=id_,
        sensor_id=sensor_id,
        threshold_id=threshold_id,
        device_id=device,
        place_id=place,
        key=sensor,
        value=value,
        value_text=text,
        threshold_value=limit,
        threshold_text=limit_text,
        threshold_type=Kind(kind),
        severity=Severity(severity),
        status=Status(status),
        created_at=created.astimezone(UTC),
        resolved_at=None if resolved is None else resolved.astimezone(UTC),
    )
