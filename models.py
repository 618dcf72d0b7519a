"""The tables, as SQLAlchemy metadata: what Alembic compares with the database, and nothing else.

`REVISIONS` repeats the names of the migrations in order, newest last, so that a worker can tell a
database that is behind from one that is ahead without loading Alembic. A test holds the two together.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Double,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

REVISIONS = ("0001_readings",)
KEY = ("device_id", "sensor_type", "timestamp", "message_id")
NAME_LENGTH = 100


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


def metadata_for(table_name: str) -> MetaData:
    """All tables of this version, the readings under `table_name`."""
    metadata = MetaData()
    readings(metadata, table_name)
    return metadata
