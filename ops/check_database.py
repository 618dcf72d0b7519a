"""What a worker needs of the database: the schema, that its account may use it, and a way past a pooler."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg

import database
import schema_check
from config import Settings
from database import BoundedConnection
from ops.verify import Check
from retry import describe
from schema_check import SchemaMismatch, TableKind
from tables import ROLLUPS

_MOST_SKEW_SEC = 5.0
_SERVER = """
    select pg_is_in_recovery() or current_setting('transaction_read_only')::bool,
           extract(epoch from clock_timestamp())::float8,
           has_database_privilege(current_database(), 'TEMPORARY'), current_user::text
"""
# What is missing of what a worker needs: table and privilege.
_MISSING = """
    select format('%%s on %%s', privilege, name)
    from unnest(%(tables)s::text[], %(privileges)s::text[]) as needed (name, privileges),
         unnest(string_to_array(privileges, ' ')) as privilege
    where to_regclass(quote_ident(name)) is not null
      and not has_table_privilege(to_regclass(quote_ident(name)), privilege)
"""
_NOT_OWNED = """
    select relname::text from pg_class
    where oid = any (select to_regclass(quote_ident(name)) from unnest(%(tables)s::text[]) as name)
      and not pg_has_role(relowner, 'USAGE')
"""
# Which database of which server this is. A restart between the two questions is told as another server.
_WHERE = """
    select current_database()::text, pg_postmaster_start_time(),
           pg_is_in_recovery() or current_setting('transaction_read_only')::bool
"""
_WITHOUT_DIRECT = (
    "DATABASE_URL leads to a pooler and DATABASE_DIRECT_URL is not set: there is no live news for readers, "
    "no migration, and no dropping of partitions"
)
_ALL = "SELECT INSERT UPDATE DELETE"
_NEEDED = {
    "alembic_version": "SELECT",
    "series": _ALL,
    "devices": _ALL,
    "thresholds": _ALL,
    "alerts": _ALL,
    "applied_events": _ALL,
    "device_deletions": _ALL,
    "duties": "SELECT INSERT UPDATE",
    "rollup_state": "SELECT UPDATE",
    "rollup_dirty": _ALL,
    "retention": "SELECT UPDATE",
}


def database_checks(settings: Settings) -> Iterator[Check]:
    """A line for each thing that was looked at."""
    url = settings.database_url.get_secret_value()
    try:
        began = time.monotonic()
        with database.connect(url, timeout_sec=5) as connection:
            took = (time.monotonic() - began) * 1000
            found = schema_check.look(connection, settings.table_name)
            yield Check("database", True, f"{_versions(found)} connected in {took:.0f} ms")
            yield from _look(connection, settings, found)
            if settings.direct_url() is None and database.is_pooled(connection):
                yield Check("direct", None, _WITHOUT_DIRECT)
            where = _where(connection)
    except psycopg.Error as error:
        yield Check("database", False, f"not usable: {describe(error)}; check DATABASE_URL")
        where = None
    if direct_url := settings.direct_url():
        yield _direct(direct_url, where)


def _where(connection: BoundedConnection) -> tuple[object, ...] | None:
    row: tuple[object, ...] | None = connection.execute(_WHERE).fetchone()
    connection.rollback()
    return row


def _direct(url: str, where: tuple[object, ...] | None) -> Check:
    """Whether `DATABASE_DIRECT_URL` leads where `DATABASE_URL` does; None: nobody knows where that is."""
    try:
        began = time.monotonic()
        with database.connect(url, timeout_sec=5) as connection:
            took = (time.monotonic() - began) * 1000
            pooled = database.is_pooled(connection)
            found = _where(connection)
    except psycopg.Error as error:
        return Check("direct", False, f"not usable: {describe(error)}; check DATABASE_DIRECT_URL")
    name, _, read_only = found or ("?", None, True)
    if where is not None and found is not None and found[:2] != where[:2]:
        sentence = f"DATABASE_DIRECT_URL leads to database {name} of another server, or to another database"
        return Check("direct", False, f"{sentence}, than DATABASE_URL; give it the same server and name")
    if read_only:
        return Check(
            "direct", False, "DATABASE_DIRECT_URL leads to a server that takes no writes: a standby?"
        )
    if pooled:
        sentence = "DATABASE_DIRECT_URL leads to a pooler: right in session mode, wrong in transaction mode"
        return Check("direct", None, sentence)
    return Check("direct", True, f"past any pooler, connected in {took:.0f} ms")


def _versions(found: schema_check.Found) -> str:
    told = f"PostgreSQL {found.server_version // 10_000}.{found.server_version % 10_000}"
    if found.timescale_version:
        told += f", TimescaleDB {found.timescale_version} ({found.timescale_license})"
    return told


def _look(connection: BoundedConnection, settings: Settings, found: schema_check.Found) -> Iterator[Check]:
    row = connection.execute(_SERVER).fetchone()
    read_only, now, temporary, user = row if row else (True, 0.0, False, "")
    if read_only:
        yield Check("writable", False, "the server takes no writes: a standby, or read-only by setting")
    skew = abs(time.time() - now)
    if skew > _MOST_SKEW_SEC:
        yield Check(
            "clock", False, f"the clocks of the database and of this machine differ by {skew:.0f} s"
        )
    try:
        schema_check.check(found, settings.table_name, enable_timescale=settings.enable_timescale)
    except SchemaMismatch as error:
        yield Check("schema", False, str(error))
        return
    yield Check("schema", True, f"{settings.table_name}: {found.kind}, revision {found.revisions[-1]}")
    missing = _missing(connection, settings, found)
    if not temporary:
        missing.append("TEMPORARY on the database")
    if missing:
        rest = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        sentence = f"the account {user} lacks {', '.join(missing[:6])}{rest}"
        yield Check("grants", False, sentence)
    else:
        yield Check("grants", True, f"the account {user} may do what a worker does")


def _missing(connection: BoundedConnection, settings: Settings, found: schema_check.Found) -> list[str]:
    needed = {settings.table_name: "SELECT INSERT DELETE", **_NEEDED}
    asked = {"tables": list(needed), "privileges": list(needed.values())}
    missing = [row[0] for row in connection.execute(_MISSING, asked).fetchall()]
    if found.kind is not TableKind.HYPERTABLE:  # workers make their partitions
        tables = [settings.table_name, *ROLLUPS]
        rows = connection.execute(_NOT_OWNED, {"tables": tables}).fetchall()
        missing += [f"ownership of {row[0]}" for row in rows]
    return missing
