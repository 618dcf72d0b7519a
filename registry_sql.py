"""Every statement on the tables `series` and `devices` that a worker runs, named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from psycopg import sql

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The registry holds whatever was ever heard of: what it knows is asked for within bounds.
SERIES_HEARD = """
    select device_id, sensor_type from series where last_seen > now() - interval '1 day'
    order by last_seen desc limit %(most)s
"""
INACTIVE = "select device_id, sensor_type from series where not active"
OWNERS_HEARD = """
    select device_id, owner from devices where owner <> '' and last_seen > now() - interval '10 minutes'
    order by last_seen desc limit %(most)s
"""
THESE_SERIES = """
    select device_id, sensor_type, active from series
    where (device_id, sensor_type) in (select * from unnest(%(devices)s::text[], %(sensors)s::text[]))
"""
DEVICES_HEARD = "select count(*) from devices where last_seen > now() - interval '1 day'"
# Sorted, so that workers which write the same series wait for each other in turn. A value older than the
# one that is there stays out, whoever comes last. An owner is given only where it has changed; a new series
# takes its device's. When it was seen is told by the database's clock.
UPSERT_SERIES = """
    insert into series as s (
        device_id, sensor_type, owner, last_seen, last_time, last_value, last_value_text
    )
    select device, sensor, coalesce(nullif(noted.owner, ''), d.owner, ''), now(), moment, value, value_text
    from unnest(
        %(devices)s::text[], %(sensors)s::text[], %(owners)s::text[], %(times)s::timestamptz[],
        %(values)s::float8[], %(texts)s::text[]
    ) as noted (device, sensor, owner, moment, value, value_text)
    left join devices d on d.device_id = device
    order by device collate "C", sensor collate "C"
    on conflict (device_id, sensor_type) do update set
        owner = case when excluded.owner = '' then s.owner else excluded.owner end,
        last_seen = greatest(s.last_seen, excluded.last_seen),
        last_time = greatest(s.last_time, excluded.last_time),
        last_value = case when excluded.last_time >= coalesce(s.last_time, '-infinity')
            then excluded.last_value else s.last_value end,
        last_value_text = case when excluded.last_time >= coalesce(s.last_time, '-infinity')
            then excluded.last_value_text else s.last_value_text end
"""
UPSERT_DEVICES = """
    insert into devices as d (device_id, owner, last_seen, status, status_time)
    select device, owner, now(), status, status_time
    from unnest(
        %(devices)s::text[], %(owners)s::text[], %(statuses)s::text[], %(times)s::timestamptz[]
    ) as noted (device, owner, status, status_time)
    order by device collate "C"
    on conflict (device_id) do update set
        owner = case when excluded.owner = '' then d.owner else excluded.owner end,
        last_seen = greatest(d.last_seen, excluded.last_seen),
        status = case when excluded.status_time >= coalesce(d.status_time, '-infinity')
            then excluded.status else d.status end,
        status_time = greatest(d.status_time, excluded.status_time)
"""
# One page of the registry against the readings: what is newer there was stored by a worker that ended
# before it could write it here. What is newer than some seconds, its worker will still write itself. When
# it was stored is when it came, or silence would count from before it.
REPAIR = sql.SQL(
    """
    with page as (
        select device_id, sensor_type, last_time from series
        where (device_id, sensor_type) > (%(device)s::text collate "C", %(sensor)s::text collate "C")
        order by device_id, sensor_type limit %(most)s
    ), newer as (
        select page.device_id, page.sensor_type, found."timestamp", found.value, found.value_text,
            found.created_at
        from page, lateral (
            select r."timestamp", r.value, r.value_text, r.created_at from {table} r
            where r.device_id = page.device_id and r.sensor_type = page.sensor_type
              and r."timestamp" > coalesce(page.last_time, '1970-01-01Z') and r."timestamp" > {recent}
            order by r."timestamp" desc, r.message_id desc limit 1
        ) found
        where found.created_at < now() - make_interval(secs => %(settled)s)
    ), locked as (
        select s.device_id, s.sensor_type from series s join newer using (device_id, sensor_type)
        order by s.device_id, s.sensor_type for update of s
    ), repaired as (
        update series s set
            last_time = newer."timestamp", last_value = newer.value, last_value_text = newer.value_text,
            last_seen = greatest(s.last_seen, newer.created_at)
        from newer join locked using (device_id, sensor_type)
        where s.device_id = newer.device_id and s.sensor_type = newer.sensor_type
          and newer."timestamp" > coalesce(s.last_time, '-infinity')
        returning 1
    )
    select (select count(*) from page), (select count(*) from repaired),
        (select device_id from page order by device_id desc, sensor_type desc limit 1),
        (select sensor_type from page order by device_id desc, sensor_type desc limit 1)
    """
)


def moment(micros: int) -> datetime:
    """Microseconds since 1970 UTC as PostgreSQL takes them."""
    return _EPOCH + timedelta(microseconds=micros)
