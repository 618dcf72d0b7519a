"""Names of tables, columns and migrations, for those who speak SQL and need no SQLAlchemy.

`REVISIONS` repeats the names of the migrations in order, newest last, so that a worker can tell a
database that is behind from one that is ahead without loading Alembic. A test holds the two together.
"""

from __future__ import annotations

REVISIONS = ("0001_readings", "0002_registry", "0003_thresholds", "0004_rollups")
KEY = ("device_id", "sensor_type", "timestamp", "message_id")
NAME_LENGTH = 100
# Tables beside the readings. Their names are fixed: SQL of users and of other programs relies on them.
BESIDE = (
    "series",
    "devices",
    "duties",
    "thresholds",
    "alerts",
    "applied_events",
    "device_deletions",
    "rollup_state",
    "rollup_dirty",
    "retention",
)
# Tables that workers keep, or continuous aggregates that TimescaleDB keeps; finest first.
ROLLUPS = ("readings_minute", "readings_hour", "readings_day")
