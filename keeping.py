"""How long readings and rollups are kept, where workers do it: what may be dropped, and when.

The table `retention` says how many days; `RETENTION_DAYS` counts for readings as long as it says nothing
of them. Readings are dropped only when they are summed up, and before that it is noted from when on they
are complete: what was summed up of dropped ones is never summed up again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

import structlog

import rollup_sql as statements
from database import BoundedConnection
from rollup_parts import EPOCH, RollupParts

LEVELS = {"minute": "readings_minute", "hour": "readings_hour", "day": "readings_day"}
_DAY = timedelta(days=1)

Begin = Callable[[], BoundedConnection]


class _Kept(NamedTuple):
    """0 `days`: for ever. What is older than `complete_from` may be incomplete."""

    days: int
    complete_from: datetime


class Keeping:
    """Belongs to the thread of its session. `setting_days`: RETENTION_DAYS."""

    def __init__(self, setting_days: int) -> None:
        self._setting_days = setting_days
        self._told = False

    def readings_from(self, begin: Begin, today: date) -> tuple[date | None, bool]:
        """The oldest day whose readings are kept, None for all, once that is noted; and whether older ones
        have to wait, because they are not summed up yet. Commits. Raises psycopg errors.

        A crash after it drops nothing: those days count as dropped, and are at the next time.
        """
        connection = begin()
        raw = self._kept(connection)["raw"]
        if not raw.days:
            connection.commit()
            return None, False
        wanted = _midnight(_by_both(connection, today) - timedelta(days=raw.days))
        may = min(wanted, self._summed_up(connection, raw.complete_from, wanted))
        oldest = max(may, raw.complete_from)
        connection.execute(statements.COMPLETE_FROM, {"level": "raw", "at": oldest})
        connection.commit()
        return oldest.date(), oldest < wanted

    def drop_rollups(self, begin: Begin, today: date) -> int:
        """Drop what is too old of the rollups; how many partitions. Commits. Raises psycopg errors."""
        connection = begin()
        today = _by_both(connection, today)
        kept = self._kept(connection)
        raw = kept["raw"]
        ends = {}
        for level, parent in LEVELS.items():
            if kept[level].days:
                end = _midnight(today - timedelta(days=kept[level].days))
                end = min(end, self._summed_up(connection, EPOCH, end))
                if level != "minute":
                    # A late reading has its day summed up again, from all of its hours.
                    end = min(end, raw.complete_from if raw.days else EPOCH)
                connection.execute(statements.COMPLETE_FROM, {"level": level, "at": end})
                ends[parent] = end
        connection.commit()
        dropped, parts = 0, RollupParts()
        for parent, end in ends.items():
            connection = begin()
            dropped += parts.drop_older(connection, parent, end)
            connection.commit()
        return dropped

    def _kept(self, connection: BoundedConnection) -> dict[str, _Kept]:
        found = {}
        for level, days, complete_from in connection.execute(statements.RETENTION):
            if level == "raw":
                self._tell(days)
                days = self._setting_days if days is None else days
            found[level] = _Kept(days or 0, (complete_from or EPOCH).astimezone(UTC))
        return found

    def _tell(self, days: int | None) -> None:
        if days is not None and self._setting_days not in (0, days) and not self._told:
            self._told = True
            structlog.get_logger().warning(
                "retention_days_ignored", setting=self._setting_days, in_force=days
            )

    def _summed_up(self, connection: BoundedConnection, after: datetime, wanted: datetime) -> datetime:
        """Until when all readings from `after` on are summed up, in whole days."""
        row = connection.execute(statements.ROLLED_BEFORE).fetchone()
        if row is None:
            return wanted  # TimescaleDB sums up
        rolled, dirty = row[0], connection.execute(statements.OLDEST_DIRTY, {"after": after}).fetchone()
        if rolled is None:
            return EPOCH
        found: datetime = rolled if not dirty or dirty[0] is None else min(rolled, dirty[0])
        return EPOCH + (found - EPOCH) // _DAY * _DAY


def _by_both(connection: BoundedConnection, today: date) -> date:
    """The day by the clock that is behind, this worker's or the database's: one that is a year ahead would
    have everything dropped.
    """
    row = connection.execute(statements.TODAY).fetchone()
    return min(today, row[0]) if row else today


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
