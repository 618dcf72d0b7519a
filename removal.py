"""What there is of a device, deleted in steps that are each bounded: alerts, readings, rollups.

A step is one transaction of the caller's. It never waits for a lock of the writing path.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from tables import ROLLUPS

# Partitions or chunks that one transaction deletes from: each one takes locks (docs/internals.md).
MAX_PARTS = 32
# Statements that one transaction deletes with, where series of few readings share a large part.
MAX_DELETES = 100

# Rows that somebody else has locked are passed over: the next step meets them again.
_DELETE_ALERTS = """
    delete from alerts where id in (
        select id from alerts where device_id = %(device)s order by id limit %(rows)s
        for update skip locked)
"""
_ALERTS_LEFT = "select 1 from alerts where device_id = %(device)s limit 1"

# Where the parts of the table, its partitions or chunks, begin and end.
_IS_PARTITIONED = "select 1 from pg_partitioned_table where partrelid = to_regclass(quote_ident(%(table)s))"
_HAS_TIMESCALE = "select 1 from pg_extension where extname = 'timescaledb'"
_PARTITION_BOUNDS = r"""
    select bound::text from (
        select distinct
            (regexp_matches(pg_get_expr(relpartbound, oid), '''([^'']+)''', 'g'))[1]::timestamptz as bound
        from pg_inherits join pg_class on oid = inhrelid
        where inhparent = to_regclass(quote_ident(%(table)s))
    ) as bounds order by bound
"""
_CHUNK_BOUNDS = """
    select bound::text from (
        select distinct unnest(array[range_start, range_end]) as bound
        from timescaledb_information.chunks
        where format('%%I.%%I', hypertable_schema, hypertable_name)::regclass
            = to_regclass(quote_ident(%(table)s))
    ) as bounds order by bound
"""
# `within` is written out, so that only the parts that it covers are planned for, opened and locked.
_WITHIN = sql.SQL('device_id = %(device)s and "timestamp" >= {low} and "timestamp" < {high}')
_COUNT = sql.SQL("select count(*) from (select from {table} where {within} limit %(most)s) as found")
_A_SERIES = sql.SQL("select sensor_type from {table} where {within} limit 1")
_NTH_TIME = sql.SQL(
    """
    select "timestamp"::text from {table} where {within} and sensor_type = %(sensor)s
    order by "timestamp" offset %(nth)s limit 1
    """
)
_DELETE = sql.SQL("delete from {table} where {within}")
_DELETE_OF_SERIES = sql.SQL("delete from {table} where {within} and sensor_type = %(sensor)s")
_DELETE_UNTIL = sql.SQL(
    'delete from {table} where {within} and sensor_type = %(sensor)s and "timestamp" <= {until}'
)
# Where workers keep the rollups, the hours that have lost readings are noted, to be summed up again.
_NOTED = sql.SQL(
    """
    with gone as ({delete} returning sensor_type, "timestamp"), noted as (
        insert into rollup_dirty (device_id, sensor_type, hour)
        select distinct %(device)s, sensor_type, date_bin('1 hour', "timestamp", '1970-01-01Z') from gone
    )
    select count(*) from gone
    """
)
_KEPT_BY_WORKERS = "select 1 from rollup_state where keeper = 'workers'"
_ROLLUPS = """
    select null, rollup from unnest(%(rollups)s::text[]) as rollup
    where to_regclass(rollup) is not null
"""
# What a continuous aggregate holds is in a table of another name.
_AGGREGATES = """
    select materialization_hypertable_schema::text, materialization_hypertable_name::text
    from timescaledb_information.continuous_aggregates
    where view_name = any(%(rollups)s)
      and format('%%I.%%I', view_schema, view_name)::regclass = to_regclass(view_name::text)
"""
_DELETE_ROLLUPS = sql.SQL(
    """
    delete from {table} where (device_id, sensor_type, bucket) in (
        select device_id, sensor_type, bucket from {table} where device_id = %(device)s limit %(rows)s)
    """
)
_ROLLUPS_LEFT = sql.SQL("select 1 from {table} where device_id = %(device)s limit 1")

Query = LiteralString | sql.Composed
Part = tuple[str, str]


class Removal:
    """One step. `rows`: how many rows it may delete; perhaps some more, where many share one time.

    `removed`: how many it has deleted. Each method deletes down to the last row that there is now, or as
    far as the step goes, and answers whether none are left.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: str, rows: int) -> None:
        self._connection = connection
        self._table = table
        self.removed = 0
        self._left = rows
        self._parts = MAX_PARTS
        self._deletes = MAX_DELETES
        self._known: list[Part] | None = None
        self._notes: bool | None = None

    @property
    def over(self) -> bool:
        """Whether the step goes no further."""
        return not (self._left and self._parts and self._deletes)

    def alerts(self, device: str) -> bool:
        """Delete the device's alerts; what others have locked is passed over."""
        return self.delete(_DELETE_ALERTS, _ALERTS_LEFT, device)

    def delete(self, statement: Query, any_left: Query, device: str) -> bool:
        """Delete by a statement that takes `device` and `rows`. Whether none are left."""
        values = {"device": device, "rows": self._left}
        self._took(self._connection.execute(statement, values).rowcount)
        return self._connection.execute(any_left, values).fetchone() is None

    def readings(self, device: str) -> bool:
        """Delete the device's readings, oldest first. By parts: a transaction must not open them all."""
        parts = self._all_parts()
        for start in range(0, len(parts), MAX_PARTS):
            group = parts[start : start + MAX_PARTS]
            if not self._count(device, (group[0][0], group[-1][1]), 1):
                continue
            for part in group:
                if not self._delete_part(device, part):
                    return False
        return True

    def rollups(self, device: str) -> bool:
        """Delete what was summed up of the device, also of readings that were dropped long ago."""
        rollups = {"rollups": list(ROLLUPS)}
        query = _ROLLUPS if self._kept_by_workers() else _AGGREGATES
        for schema, name in self._connection.execute(query, rollups).fetchall():
            table = sql.Identifier(schema, name) if schema else sql.Identifier(name)
            statement, left = (one.format(table=table) for one in (_DELETE_ROLLUPS, _ROLLUPS_LEFT))
            if not self.delete(statement, left, device):
                return False
        return True

    def _kept_by_workers(self) -> bool:
        if self._notes is None:
            self._notes = _any(self._connection, _KEPT_BY_WORKERS, {})
        return self._notes

    def _all_parts(self) -> list[Part]:
        """All of time, cut where partitions or chunks begin and end."""
        if self._known is not None:
            return self._known
        table = {"table": self._table}
        bounds: list[str] = []
        if _any(self._connection, _IS_PARTITIONED, table):
            bounds = [bound for (bound,) in self._connection.execute(_PARTITION_BOUNDS, table)]
        elif _any(self._connection, _HAS_TIMESCALE, {}):
            bounds = [bound for (bound,) in self._connection.execute(_CHUNK_BOUNDS, table)]
        edges = ["-infinity", *bounds, "infinity"]
        self._known = list(pairwise(edges))
        return self._known

    def _delete_part(self, device: str, part: Part) -> bool:
        """Whether none are left in this part."""
        found = self._count(device, part, self._left + 1)
        if not found:
            return True
        if not self._parts or not self._left:
            return False
        self._parts -= 1
        if found <= self._left:
            self._delete(device, _DELETE, part)
            return True
        while self._left > 0 and self._deletes:
            row = self._run(device, _A_SERIES, part).fetchone()
            if row is None:
                return True
            self._delete_of_series(device, part, row[0])
            self._deletes -= 1
        return False

    def _took(self, rows: int) -> None:
        """Perhaps more than it might: of the same time, or come meanwhile."""
        self.removed += rows
        self._left = max(0, self._left - rows)

    def _delete_of_series(self, device: str, part: Part, sensor: str) -> None:
        """The oldest of a series, those of the last one's time included."""
        last = self._run(device, _NTH_TIME, part, sensor=sensor, nth=self._left - 1).fetchone()
        if last is None:
            self._delete(device, _DELETE_OF_SERIES, part, sensor=sensor)
        else:
            self._delete(device, _DELETE_UNTIL, part, until=last[0], sensor=sensor)

    def _delete(self, device: str, statement: sql.SQL, part: Part, **values: str) -> None:
        if not self._kept_by_workers():
            self._took(self._run(device, statement, part, **values).rowcount)
            return
        noted = sql.SQL(_NOTED.as_string(None).replace("{delete}", statement.as_string(None)))
        row = self._run(device, noted, part, **values).fetchone()
        self._took(int(row[0]) if row else 0)

    def _count(self, device: str, part: Part, most: int) -> int:
        """How many readings there are, counted up to `most`. The locks of looking are given back."""
        with self._connection.transaction(force_rollback=True):
            row = self._run(device, _COUNT, part, most=most).fetchone()
        return int(row[0]) if row else 0

    def _run(
        self, device: str, statement: sql.SQL, part: Part, until: str = "", **values: object
    ) -> psycopg.Cursor[Any]:
        low, high = part
        query = statement.format(
            table=sql.Identifier(self._table),
            within=_WITHIN.format(low=sql.Literal(low), high=sql.Literal(high)),
            until=sql.Literal(until),
        )
        return self._connection.execute(query, {"device": device, **values})


def _any(connection: psycopg.Connection[Any], query: Query, values: dict[str, Any]) -> bool:
    return connection.execute(query, values).fetchone() is not None
