"""Everything the query service asks of the database, in one place to import from.

Each function takes a psycopg connection in which rows are tuples, and runs in the transaction that it finds
there; without autocommit it leaves one open. Nothing here limits the time: `database.begin` does. Raises
psycopg errors as they come, `DataError` also for a name with a NUL. Times are aware, and answered in UTC.
`table`: the readings.
"""

from __future__ import annotations

from query.alerts import AlertFilter, AlertRow, alert_counts, alerts, resolve_alert
from query.buckets import Bucket, BucketKind, bucket_count, buckets, first_bucket, kind_of
from query.deletion import alerts_left, delete_readings, delete_rollups
from query.readings import Latest, RawPoint, latest, raw, sensors, since
from query.rolled import Summary, history

__all__ = [
    "AlertFilter",
    "AlertRow",
    "Bucket",
    "BucketKind",
    "Latest",
    "RawPoint",
    "Summary",
    "alert_counts",
    "alerts",
    "alerts_left",
    "bucket_count",
    "buckets",
    "delete_readings",
    "delete_rollups",
    "first_bucket",
    "history",
    "kind_of",
    "latest",
    "raw",
    "resolve_alert",
    "sensors",
    "since",
]
