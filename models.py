"""The tables, as SQLAlchemy metadata: what Alembic compares with the database, and nothing else.

Only migrations import it, as loading SQLAlchemy takes a third of the time of a start.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZMULTIRANGE, UUID

from tables import BESIDE, KEY, NAME_LENGTH, REVISIONS, ROLLUPS

__all__ = ["BESIDE", "KEY", "NAME_LENGTH", "REVISIONS", "ROLLUPS", "metadata_for", "ours"]


def readings(metadata: MetaData, table_name: str) -> Table:
    """The readings: one row a measured value, identified by series, time and carrying message.

    The primary key is the only index: one B-tree serves the queries and makes writing idempotent. It
    holds the partition column, as hypertables and partitioned tables both ask. There is no foreign key
    and no trigger: either would make COPY slow or deadlock (docs/internals.md).
    """
    return Table(
        table_name,
        metadata,
        Column("timestamp", DateTime(timezone=True), nullable=False),
        Column("device_id", String(NAME_LENGTH, collation="C"), nullable=False),
        Column("sensor_type", String(NAME_LENGTH, collation="C"), nullable=False),
        Column("value", Double()),
        Column("value_text", Text()),
        Column("metadata", JSONB()),
        Column("message_id", UUID(), nullable=False),
        Column("created_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
        PrimaryKeyConstraint(*KEY, name=f"{table_name}_pkey"),
        CheckConstraint("num_nonnulls(value, value_text) = 1", name=f"{table_name}_one_value"),
        postgresql_partition_by="RANGE (timestamp)",
    )


def _name(column: str) -> Column[str]:
    return Column(column, String(NAME_LENGTH, collation="C"), nullable=False)


def _moment(column: str, *, now: bool = False) -> Column[datetime]:
    """A point in time; `now`: never null, by default the present."""
    return Column(
        column, DateTime(timezone=True), server_default=func.now() if now else None, nullable=not now
    )


def _moment_at(column: str) -> Column[datetime]:
    return Column(column, DateTime(timezone=True), nullable=False)


def _flag(column: str, *, default: bool) -> Column[bool]:
    return Column(column, Boolean(), server_default=text(str(default).lower()), nullable=False)


def registry(metadata: MetaData) -> None:
    """Series and devices as the workers know them, and who has which duty."""
    Table(
        "series",
        metadata,
        _name("device_id"),
        _name("sensor_type"),
        Column("owner", Text(), server_default="", nullable=False),
        Column("unit", Text()),
        _flag("active", default=True),
        _moment("first_seen", now=True),
        _moment("last_seen"),
        _moment("last_time"),
        Column("last_value", Double()),
        Column("last_value_text", Text()),
        PrimaryKeyConstraint("device_id", "sensor_type", name="series_pkey"),
    )
    Table(
        "devices",
        metadata,
        _name("device_id"),
        Column("owner", Text(), server_default="", nullable=False),
        Column("status", Text()),
        _moment("status_time"),
        _moment("first_seen", now=True),
        _moment("last_seen"),
        PrimaryKeyConstraint("device_id", name="devices_pkey"),
    )
    Table(
        "duties",
        metadata,
        Column("name", Text(), nullable=False),
        Column("holder", Text(), nullable=False),
        Column("held_until", DateTime(timezone=True), nullable=False),
        _moment("done_until"),
        Column("gaps", TSTZMULTIRANGE(), server_default="{}", nullable=False),
        PrimaryKeyConstraint("name", name="duties_pkey"),
    )


def thresholds(metadata: MetaData) -> None:
    """The rules. `version` is set by a trigger, anew at each change. Checks: see the migration."""
    Table(
        "thresholds",
        metadata,
        Column("id", Text(), nullable=False),
        Column("device_pattern", Text(collation="C"), nullable=False),
        Column("sensor_pattern", Text(collation="C"), nullable=False),
        Column("kind", Text(), nullable=False),
        Column("severity", Text(), server_default="warning", nullable=False),
        Column("value", Double()),
        Column("value_text", Text()),
        Column("window_sec", Double()),
        Column("hysteresis", Double(), server_default=text("0"), nullable=False),
        Column("debounce_count", Integer(), server_default=text("1"), nullable=False),
        Column("debounce_sec", Double(), server_default=text("0"), nullable=False),
        _flag("enabled", default=True),
        Column("sensor_id", Text()),
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        Column("version", BigInteger(), nullable=False),
        PrimaryKeyConstraint("id", name="thresholds_pkey"),
        Index("thresholds_silence", "value", postgresql_where=text("kind = 'silence' and enabled")),
    )


def alerts(metadata: MetaData) -> None:
    """The alerts, and by `created_due` and `resolved_due` the outbox of what is still to be published."""
    Table(
        "alerts",
        metadata,
        Column("id", UUID(), nullable=False),
        Column("number", BigInteger(), Identity(always=False), nullable=False),
        Column("threshold_id", Text(), nullable=False),
        Column("sensor_id", Text()),
        _name("device_id"),
        _name("sensor_type"),
        Column("place_id", Text(), server_default="", nullable=False),
        Column("threshold_type", Text(), nullable=False),
        Column("severity", Text(), nullable=False),
        Column("threshold_value", Double()),
        Column("threshold_text", Text()),
        Column("status", Text(), nullable=False),
        Column("value", Double()),
        Column("value_text", Text()),
        Column("last_value", Double()),
        Column("last_value_text", Text()),
        Column("peak_value", Double()),
        Column("violations", Integer(), server_default=text("1"), nullable=False),
        Column("first_time", DateTime(timezone=True), nullable=False),
        Column("last_time", DateTime(timezone=True), nullable=False),
        Column("last_message_id", UUID()),
        _moment("created_at"),
        _moment("resolved_at"),
        _flag("created_due", default=False),
        _flag("resolved_due", default=False),
        _moment("created_sent_at"),
        _moment("resolved_sent_at"),
        _moment("recorded_at", now=True),
        PrimaryKeyConstraint("id", name="alerts_pkey"),
        Index("alerts_number", "number", unique=True),
        Index(
            "alerts_open",
            "threshold_id",
            "device_id",
            "sensor_type",
            unique=True,
            postgresql_where=text("status <> 'resolved'"),
        ),
        Index("alerts_due", "number", postgresql_where=text("created_due or resolved_due")),
        Index("alerts_place", "place_id", "created_at"),
        Index("alerts_series", "device_id", "sensor_type", "first_time"),
    )


def events(metadata: MetaData) -> None:
    """What device events leave behind: the newest one applied to each subject, and deletions to be done."""
    Table(
        "applied_events",
        metadata,
        Column("subject", Text(), nullable=False),
        Column("ms", Numeric(20), nullable=False),
        Column("rank", SmallInteger(), nullable=False),
        Column("seq", Numeric(20), nullable=False),
        PrimaryKeyConstraint("subject", name="applied_events_pkey"),
    )
    Table(
        "device_deletions",
        metadata,
        _name("device_id"),
        _moment("requested_at", now=True),
        PrimaryKeyConstraint("device_id", name="device_deletions_pkey"),
    )


def rollups(metadata: MetaData) -> None:
    """Readings summed up by minute, hour and day, how far that has come, and how long all is kept.

    `sum` is null where the numbers are too large to add up. Of `rollup_dirty` any row may be there twice:
    it has no unique key, so that workers that note the same hour never wait for each other.
    """
    for name in ROLLUPS:
        Table(
            name,
            metadata,
            _moment_at("bucket"),
            _name("device_id"),
            _name("sensor_type"),
            Column("count", BigInteger(), nullable=False),
            Column("sum", Double()),
            *(Column(column, Double(), nullable=False) for column in ("min", "max", "first", "last")),
            PrimaryKeyConstraint("device_id", "sensor_type", "bucket", name=f"{name}_pkey"),
            postgresql_partition_by="RANGE (bucket)",
        )
    Table(
        "rollup_state",
        metadata,
        Column("keeper", Text(), nullable=False),
        _moment("late_before"),
        _moment("rolled_before"),
        _moment("target"),
        Column("after_device", Text(collation="C"), server_default="", nullable=False),
        Column("after_sensor", Text(collation="C"), server_default="", nullable=False),
        PrimaryKeyConstraint("keeper", name="rollup_state_pkey"),
    )
    Table(
        "rollup_dirty",
        metadata,
        _name("device_id"),
        _name("sensor_type"),
        _moment_at("hour"),
        Index("rollup_dirty_series", "device_id", "sensor_type", "hour"),
    )
    Table(
        "retention",
        metadata,
        Column("level", Text(), nullable=False),
        Column("days", Integer()),
        _moment("complete_from"),
        PrimaryKeyConstraint("level", name="retention_pkey"),
    )


def metadata_for(table_name: str) -> MetaData:
    """All tables of this version, the readings under `table_name`."""
    metadata = MetaData()
    readings(metadata, table_name)
    registry(metadata)
    thresholds(metadata)
    alerts(metadata)
    events(metadata)
    rollups(metadata)
    return metadata


def ours(metadata: MetaData, views: Collection[str]) -> set[str]:
    """The tables that a database with these views should have: rollups may be views of TimescaleDB."""
    return set(metadata.tables) - (set(ROLLUPS) & set(views))
