"""Deleting the readings of devices, in steps that are each short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg


def delete_readings(
    connection: psycopg.Connection[Any],
    device_ids: Sequence[str],
    limit: int,
    *,
    table: str = "sensor_readings",
) -> int:
    """Delete alerts, then readings of these devices, about `limit` rows; how many were deleted.

    One step: to be repeated, each in a transaction of its own, until it answers 0.
    """
    raise NotImplementedError
