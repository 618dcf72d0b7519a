"""Every statement on the table of alerts that judging a batch runs, named."""

from __future__ import annotations

import re

from psycopg import sql

# Of all advisory locks in the database: the class that partitions.py uses too, with numbers that are no
# table's oid.
LOCK_CLASS = 0x51C1CE
LOCK_NUMBER = 2

_ALERT = """
    id, threshold_id, device_id, sensor_type, status, value, value_text, last_value, last_value_text,
    peak_value, violations, first_time, last_time, last_message_id, created_at
"""

EVERYTHING_OPEN = sql.SQL(
    "select threshold_id, device_id, sensor_type from alerts where status <> 'resolved'"
)
OPEN_SINCE = sql.SQL(
    """
    select number, status <> 'resolved', threshold_id, device_id, sensor_type from alerts
    where number > %(seen)s
    """
)
# In the order of the key, so that two workers that want the same alerts wait for each other in turn.
FETCH_OPEN = sql.SQL(
    f"""
    select {_ALERT} from alerts
    where status <> 'resolved' and (threshold_id, device_id, sensor_type) in (
        select * from unnest(%(rules)s::text[], %(devices)s::text[], %(sensors)s::text[])
    )
    order by threshold_id collate "C", device_id, sensor_type for update
    """  # noqa: S608  a constant
)
# Bounds as literals, so that partitions and chunks outside are neither planned nor locked.
# As many as could all be of the batch itself, and one more.
NEWEST = sql.SQL(
    """
    select asked.device, asked.sensor, newest."timestamp", newest.message_id
    from unnest(%(devices)s::text[], %(sensors)s::text[], %(since)s::timestamptz[], %(most)s::int[])
        as asked (device, sensor, since, most),
    lateral (
        select r."timestamp", r.message_id from {table} r
        where r.device_id = asked.device and r.sensor_type = asked.sensor and r."timestamp" >= asked.since
          and r."timestamp" >= {earliest}
        order by r."timestamp" desc, r.message_id desc limit asked.most
    ) newest
    """
)
OLDEST_IN_WINDOW = sql.SQL(
    """
    select asked.number, past."timestamp", past.value
    from unnest(
        %(devices)s::text[], %(sensors)s::text[], %(begins)s::timestamptz[], %(ends)s::timestamptz[]
    ) with ordinality as asked (device, sensor, begins, ends, number),
    lateral (
        select r."timestamp", r.value from {table} r
        where r.device_id = asked.device and r.sensor_type = asked.sensor
          and r."timestamp" >= asked.begins and r."timestamp" < asked.ends and r.value is not null
          and r."timestamp" >= {earliest} and r."timestamp" < {latest}
        order by r."timestamp", r.message_id limit 1
    ) past
    """
)
# Any number of rows in one statement: each column is one array, so a thousand cost little more than one.
_ROWS = """
    unnest(
        %(id)s::uuid[], %(threshold_id)s::text[], %(sensor_id)s::text[], %(device_id)s::text[],
        %(sensor_type)s::text[], %(place_id)s::text[], %(threshold_type)s::text[], %(severity)s::text[],
        %(threshold_value)s::float8[], %(threshold_text)s::text[], %(status)s::text[], %(value)s::float8[],
        %(value_text)s::text[], %(last_value)s::float8[], %(last_value_text)s::text[],
        %(peak_value)s::float8[], %(violations)s::int[], %(first_time)s::timestamptz[],
        %(last_time)s::timestamptz[], %(last_message_id)s::uuid[], %(created_at)s::timestamptz[],
        %(resolved_at)s::timestamptz[]
    ) with ordinality as n (
        id, threshold_id, sensor_id, device_id, sensor_type, place_id, threshold_type, severity,
        threshold_value, threshold_text, status, value, value_text, last_value, last_value_text, peak_value,
        violations, first_time, last_time, last_message_id, created_at, resolved_at, place
    )
"""
COLUMNS = re.findall(r"%\((\w+)\)s::", _ROWS)
# An owner that the worker does not know the registry does: a worker knows those of the last minutes.
INSERT = sql.SQL(
    """
    insert into alerts (
        id, threshold_id, sensor_id, device_id, sensor_type, place_id, threshold_type, severity,
        threshold_value, threshold_text, status, value, value_text, last_value, last_value_text, peak_value,
        violations, first_time, last_time, last_message_id, created_at, resolved_at, created_due,
        resolved_due
    )
    select id, threshold_id, sensor_id, n.device_id, sensor_type,
        coalesce(nullif(place_id, ''), (select owner from devices d where d.device_id = n.device_id), ''),
        threshold_type, severity, threshold_value, threshold_text, status, value, value_text, last_value,
        last_value_text, peak_value, violations, first_time, last_time, last_message_id, created_at,
        resolved_at, %(publish)s and status <> 'pending', %(publish)s and status = 'resolved'
    from {rows} order by place
    on conflict (id) do nothing  -- its first reading was deleted once, and has come again
    """
).format(rows=sql.SQL(_ROWS))
UPDATE = sql.SQL(
    """
    update alerts a set
        status = n.status, value = n.value, value_text = n.value_text, last_value = n.last_value,
        last_value_text = n.last_value_text, peak_value = n.peak_value, violations = n.violations,
        last_time = n.last_time, last_message_id = n.last_message_id, created_at = n.created_at,
        resolved_at = n.resolved_at,
        created_due = a.created_due or (%(publish)s and a.status = 'pending' and n.status <> 'pending'),
        resolved_due = %(publish)s and n.status = 'resolved'
    from {rows} where a.id = n.id
    """
).format(rows=sql.SQL(_ROWS))
DELETE = sql.SQL("delete from alerts where id = any(%(ids)s)")
# How long it was silent, in seconds, is what was measured.
RESOLVE_SILENCE = sql.SQL(
    """
    update alerts set
        status = 'resolved', resolved_at = now(), resolved_due = %(due)s, last_time = now(),
        last_value = extract(epoch from now() - first_time),
        peak_value = extract(epoch from now() - first_time)
    where id = any(%(ids)s)
    """
)
