"""How Alembic reaches the database: with the settings of config.py, one upgrade at a time.

Migrations find the settings in `context.config.attributes["settings"]`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from sqlalchemy import Connection, create_engine, inspect, pool, text

import config
import database
import models
from alembic import context

ADVISORY_LOCK = 0x51C1CE00

settings = context.config.attributes.get("settings") or config.load()
context.config.attributes["settings"] = settings
metadata = models.metadata_for(settings.table_name)


def options(views: Collection[str] = ()) -> dict[str, Any]:
    """Other programs' tables are left alone, and the partitions and chunks of our own."""
    ours = models.ours(metadata, views)

    def only_ours(_object: object, name: str | None, type_: str, _reflected: bool, _other: object) -> bool:
        return type_ != "table" or name in ours

    return {
        "target_metadata": metadata,
        "compare_type": True,
        "compare_server_default": True,
        "include_object": only_ours,
        "transaction_per_migration": True,
    }


def lock(connection: Connection) -> None:
    """Of two upgrades at the same time one waits: without this, one in three concurrent ones failed.

    A session lock, because each migration has a transaction of its own. The session ends with the run.
    """
    taken = connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    if not taken.scalar():
        print("Waiting for another migration to finish …", file=sys.stderr)
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    connection.commit()


def warn(notice: Diagnostic) -> None:
    """Pass on what a migration raises itself; TimescaleDB's advice on column types is left out."""
    if notice.source_function == "exec_stmt_raise":
        print(f"{notice.severity}: {notice.message_primary}", file=sys.stderr)


def online() -> None:
    url, direct_url = settings.database_url.get_secret_value(), settings.direct_url()
    # not by an address of SQLAlchemy's, which knows one host only
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: database.connect_directly(url, direct_url),
        poolclass=pool.NullPool,
    )
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        if isinstance(raw, psycopg.Connection):
            raw.add_notice_handler(warn)
        lock(connection)
        views = inspect(connection).get_view_names()
        connection.commit()  # Alembic begins its own
        context.configure(connection=connection, **options(views))
        with context.begin_transaction():
            context.run_migrations()


def offline() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, **options())
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    offline()
else:
    online()
