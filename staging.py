"""The SQL of a batch: straight into the table, or through staging where rows may be there already."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from psycopg import sql

import database
import rows
from database import BoundedConnection
from schema import Answer, Reading, Reason, Rejection, RowFate, days_of


class RowsMissing(Exception):
    """The database took rows and does not have them. A bug, or a trigger: the entries stay pending."""


_COPY = sql.SQL("copy {table} ({columns}) from stdin (format binary)")
_STAGE = sql.SQL(
    """
    create temp table sluice_staging (
        n int not null, device_id text collate "C", sensor_type text collate "C",
        "timestamp" timestamptz, message_id uuid, value double precision, value_text text, metadata jsonb
    ) on commit drop
    """
)
_COPY_STAGE = sql.SQL("copy sluice_staging ({columns}) from stdin (format binary)")
# The places of the rows that did not go in. Of rows with the same key the first may.
_MERGE = sql.SQL(
    """
    with staged as materialized (
        select *, row_number() over (
            partition by device_id, sensor_type, "timestamp", message_id order by n
        ) as turn
        from sluice_staging
    ), put as (
        insert into {table} ({columns})
        select {columns} from staged where turn = 1
        order by device_id, sensor_type, "timestamp", message_id
        on conflict do nothing
        returning device_id, sensor_type, "timestamp", message_id
    )
    select coalesce(array_agg(n), array[]::int[])
    from staged left join put using (device_id, sensor_type, "timestamp", message_id)
    where put.message_id is null or turn > 1
    """
)
_DAYS = sql.SQL('(t."timestamp" >= {low} and t."timestamp" < {high})')
# Asked in a statement of its own: it must see rows that another worker committed during the insert.
_CONFLICTS = sql.SQL(
    """
    select count(*), coalesce(array_agg(s.n) filter (
        where t.value is distinct from s.value or t.value_text is distinct from s.value_text
    ), array[]::int[])
    from sluice_staging s join {table} t using (device_id, sensor_type, "timestamp", message_id)
    where ({within}) {which}
    """
)
_THESE = sql.SQL("and s.n = any(%(ordinals)b)")


def copy_rows(connection: BoundedConnection, table: str, readings: Sequence[Reading]) -> None:
    """COPY `readings`, sorted by key, into the table. All or nothing. Raises psycopg errors."""
    data = rows.encode(readings)
    with connection.cursor() as cursor:
        with cursor.copy(_fill(_COPY, table, rows.COLUMNS)) as copy:
            copy.write(data)
        if cursor.rowcount != len(readings):
            raise RowsMissing(
                f"the table took {cursor.rowcount} of {len(readings)} rows; is there a trigger?"
            )


def merge_rows(
    connection: BoundedConnection, table: str, readings: Sequence[Reading]
) -> Sequence[Answer] | None:
    """Put in what is not there yet, and tell the others apart: duplicate, or conflict when values differ.
    None: all of them went in.

    Of readings with the same key the first may go in. Right also when another worker writes the same
    rows at the same time.
    """
    data = rows.encode_numbered(readings)
    with connection.cursor(binary=True) as cursor:
        cursor.execute(_STAGE)
        with cursor.copy(_fill(_COPY_STAGE, table, (rows.ORDINAL, *rows.COLUMNS))) as copy:
            copy.write(data)
        ((there,),) = cursor.execute(_fill(_MERGE, table, rows.COLUMNS)).fetchall()
        if not there:
            return None
        query = _CONFLICTS.format(
            table=sql.Identifier(table),
            within=_within(days_of(readings[n] for n in there)),
            which=_THESE if len(there) < len(readings) else sql.SQL(""),
        )
        ((found, differing),) = cursor.execute(query, {"ordinals": there}).fetchall()
        if found != len(there):
            raise RowsMissing(f"the table holds {found} of {len(there)} rows that did not go in")
    fates: list[Answer] = [RowFate.STORED] * len(readings)
    for n in there:
        fates[n] = RowFate.DUPLICATE
    for n in differing:
        fates[n] = conflict(readings[n])
    return fates


def _within(days: set[int]) -> sql.Composable:
    """These days as ranges of time, so that no partition or chunk between them is opened or locked."""
    ranges: list[list[int]] = []
    for day in sorted(days):
        if ranges and ranges[-1][1] == day:
            ranges[-1][1] = day + 1
        else:
            ranges.append([day, day + 1])
    return sql.SQL(" or ").join(
        _DAYS.format(low=sql.Literal(_midnight(low)), high=sql.Literal(_midnight(high)))
        for low, high in ranges
    )


def conflict(reading: Reading) -> Rejection:
    """What to say of a reading whose key is taken by another value: neither may be dropped silently."""
    return Rejection(
        Reason.CONFLICT,
        "a reading of this series, time and message is stored with another value",
        reading.device_id,
        reading.sensor_type,
        str(reading.value if reading.value is not None else reading.value_text)[:200],
    )


def _fill(template: sql.SQL, table: str, columns: tuple[str, ...] = ()) -> sql.Composed:
    return template.format(table=sql.Identifier(table), columns=database.identifiers(columns))


def _midnight(day: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat()
