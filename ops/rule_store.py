"""Rules in the database: written in bulk and only where they differ, listed, deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import sql

from database import BoundedConnection
from ops.globs import is_literal, like, like_of
from ops.rules import Definition
from thresholds import Kind, Severity

_PAGE = 2_000

# In the order of `rules.COLUMNS`.
_COLUMNS = sql.SQL(
    """id, device_pattern, sensor_pattern, kind, value, value_text, window_sec,
        hysteresis, debounce_count, debounce_sec, severity, enabled, sensor_id"""
)
# Two imports side by side would lock rules in different orders. Edits by SQL and events go on.
_ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtextextended('sluice thresholds import', 0))"
_STAGE = sql.SQL(
    "create temp table sluice_rules on commit drop as select {columns} from thresholds with no data"
).format(columns=_COLUMNS)
_COPY = sql.SQL("copy sluice_rules ({columns}) from stdin").format(columns=_COLUMNS)
_ANALYZE = "analyze sluice_rules"
# An empty name of a sensor is none: files cannot tell them apart.
_DIFFERS = sql.SQL(
    """
    (t.device_pattern, t.sensor_pattern, t.kind, t.value, t.value_text, t.window_sec, t.hysteresis,
     t.debounce_count, t.debounce_sec, t.severity, t.enabled, nullif(t.sensor_id, ''))
    is distinct from
    ({new}.device_pattern, {new}.sensor_pattern, {new}.kind, {new}.value, {new}.value_text,
     {new}.window_sec, {new}.hysteresis, {new}.debounce_count, {new}.debounce_sec, {new}.severity,
     {new}.enabled, {new}.sensor_id)
    """
)
# Rules that are as they should be are not even locked; the second comparison is for those that somebody
# else changed meanwhile. `xmax` is 0 in a row that was not there before.
_MERGE = sql.SQL(
    """
    with merged as (
        insert into thresholds as t ({columns})
        select {columns} from sluice_rules as n
        where not exists (select from thresholds as t where t.id = n.id and not ({differs_from_new}))
        order by n.id
        on conflict (id) do update set
            device_pattern = excluded.device_pattern, sensor_pattern = excluded.sensor_pattern,
            kind = excluded.kind, value = excluded.value, value_text = excluded.value_text,
            window_sec = excluded.window_sec, hysteresis = excluded.hysteresis,
            debounce_count = excluded.debounce_count, debounce_sec = excluded.debounce_sec,
            severity = excluded.severity, enabled = excluded.enabled, sensor_id = excluded.sensor_id
        where {differs_from_excluded}
        returning t.xmax = 0 as inserted
    )
    select count(*) filter (where inserted), count(*) filter (where not inserted) from merged
    """
).format(
    columns=_COLUMNS,
    differs_from_new=_DIFFERS.format(new=sql.Identifier("n")),
    differs_from_excluded=_DIFFERS.format(new=sql.Identifier("excluded")),
)
_DELETE_OTHERS = """
    delete from thresholds as t where not exists (select from sluice_rules as n where n.id = t.id)
"""
_LIST = sql.SQL(
    """
    select {columns}, coalesce(a.active, 0)
    from thresholds as t
    left join (
        select threshold_id, count(*) as active from alerts where status = 'active' group by threshold_id
    ) as a on a.threshold_id = t.id
    where {chosen}
    order by device_pattern, sensor_pattern, kind, severity, id
    """
)
_EVERY = sql.SQL("%(pattern)s::text is null")
_WRITTEN_SO = sql.SQL("device_pattern like %(pattern)s")
_WATCHING = sql.SQL("device_pattern like %(pattern)s or %(device)s like {operand}").format(
    operand=sql.SQL(like_of("device_pattern"))
)
_BY_ID = sql.SQL("delete from thresholds where id = any(%(ids)s) returning {columns}").format(
    columns=_COLUMNS
)
_BY_PATTERNS = sql.SQL(
    """
    delete from thresholds
    where device_pattern like %(device)s and sensor_pattern like %(sensor)s returning {columns}
    """
).format(columns=_COLUMNS)
_MATCHING_SERIES = sql.SQL(
    "select count(*) from series where device_id like %(device)s and sensor_type like %(sensor)s"
)


class Counts(NamedTuple):
    """What became of rules that were put in."""

    inserted: int
    changed: int
    unchanged: int
    deleted: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self._asdict().items())


class Listed(NamedTuple):
    """A rule, and the number of its alerts that are active."""

    rule: Definition
    active: int


def put(connection: BoundedConnection, rules: Sequence[Definition], *, replace: bool = False) -> Counts:
    """Insert or change `rules`, whose ids differ; `replace` deletes all others.

    In the caller's transaction.
    """
    connection.execute(_ONE_AT_A_TIME)
    connection.execute(_STAGE)
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for rule in rules:
            copy.write_row(rule)
    connection.execute(_ANALYZE)
    inserted, changed = _only_row(connection, _MERGE)
    deleted = connection.execute(_DELETE_OTHERS).rowcount if replace else 0
    return Counts(inserted, changed, len(rules) - inserted - changed, deleted)


def listed(connection: BoundedConnection, device: str | None = None) -> Iterator[Listed]:
    """Rules in the order of their patterns, page by page. In the caller's transaction.

    `device`: those whose device pattern is written so; for one without wildcards those that watch it too.
    """
    chosen = _EVERY if device is None else _WATCHING if is_literal(device) else _WRITTEN_SO
    parameters = {"pattern": None if device is None else like(device), "device": device}
    with connection.cursor(name="sluice_rules") as cursor:
        cursor.itersize = _PAGE
        for row in cursor.execute(_LIST.format(columns=_COLUMNS, chosen=chosen), parameters):
            yield Listed(_definition(row[:-1]), row[-1])


def delete(connection: BoundedConnection, ids: Sequence[str]) -> list[Definition]:
    """Delete rules by id; answers those that there were."""
    rows = connection.execute(_BY_ID, {"ids": list(ids)}).fetchall()
    return sorted(_definition(row) for row in rows)


def delete_matching(connection: BoundedConnection, device: str, sensor: str) -> list[Definition]:
    """Delete the rules whose patterns, as they are written, match; answers them."""
    rows = connection.execute(_BY_PATTERNS, {"device": like(device), "sensor": like(sensor)}).fetchall()
    return sorted(_definition(row) for row in rows)


def matching_series(connection: BoundedConnection, device: str, sensor: str) -> int:
    """How many registered series the patterns match."""
    count, *_ = _only_row(connection, _MATCHING_SERIES, {"device": like(device), "sensor": like(sensor)})
    return int(count)


def _only_row(
    connection: BoundedConnection,
    query: sql.SQL | sql.Composed | str,
    parameters: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    (row,) = connection.execute(query, parameters).fetchall()
    return tuple(row)


def _definition(row: Sequence[Any]) -> Definition:
    found = Definition(*row)
    return found._replace(kind=Kind(found.kind), severity=Severity(found.severity))
