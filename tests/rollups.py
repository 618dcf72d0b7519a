"""What the tests of rollups share: rolling to the end, and what must be there by definition."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.support import Database, wait_until
from tests.writing import Rig

EXPECTED = """
    select device_id::text, sensor_type::text, date_bin('1 {level}', "timestamp", '1970-01-01Z'), count(*),
        sum(value), min(value), max(value),
        (array_agg(value order by "timestamp", message_id))[1],
        (array_agg(value order by "timestamp", message_id))[count(*)::int]
    from sensor_readings where value is not null and "timestamp" < %s
    group by 1, 2, 3 order by 1, 2, 3
"""
ACTUAL = """
    select device_id::text, sensor_type::text, bucket, count, sum, min, max, first, last
    from readings_{level} where bucket < %s order by 1, 2, 3
"""


def rolled_before(database: Database) -> datetime | None:
    found: datetime | None = database.rows("select rolled_before from rollup_state")[0][0]
    return found


def is_rolled(database: Database) -> bool:
    """Whether there is nothing to do: up to some minutes ago, and no hour is noted."""
    query = """
        select coalesce(rolled_before > now() - interval '7 minutes', false) and target is null
            and rolled_before = late_before and not exists (select from rollup_dirty)
        from rollup_state
    """
    return bool(database.rows(query)[0][0])


def upkeep_until(one: Rig, condition: Callable[[], bool], hurry_sec: float = 5.0) -> None:
    """Upkeep of a writer whose clock runs fast: readings are summed up, and then dropped."""

    def done() -> bool:
        one.hurry(hurry_sec)
        one.writer.upkeep()
        return condition()

    wait_until(done, 60.0)


def roll(one: Rig) -> None:
    """Upkeep until the rollups are as far as they get."""
    upkeep_until(one, lambda: is_rolled(one.database), 1.0)


LEVELS = ("minute", "hour", "day")


def agree(database: Database) -> bool:
    """Whether every rollup is what the readings say, as far as it goes."""
    return all(rows_of(database, level) == expected(database, level) for level in LEVELS)


def rows_of(database: Database, level: str) -> list[tuple[Any, ...]]:
    """The rollup's rows of complete buckets."""
    return database.rows(ACTUAL.format(level=level), _end(database, level))


def expected(database: Database, level: str) -> list[tuple[Any, ...]]:
    """The same, from the readings."""
    return database.rows(EXPECTED.format(level=level), _end(database, level))


def _end(database: Database, level: str) -> datetime:
    query = f"select date_bin('1 {level}', rolled_before, '1970-01-01Z') from rollup_state"
    end: datetime = database.rows(query)[0][0]
    return end
