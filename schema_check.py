"""What the database holds against what this version needs. A worker asks before it reads an entry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from database import BoundedConnection
from tables import REVISIONS

OLDEST_POSTGRESQL = 140_000
OLDEST_TIMESCALE = (2, 18)


class SchemaMismatch(Exception):
    """The database cannot be written to as it is. The message: found, needed, and the command to run."""


class TableKind(StrEnum):
    MISSING = "missing"
    HYPERTABLE = "hypertable"
    PARTITIONED = "partitioned table"
    PLAIN = "table without partitions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What is there. `revisions` is empty where no migration ever ran."""

    server_version: int
    timescale_version: str | None
    timescale_license: str | None
    revisions: tuple[str, ...]
    kind: TableKind


_SERVER = """
    select current_setting('server_version_num')::int,
           (select extversion from pg_extension where extname = 'timescaledb'),
           current_setting('timescaledb.license', true),
           to_regclass('alembic_version') is not null
"""
_KIND = "select relkind::text from pg_class where oid = to_regclass(quote_ident(%s))"
_HYPERTABLE = """
    select 1 from timescaledb_information.hypertables
    where format('%%I.%%I', hypertable_schema, hypertable_name)::regclass = to_regclass(quote_ident(%s))
"""


def look(connection: BoundedConnection, table: str) -> Found:
    """Ask the catalogs. Raises psycopg errors; leaves no transaction open."""
    server = connection.execute(_SERVER).fetchone()
    if server is None:
        raise SchemaMismatch("the database answered nothing when asked for its version")
    version, timescale, license_name, versioned = server
    revisions: tuple[str, ...] = ()
    if versioned:
        rows = connection.execute("select version_num::text from alembic_version").fetchall()
        revisions = tuple(row[0] for row in rows)
    relation = connection.execute(_KIND, (table,)).fetchone()
    kind = TableKind.MISSING
    if relation:
        kind = TableKind.PARTITIONED if relation[0] == "p" else TableKind.PLAIN
        if timescale and connection.execute(_HYPERTABLE, (table,)).fetchone():
            kind = TableKind.HYPERTABLE
    connection.rollback()
    return Found(
        server_version=version,
        timescale_version=timescale,
        timescale_license=license_name if timescale else None,
        revisions=revisions,
        kind=kind,
    )


def check(found: Found, table: str, *, enable_timescale: bool) -> None:
    """Refuse what this version cannot write to. Raises `SchemaMismatch` with one complete sentence."""
    needed = REVISIONS[-1]
    if found.server_version < OLDEST_POSTGRESQL:
        raise SchemaMismatch(
            f"the server is PostgreSQL {found.server_version // 10_000}; 14 is the oldest supported"
        )
    if not found.revisions:
        raise SchemaMismatch(
            f"the database has no schema: found no revision, need {needed}; run ./migrate.sh upgrade"
        )
    unknown = [revision for revision in found.revisions if revision not in REVISIONS]
    if unknown:
        raise SchemaMismatch(
            f"the database is ahead of this version: found revision {', '.join(unknown)}, need {needed}; "
            "run the version of Sluice that made it, or ./migrate.sh downgrade with that version"
        )
    if needed not in found.revisions:
        raise SchemaMismatch(
            f"the database is behind: found revision {', '.join(found.revisions)}, need {needed}; "
            "run ./migrate.sh upgrade"
        )
    if found.kind is TableKind.MISSING:
        raise SchemaMismatch(
            f"the database is at revision {needed} but has no table {table!r}; set TABLE_NAME to the name "
            "it was migrated with"
        )
    _check_kind(found, table, enable_timescale=enable_timescale)


def _check_kind(found: Found, table: str, *, enable_timescale: bool) -> None:
    if enable_timescale and found.kind is not TableKind.HYPERTABLE:
        raise SchemaMismatch(
            f"ENABLE_TIMESCALE is true but {table!r} is a {found.kind}; set ENABLE_TIMESCALE=false, or "
            "migrate into a TimescaleDB database (SCHEMA_MANAGEMENT.md, changing the kind of table)"
        )
    if not enable_timescale and found.kind is TableKind.HYPERTABLE:
        raise SchemaMismatch(
            f"ENABLE_TIMESCALE is false but {table!r} is a hypertable; set ENABLE_TIMESCALE=true"
        )
    if not enable_timescale and found.kind is not TableKind.PARTITIONED:
        raise SchemaMismatch(
            f"{table!r} is a {found.kind}, not the partitioned table that a migration makes; migrate into "
            "an empty database (SCHEMA_MANAGEMENT.md, changing the kind of table)"
        )
    if enable_timescale and timescale_number(found) < OLDEST_TIMESCALE:
        raise SchemaMismatch(
            f"TimescaleDB is {found.timescale_version}; {OLDEST_TIMESCALE[0]}.{OLDEST_TIMESCALE[1]} is the "
            "oldest supported (before it, ON CONFLICT could miss rows in compressed chunks); upgrade it"
        )


def timescale_number(found: Found) -> tuple[int, int]:
    """`2.23.1` as (2, 23); (0, 0) without TimescaleDB."""
    if not found.timescale_version:
        return (0, 0)
    major, minor = found.timescale_version.split(".")[:2]
    return int(major), int(minor)
