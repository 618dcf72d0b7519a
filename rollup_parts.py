"""The partitions of the rollup tables: made when they are needed, dropped when they are too old."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from psycopg import sql

import rollup_sql
from database import BoundedConnection

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Days of one partition: about as many rows in each, and few to plan for.
DAYS = {"readings_minute": 7, "readings_hour": 28, "readings_day": 364}


class Part(NamedTuple):
    parent: str
    name: str
    low: datetime
    high: datetime


def parts(low: datetime, high: datetime) -> Iterator[Part]:
    """The partitions of all three tables that [low, high) touches. Pure."""
    for parent, days in DAYS.items():
        width = timedelta(days=days)
        start = EPOCH + (low - EPOCH) // width * width
        while start < high:
            yield Part(parent, f"{parent}_p{start:%Y%m%d}", start, start + width)
            start += width


class RollupParts:
    """Remembers what is there, so that it asks the database once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def ensure(self, connection: BoundedConnection, low: datetime, high: datetime) -> None:
        """Have them for [low, high), in the transaction that is open. Raises psycopg errors."""
        missing = [part for part in parts(low, high) if part.name not in self._known]
        if not missing:
            return
        connection.execute(
            rollup_sql.MAKE_PARTITIONS.format(
                parents=sql.Literal([part.parent for part in missing]),
                names=sql.Literal([part.name for part in missing]),
                lows=sql.Literal([part.low.isoformat() for part in missing]),
                highs=sql.Literal([part.high.isoformat() for part in missing]),
            )
        )
        self._known |= {part.name for part in missing}

    def forget(self) -> None:
        """What was made may have been undone, or dropped."""
        self._known.clear()

    def drop_older(self, connection: BoundedConnection, parent: str, oldest: datetime) -> int:
        """Drop the partitions that hold nothing from `oldest` on. How many. Raises psycopg errors."""
        found = connection.execute(rollup_sql.ROLLUP_PARTITIONS, {"table": parent}).fetchall()
        old = [name for name, high in found if high <= oldest]
        for name in old:
            connection.execute(rollup_sql.DROP.format(partition=sql.Identifier(name)))
        self._known -= set(old)
        return len(old)
