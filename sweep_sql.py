"""Every statement of the sweep, named."""

from __future__ import annotations

from psycopg import sql

# Alerts behind which no rule stands any more, or whose series is switched off, locked in the order of their
# keys, all in one statement, as batches lock them.
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
# Without rules about silence nobody needs to listen, and nothing is written.
LONGEST_SILENCE = "select max(value) from thresholds where kind = 'silence' and enabled"
# How far the listening goes, and when nobody listened: gaps are kept for a month longer than the longest
# silence asks. The time before the process listened that says so is such a gap too; so is all before
# anybody listened.
LISTENED = """
    update duties set
        gaps = coalesce((
            select range_agg(one)
            from unnest(gaps + case when gap then
                tstzmultirange(tstzrange(coalesce(done_until, '-infinity'), until)) else '{}' end) as one
            where upper(one) > until - make_interval(days => 31, secs => %(longest)s)
        ), '{}'),
        done_until = greatest(done_until, until)
    from (
        select name as duty, until, until > coalesce(done_until, '-infinity') and coalesce(
                until - done_until > make_interval(secs => %(gap)s)
                or done_until < now() - make_interval(secs => %(listens)s), true) as gap
        from duties, cast(now() - make_interval(secs => %(behind)s) as timestamptz) as until
        where name = %(duty)s
    ) as listened
    where name = duty
"""
# Patterns are turned once a rule, not once a series; a name without wildcard is compared as it is. A rule
# that names a series which never sent anything counts from when the rule was made. The time in which nobody
# listened does not count. A silence whose end was told is over, also when the registry has not heard of it.
SILENT = sql.SQL(
    """
    with rules as materialized (
        select id, value, created_at, device_pattern as device, sensor_pattern as sensor,
            sluice_like(device_pattern) as device_like, sluice_like(sensor_pattern) as sensor_like,
            device_pattern ~ '[*?]' as any_device, sensor_pattern ~ '[*?]' as any_sensor
        from thresholds where kind = 'silence' and enabled
    ), watched as (
        select r.id, r.value, r.device as device_id, r.sensor as sensor_type,
            coalesce(s.last_seen, r.created_at) as since
        from rules r left join series s on s.device_id = r.device and s.sensor_type = r.sensor
        where not any_device and not any_sensor and coalesce(s.active, true)
        union all
        select r.id, r.value, s.device_id, s.sensor_type, s.last_seen
        from rules r join series s on s.device_id = r.device and s.sensor_type like r.sensor_like
        where not any_device and any_sensor and s.active
        union all
        select r.id, r.value, s.device_id, s.sensor_type, s.last_seen
        from rules r join series s on s.sensor_type = r.sensor and s.device_id like r.device_like
        where any_device and not any_sensor and s.active
        union all
        select r.id, r.value, s.device_id, s.sensor_type, s.last_seen
        from rules r join series s on s.device_id like r.device_like and s.sensor_type like r.sensor_like
        where any_device and any_sensor and s.active
    ), silent as (
        select w.* from watched w, duties l,
            cast(now() - make_interval(secs => %(behind)s) as timestamptz) as until
        where l.name = %(duty)s and until - w.since > make_interval(secs => w.value)
          and extract(epoch from until - w.since) - coalesce((
            select sum(extract(epoch from upper(gap) - lower(gap)))
            from unnest(l.gaps * tstzmultirange(tstzrange(least(w.since, until), until))) as gap
          ), 0) > w.value
          and not exists (
            select from alerts a
            where a.device_id = w.device_id and a.sensor_type = w.sensor_type and a.threshold_id = w.id
              and (a.status <> 'resolved' or (a.first_time = w.since and a.last_time > a.first_time))
          )
    )
"""
)
IS_ANY_SILENT = SILENT + sql.SQL("select exists (select from silent)")
# What is measured is how long it has been silent, in seconds. The registry may be a second behind: a
# reading that is stored already and newer than the registry knows means that the series is not silent.
OPEN_SILENCES = sql.SQL(
    """
    {silent}
    insert into alerts (
        id, threshold_id, sensor_id, device_id, sensor_type, place_id, threshold_type, severity,
        threshold_value, status, value, last_value, peak_value, first_time, last_time, created_at,
        created_due
    )
    select gen_random_uuid(), t.id, t.sensor_id, w.device_id, w.sensor_type, coalesce(d.owner, ''), t.kind,
        t.severity, t.value, 'active', seconds, seconds, seconds, w.since, w.since, now(), %(due)s
    from silent w join thresholds t on t.id = w.id
    left join devices d on d.device_id = w.device_id
    left join series s on s.device_id = w.device_id and s.sensor_type = w.sensor_type,
        cast(extract(epoch from now() - w.since) as float8) as seconds
    where not exists (
        select from {table} r
        where r.device_id = w.device_id and r.sensor_type = w.sensor_type
          and r."timestamp" > coalesce(s.last_time, '1970-01-01Z') and r.created_at > w.since
          and r."timestamp" > {recent}
    )
    order by w.id collate "C", w.device_id, w.sensor_type limit %(most)s
    on conflict do nothing
    """
)
