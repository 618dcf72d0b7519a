"""The table `alerts` as an outbox: what is due, and the mark of what the broker has."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from psycopg import Connection

from mqtt.messages import DueAlert, Event

Item = tuple[uuid.UUID, Event]

_DUE = """
    select id, created_due, resolved_due, sensor_id, threshold_id, device_id, place_id, sensor_type,
           value, value_text, threshold_value, threshold_text, threshold_type, severity,
           created_at, resolved_at
    from alerts
    where (created_due or resolved_due) and id <> all(%(without)s)
    order by number
    limit %(most)s
"""
# Rows that a batch holds at the moment are left out and answered: waiting for them could end in a deadlock
# that costs the batch its transaction.
_MARK = """
    with sent as (
        select * from unnest(%(ids)s::uuid[], %(created)s::boolean[], %(resolved)s::boolean[])
            as sent (id, created, resolved)
    ), free as (
        select id from alerts where id = any(%(ids)s) for update skip locked
    ), marked as (
        update alerts
        set created_due = created_due and not created,
            created_sent_at = case when created then now() else created_sent_at end,
            resolved_due = resolved_due and not resolved,
            resolved_sent_at = case when resolved then now() else resolved_sent_at end
        from sent join free using (id)
        where alerts.id = sent.id
        returning alerts.id
    )
    select id from alerts where id = any(%(ids)s) and id not in (select id from marked)
"""


def due(connection: Connection, without: Iterable[uuid.UUID], most: int) -> list[DueAlert]:
    """Alerts with something to be published, at most `most`, oldest first. Raises psycopg errors."""
    rows = connection.execute(_DUE, {"without": list(without), "most": most}).fetchall()
    return [DueAlert(*row) for row in rows]


def mark(connection: Connection, items: AbstractSet[Item]) -> set[uuid.UUID]:
    """Note these events as published, in the caller's transaction.

    Answers the alerts that a batch is changing right now: to be marked later. One that is gone, because
    its device was deleted, needs no mark. Raises psycopg errors.
    """
    ids = list({alert for alert, _ in items})
    parameters = {
        "ids": ids,
        "created": [(alert, Event.CREATED) in items for alert in ids],
        "resolved": [(alert, Event.RESOLVED) in items for alert in ids],
    }
    return {row[0] for row in connection.execute(_MARK, parameters).fetchall()}
