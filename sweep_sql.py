"""Every statement of the sweep, named."""

from __future__ import annotations

from psycopg import sql

# Open alerts behind which no rule stands any more, or whose series is switched off. Locked in the order of
# keys, whatever their status: batches lock theirs in that order too.
LOCK_ORPHANS = """
    select a.id from alerts a
    where a.status <> 'resolved' and (
        not exists (
            select from thresholds t
            where t.id = a.threshold_id and t.enabled and t.kind = a.threshold_type
              and a.device_id like sluice_like(t.device_pattern)
              and a.sensor_type like sluice_like(t.sensor_pattern)
        ) or exists (
            select from series s
            where s.device_id = a.device_id and s.sensor_type = a.sensor_type and not s.active
        )
    )
    order by a.threshold_id collate "C", a.device_id, a.sensor_type for update of a
"""
RESOLVE_ORPHANS = """
    update alerts set
        status = 'resolved', resolved_at = greatest(now(), created_at), resolved_due = %(due)s
    where id = any(%(ids)s) and status = 'active'
"""
DROP_ORPHANS = "delete from alerts where id = any(%(ids)s) and status = 'pending'"
# How far the listening goes, and the last time that nobody listened.
LISTENED = """
    update duties set
        gap_began = case when gap then done_until else gap_began end,
        gap_ended = case when gap then until else gap_ended end,
        done_until = greatest(done_until, until)
    from (
        select name as duty, until,
            coalesce(until - done_until > make_interval(secs => %(gap)s), false) as gap
        from duties, cast(now() - make_interval(secs => %(behind)s) as timestamptz) as until
        where name = %(duty)s
    ) as listened
    where name = duty
"""
# A rule that names a series which never sent anything counts from when the rule was made. The time in which
# nobody listened does not count, as far as the last such gap goes.
SILENT = """
    with watched as (
        select t.id, t.value, t.device_pattern as device_id, t.sensor_pattern as sensor_type,
            coalesce(s.last_seen, t.created_at) as since
        from thresholds t left join series s
            on s.device_id = t.device_pattern and s.sensor_type = t.sensor_pattern
        where t.kind = 'silence' and t.enabled and (t.device_pattern || t.sensor_pattern) !~ '[*?]'
          and coalesce(s.active, true)
        union all
        select t.id, t.value, s.device_id, s.sensor_type, s.last_seen
        from thresholds t join series s on s.device_id like sluice_like(t.device_pattern)
            and s.sensor_type like sluice_like(t.sensor_pattern)
        where t.kind = 'silence' and t.enabled and (t.device_pattern || t.sensor_pattern) ~ '[*?]'
          and s.active and s.last_seen is not null
    )
    select w.id, w.device_id, w.sensor_type, w.since
    from watched w, duties l, cast(now() - make_interval(secs => %(behind)s) as timestamptz) as until
    where l.name = %(duty)s
      and extract(epoch from until - w.since) - greatest(0, coalesce(
            extract(epoch from l.gap_ended - greatest(w.since, l.gap_began)), 0)) > w.value
      and not exists (
        select from alerts a
        where a.threshold_id = w.id and a.device_id = w.device_id and a.sensor_type = w.sensor_type
          and a.status <> 'resolved'
      )
"""
# What is measured is how long it has been silent, in seconds. The registry may be a second behind: a
# reading that is stored already and newer than the registry knows means that the series is not silent.
OPEN_SILENCE = sql.SQL(
    """
    insert into alerts (
        id, threshold_id, sensor_id, device_id, sensor_type, place_id, threshold_type, severity,
        threshold_value, status, value, last_value, peak_value, first_time, last_time, created_at,
        created_due
    )
    select %(id)s, t.id, t.sensor_id, %(device)s, %(sensor)s, coalesce(d.owner, ''), t.kind, t.severity,
        t.value, 'active', silent, silent, silent, %(first)s, %(first)s, now(), %(due)s
    from thresholds t
    left join devices d on d.device_id = %(device)s
    left join series s on s.device_id = %(device)s and s.sensor_type = %(sensor)s,
        cast(extract(epoch from now() - %(first)s::timestamptz) as float8) as silent
    where t.id = %(rule)s and not exists (
        select from {table} r
        where r.device_id = %(device)s and r.sensor_type = %(sensor)s
          and r."timestamp" > coalesce(s.last_time, '1970-01-01Z') and r.created_at > %(first)s
    )
    on conflict do nothing  -- the same silence was told, and its end too: the registry has not heard of it
    """
)
