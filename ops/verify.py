"""`python main.py verify`: the ledger of the group, and what else has to be right for the promise.

Exit status 0 when every check holds, 1 when one does not. A worker that is not running fails a check
only while entries wait for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import NamedTuple

import psycopg
import redis
from psycopg import sql

import database
import partitions
import redis_client
import redis_server
import schema_check
from config import Settings
from database import BoundedConnection
from ops import session
from ops.ledger import Books, Ledger, read_ledger
from redis_scripts import Keys
from retry import describe
from schema_check import Found, SchemaMismatch, TableKind


class Check(NamedTuple):
    """One line of the report. `ok` None: worth knowing, nothing to judge."""

    name: str
    ok: bool | None
    sentence: str


_POLICIES = """
    select proc_name::text, coalesce(config ->> 'compress_after', config ->> 'drop_after', '')
    from timescaledb_information.jobs where hypertable_name = %s order by proc_name
"""
_ELSEWHERE = (
    "no worker does that: look for somebody else's XACK, XGROUP DELCONSUMER or SETID, a ledger that was "
    "deleted, or a group that others used before"
)
_NOTHING_TO_COMPARE = (
    "this Redis does not count what a group has read, so there is nothing to compare the ledger with: "
    "7.0 and newer do"
)
_NEWEST = sql.SQL(
    """select max("timestamp") from {table} where "timestamp" between now() - interval '2 days' and now()"""
)


def main(settings: Settings, *, as_json: bool) -> int:
    """Print what there is to say; the exit status."""
    return session.run(lambda: _verify(settings, as_json=as_json))


def _verify(settings: Settings, *, as_json: bool) -> int:
    checks: list[Check] = []
    ledger: Ledger | None = None
    try:
        client = redis_client.connect(settings.redis_servers(), timeout_sec=30)
        with client:
            ledger = read_ledger(
                client,
                settings.consumer_group_name,
                settings.stream_pattern,
                settings.dead_letter_stream,
                settings.event_streams(),
            )
            checks += redis_checks(client, settings, ledger)
    except redis.RedisError as error:
        checks.append(Check("redis", False, f"not usable: {describe(error)}"))
    try:
        url = settings.database_url.get_secret_value()
        with database.connect(url, timeout_sec=30) as connection:
            checks += database_checks(connection, settings)
    except psycopg.Error as error:
        checks.append(Check("database", False, f"not usable: {describe(error)}"))
    print(_as_json(ledger, checks) if as_json else _as_text(settings, ledger, checks))
    return 1 if any(check.ok is False for check in checks) else 0


def redis_checks(client: redis.Redis, settings: Settings, ledger: Ledger) -> Iterator[Check]:
    """The ledger, the server, and the workers."""
    total = ledger.total
    if ledger.off:  # by stream: what is missing in one must not make up for what another has too much
        worst = ", ".join(f"{stream.decode()} {books.missing:+}" for stream, books in ledger.off[:5])
        count = sum(abs(books.missing) for _, books in ledger.off)
        yield Check("ledger", False, f"{count} entries read are not accounted for ({worst}); {_ELSEWHERE}")
    elif not total.compared:
        yield Check("ledger", None, f"{total.read} entries; {_NOTHING_TO_COMPARE}")
    else:
        yield Check("ledger", True, f"all {total.read} entries read are accounted for")
    if ledger.streams and not ledger.grouped:
        yield Check("group", None, f"no stream has the group {settings.consumer_group_name!r} yet")
    if total.trimmed or total.trimmed_unread:
        yield Check(
            "trimmed",
            False,
            f"{total.trimmed} pending and {total.trimmed_unread} unread entries were deleted from their "
            "streams before they were stored, by something else (MAXLEN at the producer?)" + _passed(total),
        )
    server = redis_server.look(client)
    told = f"{server.name} {server.version}, maxmemory-policy {server.eviction_policy}"
    yield Check("redis", not server.evicts, told)
    leases = client.scan_iter(match=Keys(settings.consumer_group_name).workers)
    names = [key.decode().rpartition(":worker:")[2] for key in leases]
    waiting = total.pending + total.unread
    if names:
        yield Check("workers", True, f"{len(names)} alive: {', '.join(sorted(names)[:8])}")
    else:
        yield Check("workers", False if waiting else None, f"none alive, {waiting} entries wait")


def _passed(total: Books) -> str:
    if not total.passed:
        return ""
    return (
        f"; {total.passed} of the unread ones the group has passed: so many never came to it, and others "
        "have deleted at least as many"
    )


def database_checks(connection: BoundedConnection, settings: Settings) -> Iterator[Check]:
    """Server, schema revision, kind of table, policies or partitions, newest reading."""
    found = schema_check.look(connection, settings.table_name)
    versions = f"PostgreSQL {found.server_version // 10_000}.{found.server_version % 10_000}"
    if found.timescale_version:
        versions += f", TimescaleDB {found.timescale_version} ({found.timescale_license})"
    try:
        schema_check.check(found, settings.table_name, enable_timescale=settings.enable_timescale)
    except SchemaMismatch as error:
        yield Check("schema", False, f"{versions}; {error}")
        return
    yield Check("schema", True, f"{versions}; {settings.table_name}: {found.kind}, {found.revisions[-1]}")
    yield _upkeep(connection, settings, found)
    yield _newest(connection, settings)


def _upkeep(connection: BoundedConnection, settings: Settings, found: Found) -> Check:
    if found.kind is TableKind.HYPERTABLE:
        if found.timescale_license != "timescale":
            return Check("policies", None, "none: the Apache edition has no background jobs")
        jobs = connection.execute(_POLICIES, (settings.table_name,)).fetchall()
        shown = ", ".join(f"{name.removeprefix('policy_')} after {after}" for name, after in jobs)
        return Check("policies", None, shown or "none")
    known = partitions.Partitions(settings.table_name, 30.0).days(connection)
    today = datetime.now(UTC).date()
    wanted = partitions.ahead(today, settings.partitions_ahead_days)
    held = f"{len(known)} days have a partition"
    if wanted <= known:
        return Check("partitions", True, f"{held}, those ahead included")
    return Check("partitions", None, f"{held}; a running worker makes those ahead")


def _newest(connection: BoundedConnection, settings: Settings) -> Check:
    try:
        database.begin(connection, 5.0)
        query = _NEWEST.format(table=sql.Identifier(settings.table_name))
        row = connection.execute(query).fetchone()
        connection.rollback()
    except psycopg.errors.QueryCanceled:
        return Check("newest", None, "the search for the newest reading took more than 5 s")
    if not row or row[0] is None:
        return Check("newest", None, "no reading measured in the last two days")
    age = (datetime.now(UTC) - row[0]).total_seconds()
    return Check("newest", None, f"measured {age:.0f} s ago")


def _as_text(settings: Settings, ledger: Ledger | None, checks: list[Check]) -> str:
    lines = []
    if ledger:
        total = ledger.total
        lines.append(f"group {settings.consumer_group_name}, {len(ledger.streams)} streams, entries:")
        rows = [
            ("added", total.added, ""),
            ("read", total.read, _read_note(total)),
            ("  stored", total.stored, ""),
            ("  duplicate", total.duplicate, ""),
            ("  dead-lettered", total.dead_lettered, f"({ledger.dead_letters} in the dead-letter stream)"),
            ("  skipped", total.skipped, ""),
            ("  trimmed", total.trimmed, "(deleted elsewhere while pending)"),
            ("  pending", total.pending, ""),
            ("unread", total.unread, ""),
            ("trimmed unread", total.trimmed_unread, "(deleted elsewhere, never read)"),
        ]
        lines += [f"  {name:<16}{count:>14,}  {note}".rstrip() for name, count, note in rows]
        earlier = sum(ledger.closed.values())
        if earlier:
            lines.append(f"  {'earlier groups':<16}{earlier:>14,}  (settled in groups made again since)")
        lines.append("")
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    lines += [f"{marks[check.ok]}  {check.name:<11}{check.sentence}" for check in checks]
    return "\n".join(lines)


def _read_note(total: Books) -> str:
    if not total.compared:
        return "(settled or pending: Redis has no count of its own)"
    return "" if total.counted else "(derived: Redis lost its own count)"


def _as_json(ledger: Ledger | None, checks: list[Check]) -> str:
    report: dict[str, object] = {"checks": [check._asdict() for check in checks]}
    if ledger:
        report["entries"] = {**asdict(ledger.total), "missing": ledger.total.missing}
        report["closed"] = ledger.closed
        report["dead_letters"] = ledger.dead_letters
    return json.dumps(report, default=date.isoformat)
