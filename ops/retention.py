"""`python main.py retention`: shows how long readings and rollups are kept, and changes it.

Exit status: 0 done, 1 something is wrong, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

from psycopg import sql

import schema_check
from config import Settings
from database import BoundedConnection
from ops import output, retention_sql, session
from ops.session import Refused, connected, transaction
from schema_check import TableKind
from tables import ROLLUPS

HEADER = ("level", "table", "kept", "oldest", "size")
LEVELS = ("raw", "minute", "hour", "day")
LEAST = {"raw": 1, "minute": 2, "hour": 7, "day": 30}
MOST_DAYS = 36_500


class Kept(NamedTuple):
    """`days` 0: for ever. `by`: who says so and drops what is older. `size`: in bytes, indexes included."""

    level: str
    table: str
    days: int
    by: str
    oldest: datetime | None
    size: int


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `retention`."""
    parser = commands.add_parser("retention", help="show and change how long readings and rollups are kept")
    parser.set_defaults(run=main, action="retention")
    for level in LEVELS:
        what = "readings" if level == "raw" else f"rollups by {level}"
        parser.add_argument(
            f"--{level}", type=_days(level), metavar="DAYS", help=f"keep {what} so long; 0: for ever"
        )
    parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def _days(level: str) -> Any:
    def days(text: str) -> int:
        """For argparse: 0, or so many days."""
        takes = f"it takes 0, for ever, or {LEAST[level]} to {MOST_DAYS} days"
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {output.excerpt(text)!r}; {takes}") from None
        if found and not LEAST[level] <= found <= MOST_DAYS:
            raise argparse.ArgumentTypeError(f"is {output.excerpt(text)}; {takes}")
        return found

    return days


def main(settings: Settings, chosen: argparse.Namespace) -> int:
    """Do what was chosen; the exit status."""
    wanted = {level: getattr(chosen, level) for level in LEVELS if getattr(chosen, level) is not None}
    return session.run(lambda: _run(settings, wanted, dry_run=chosen.dry_run, as_json=chosen.json))


def _run(settings: Settings, wanted: Mapping[str, int], *, dry_run: bool, as_json: bool) -> int:
    with connected(settings) as connection:
        database, before = _Database(connection, settings), dict[str, int]()
        with transaction(connection, keep=not dry_run):
            if wanted:
                connection.execute(retention_sql.LOCK)
                before = database.days()
                check(settings, {**before, **wanted}, wanted)
                database.set(before, wanted)
            found = database.kept()  # in a dry run: as it would be
    if wanted and not as_json:
        _tell(before, wanted, dry_run=dry_run)
    if as_json:
        output.json_array((_object(one) for one in found), sys.stdout)
    else:
        output.table(HEADER, (_cells(one) for one in found), sys.stdout)
    return 0


def check(settings: Settings, days: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Raises `Refused` where these do not go together. `days`: all of them, as they would be."""
    raw = wanted.get("raw")
    if raw is not None and settings.retention_days not in (0, raw):
        raise Refused(
            f"RETENTION_DAYS is {settings.retention_days}, which contradicts --raw {raw}; remove it from"
            " the settings of this command and of all workers: from then on the database's value counts"
        )
    for finer, coarser in (("raw", "hour"), ("minute", "hour"), ("hour", "day")):
        least = days[finer]
        if days[coarser] and (not least or days[coarser] < least):
            raise Refused(
                f"{coarser} would be kept {_kept(days[coarser])} and {finer} {_kept(least)}; {coarser} must"
                f" be kept at least as long as {finer}, from which late readings make it again"
            )


class _Database:
    """The policies of one database, whoever carries them out."""

    def __init__(self, connection: BoundedConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        found = schema_check.look(connection, settings.table_name)
        self._chunked = found.kind is TableKind.HYPERTABLE
        (row,) = connection.execute(retention_sql.KEEPER).fetchall()
        connection.rollback()
        self._has_policies = row[0] == "timescaledb"
        self.tables = dict(zip(LEVELS, (settings.table_name, *ROLLUPS), strict=True))

    def days(self) -> dict[str, int]:
        """What is in force. Leaves a transaction open, as the others do."""
        if self._has_policies:
            return {level: self._policy_days(table) for level, table in self.tables.items()}
        rows = dict(self._connection.execute(retention_sql.ROWS).fetchall())
        if rows["raw"] is None:
            rows["raw"] = 0 if self._chunked else self._settings.retention_days
        return {level: rows[level] or 0 for level in LEVELS}

    def _policy_days(self, table: str) -> int:
        row = self._connection.execute(retention_sql.POLICY_DAYS, {"table": table}).fetchone()
        return int(row[0]) if row else 0

    def set(self, before: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        """Bring it into force, in the transaction that is open."""
        if self._chunked and not self._has_policies and wanted.get("raw"):
            raise Refused(
                "the Apache edition of TimescaleDB has no retention policies and drops nothing;"
                " call drop_chunks yourself, from cron"
            )
        for level, days in wanted.items():
            if not self._has_policies:
                self._connection.execute(retention_sql.SET_DAYS, {"level": level, "days": days})
            elif days != before[level]:
                self._replace_policy(level, before[level], days)
        if self._has_policies:
            after = {**before, **wanted}
            for source, target in pairwise(LEVELS):
                self._limit_refresh(source, after[source], self.tables[target])

    def _replace_policy(self, level: str, before: int, days: int) -> None:
        asked = {"table": self.tables[level], "level": level}
        if before:
            self._connection.execute(retention_sql.NOTE_DROPPED, {**asked, "days": before})
        self._connection.execute(retention_sql.REMOVE_POLICY, asked)
        if days:
            self._connection.execute(retention_sql.ADD_POLICY, {**asked, "days": days})

    def _limit_refresh(self, source: str, days: int, target: str) -> None:
        row = self._connection.execute(retention_sql.COMPLETE_DAYS, {"level": source}).fetchone()
        limits = [limit for limit in (days, row[0] if row else 0) if limit]
        back = max(min(limits), LEAST[source]) if limits else None
        self._connection.execute(retention_sql.ALTER_REFRESH, {"table": target, "days": back})

    def kept(self) -> list[Kept]:
        days = self.days()
        return [
            Kept(level, table, days[level], self._by(level), *self._extent(level, table))
            for level, table in self.tables.items()
        ]

    def _by(self, level: str) -> str:
        if self._has_policies:
            return "TimescaleDB"
        if level == "raw" and self._chunked:
            return "nobody"
        rows = dict(self._connection.execute(retention_sql.ROWS).fetchall())
        return "RETENTION_DAYS" if rows[level] is None else "workers"

    def _extent(self, level: str, table: str) -> tuple[datetime | None, int]:
        """The oldest time, and the size. Only the oldest partition or chunk that holds anything is read."""
        asked = {"table": table}
        if self._has_policies or (self._chunked and level == "raw"):
            (row,) = self._connection.execute(retention_sql.CHUNKED, asked).fetchall()
            size, parts = int(row[0]), [row[1]] if row[1] else []
        else:
            rows = self._connection.execute(retention_sql.PARTITIONS, asked).fetchall()
            size, parts = sum(row[1] for row in rows), [row[0] for row in rows if row[2]]
        return self._oldest(parts, "timestamp" if level == "raw" else "bucket"), size

    def _oldest(self, parts: Iterable[str], time: str) -> datetime | None:
        for part in parts:
            query = retention_sql.OLDEST.format(time=sql.Identifier(time), part=sql.SQL(part))
            row = self._connection.execute(query).fetchone()
            if row and row[0] is not None:
                found: datetime = row[0]
                return found.astimezone(UTC)
        return None


def _tell(before: Mapping[str, int], wanted: Mapping[str, int], *, dry_run: bool) -> None:
    for level, days in wanted.items():
        if days == before[level]:
            print(f"{level} is kept {_kept(days)} already")
        else:
            verb = "would be" if dry_run else "is now"
            print(f"{level} {verb} kept {_kept(days)}, before {_kept(before[level])}")


def _kept(days: int) -> str:
    return f"{days} days" if days else "for ever"


def _object(one: Kept) -> dict[str, object]:
    return {**one._asdict(), "oldest": one.oldest and one.oldest.isoformat()}


def _cells(one: Kept) -> tuple[str, ...]:
    oldest = "-" if one.oldest is None else one.oldest.strftime("%Y-%m-%d %H:%M:%SZ")
    kept = f"{_kept(one.days)} ({one.by})" if one.days else _kept(one.days)
    return one.level, one.table, kept, oldest, _size(one.size)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
