"""Everything the query service and the dashboard ask of the database, in one place to import from.

Each function takes a psycopg connection in which rows are tuples, and runs in the transaction that it finds
there; without autocommit it leaves one open. Nothing here limits the time: `database.begin` does. Raises
psycopg errors as they come, `DataError` also for a name with a NUL. Times are aware, and answered in UTC.
`table`: the readings.
"""

from __future__ import annotations

from query.alerts import AlertFilter, AlertRow, alert_counts, alerts, resolve_alert
from query.arrivals import EVER, NEVER, Arrival, Known, Wanted, arrivals, known, stored_now
from query.buckets import Bucket, BucketKind, bucket_count, buckets, first_bucket, kind_of
from query.deletion import alerts_left, delete_readings, delete_rollups
from query.history import Row, last_rows, rows_since
from query.overview import (
    DevicePage,
    DeviceRow,
    Registered,
    SeriesPage,
    device_page,
    series_named,
    series_page,
)
from query.readings import Latest, RawPoint, latest, raw, sensors
from query.rolled import Summary, history

__all__ = [
    "EVER",
    "NEVER",
    "AlertFilter",
    "AlertRow",
    "Arrival",
    "Bucket",
    "BucketKind",
    "DevicePage",
    "DeviceRow",
    "Known",
    "Latest",
    "RawPoint",
    "Registered",
    "Row",
    "SeriesPage",
    "Summary",
    "Wanted",
    "alert_counts",
    "alerts",
    "alerts_left",
    "arrivals",
    "bucket_count",
    "buckets",
    "delete_readings",
    "delete_rollups",
    "device_page",
    "first_bucket",
    "history",
    "kind_of",
    "known",
    "last_rows",
    "latest",
    "raw",
    "resolve_alert",
    "rows_since",
    "sensors",
    "series_named",
    "series_page",
    "stored_now",
]
