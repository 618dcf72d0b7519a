"""Deleting what there is to be read of a device: its alerts, its readings, what was summed up of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from query.readings import TABLE
from removal import Removal

_ALERTS_LEFT = "select exists (select from alerts where device_id = %(device)s)"


def alerts_left(connection: psycopg.Connection[Any], device_id: str) -> bool:
    """Whether the device has alerts: after a step that found nothing to delete, others have locked them."""
    row = connection.execute(_ALERTS_LEFT, {"device": device_id}).fetchone()
    return bool(row and row[0])


def delete_readings(
    connection: psycopg.Connection[Any], device_ids: Sequence[str], limit: int, *, table: str = TABLE
) -> int:
    """One step of deleting all alerts, then all readings, of these devices: how many rows it has deleted.

    About `limit` rows, the oldest readings first, in the transaction that is open, else in one of its own,
    which it commits. To be repeated, each step in a transaction of its own, until it answers 0: nothing is
    left then but what others have locked. So no step holds a lock for long, nor waits for one of a worker.
    Rules, and what the registry knows of the devices, stay. Devices that have nothing left are looked at
    again in each step: whoever deletes many does so one after the other.
    """
    with connection.transaction():
        step = Removal(connection, table, limit)
        for device in dict.fromkeys(device_ids):
            step.alerts(device)
            if not step.over:
                step.readings(device)
            if step.over:
                break
    return step.removed


def delete_rollups(
    connection: psycopg.Connection[Any], device_id: str, limit: int, *, table: str = TABLE
) -> int:
    """One step of deleting what was summed up of a device: how many rows. To be repeated, as
    `delete_readings`, and after it: of readings that are there, they would be summed up again.
    """
    with connection.transaction():
        step = Removal(connection, table, limit)
        step.rollups(device_id)
    return step.removed
