"""Every statement of the rollups that workers keep, named.

Bounds in time are written out, so that no partition outside of them is planned for, opened or locked.
"""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

# What a batch asks after its rows are in: which of them are late, and whether workers keep the rollups.
LATE_BEFORE: LiteralString = """
    select (extract(epoch from late_before) * 1000000)::bigint, keeper = 'workers' from rollup_state
"""
NOTE_LATE: LiteralString = """
    insert into rollup_dirty (device_id, sensor_type, hour)
    select device, sensor, to_timestamp(hour * 3600)
    from unnest(%(devices)b::text[], %(sensors)b::text[], %(hours)b::bigint[])
        as late (device, sensor, hour)
"""
IS_KEPT_BY_WORKERS = "select exists (select from rollup_state where keeper = 'workers')"

# A plan with a hash or a scan of a whole partition would take seconds where a table was never analyzed.
TUNE = """
    select set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
        set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
        set_config('max_parallel_workers_per_gather', '0', true)
"""
# Whoever has this row locked rolls; others come back later.
STATE = """
    select late_before, rolled_before, target, after_device, after_sensor,
        date_bin('1 minute', now() - make_interval(secs => %(lag)s), '1970-01-01Z')
    from rollup_state where keeper = 'workers' for update skip locked
"""
BEGIN_AT = "update rollup_state set late_before = %(at)s, rolled_before = %(at)s"
MOVE_LATE = "update rollup_state set late_before = %(until)s"
PAGE_DONE = """
    update rollup_state
    set target = %(target)s, after_device = %(device)s, after_sensor = %(sensor)s
"""
TARGET_REACHED = """
    update rollup_state
    set rolled_before = %(target)s, target = null, after_device = '', after_sensor = ''
"""
# Transactions that have written to the readings and not ended. Each has asked for LATE_BEFORE after it took
# this lock, or will.
WRITERS = """
    select virtualtransaction from pg_locks
    where locktype = 'relation' and relation = to_regclass(quote_ident(%(table)s))
      and database = (select oid from pg_database where datname = current_database())
      and mode = 'RowExclusiveLock' and pid is distinct from pg_backend_pid()
"""
# Where the readings' partitions or chunks begin and end.
PARTITION_BOUNDS = r"""
    select min(bound), max(bound) from (
        select oid,
            (regexp_matches(pg_get_expr(relpartbound, oid), '''([^'']+)''', 'g'))[1]::timestamptz as bound
        from pg_inherits join pg_class on oid = inhrelid
        where inhparent = to_regclass(quote_ident(%(table)s))
    ) as bounds where bound < '9999-01-01Z' group by oid having count(*) = 2
"""
CHUNK_BOUNDS = """
    select range_start, range_end from timescaledb_information.chunks
    where format('%%I.%%I', hypertable_schema, hypertable_name)::regclass
        = to_regclass(quote_ident(%(table)s)) and range_end < '9999-01-01Z'
"""
HAS_CHUNKS = "select exists (select from pg_extension where extname = 'timescaledb')"

# The series of some days, from one to the next by the primary key: the registry may be a moment behind.
PAGE = sql.SQL(
    """
    with recursive page as (
        (select r.device_id, r.sensor_type, 1 as n from {table} r
         where (r.device_id, r.sensor_type) > (%(device)s::text, %(sensor)s::text)
           and r."timestamp" >= {low} and r."timestamp" < {high}
         order by r.device_id, r.sensor_type limit 1)
        union all
        select next.device_id, next.sensor_type, page.n + 1
        from page cross join lateral (
            select r.device_id, r.sensor_type from {table} r
            where (r.device_id, r.sensor_type) > (page.device_id, page.sensor_type)
              and r."timestamp" >= {low} and r."timestamp" < {high}
            order by r.device_id, r.sensor_type limit 1
        ) as next
        where page.n < %(most)s
    )
    select device_id::text, sensor_type::text from page
    """
)
# Each series with a range of its own, in columns.
_WANTED = """
    unnest(%(devices)s::text[], %(sensors)s::text[], %(lows)s::timestamptz[], %(highs)s::timestamptz[])
        as k (device, sensor, low, high)
"""
DELETE = sql.SQL(
    """
    delete from {target} t using {wanted}
    where t.device_id = k.device and t.sensor_type = k.sensor and t.bucket >= k.low and t.bucket < k.high
      and t.bucket >= {low} and t.bucket < {high}
    """
)
_PUT = """
    on conflict (device_id, sensor_type, bucket) do update set
        count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max,
        first = excluded.first, last = excluded.last
"""
# Of readings of one time the one with the lowest message id is first, the one with the highest last.
# Numbers that cannot be added up leave the sum out (0004_rollups).
MINUTES = sql.SQL(
    """
    insert into readings_minute (device_id, sensor_type, bucket, count, sum, min, max, first, last)
    select k.device, k.sensor, b.* from {wanted} cross join lateral (
        select date_bin('1 minute', r."timestamp", '1970-01-01Z') as bucket, count(*),
            case when max(abs(r.value)) < 1e290 then sum(r.value) filter (where abs(r.value) < 1e290) end,
            min(r.value), max(r.value),
            (array_agg(r.value order by r."timestamp", r.message_id))[1],
            (array_agg(r.value order by r."timestamp", r.message_id))[count(*)::int]
        from {table} r
        where r.device_id = k.device and r.sensor_type = k.sensor and r."timestamp" >= k.low
          and r."timestamp" < k.high and r."timestamp" >= {low} and r."timestamp" < {high}
          and r.value is not null
        group by 1
    ) as b
    {put}
    """
)
COARSER = sql.SQL(
    """
    insert into {target} (device_id, sensor_type, bucket, count, sum, min, max, first, last)
    select k.device, k.sensor, b.* from {wanted} cross join lateral (
        select date_bin({width}, f.bucket, '1970-01-01Z') as bucket, sum(f.count)::bigint,
            case when bool_and(f.sum is not null) and max(abs(f.sum)) < 1e290
                then sum(f.sum) filter (where abs(f.sum) < 1e290) end,
            min(f.min), max(f.max),
            (array_agg(f.first order by f.bucket))[1], (array_agg(f.last order by f.bucket))[count(*)::int]
        from {source} f
        where f.device_id = k.device and f.sensor_type = k.sensor and f.bucket >= k.low
          and f.bucket < k.high and f.bucket >= {low} and f.bucket < {high}
        group by 1
    ) as b
    {put}
    """
)
WANTED, PUT = sql.SQL(_WANTED), sql.SQL(_PUT)

# Hours that late readings, or deletions, have made wrong: some of them, each once, and gone from the list.
# What is noted while they are summed up again stays on it.
TAKE_DIRTY = """
    with picked as (
        select distinct device_id, sensor_type, hour from (
            select device_id, sensor_type, hour from rollup_dirty
            where (device_id, sensor_type, hour) > (%(device)s, %(sensor)s, %(hour)s)
            order by device_id, sensor_type, hour limit %(notes)s
        ) as first
        order by device_id, sensor_type, hour limit %(most)s
    ), taken as (
        delete from rollup_dirty d using picked s
        where d.device_id = s.device_id and d.sensor_type = s.sensor_type and d.hour = s.hour
    )
    select device_id::text, sensor_type::text, hour from picked order by device_id, sensor_type, hour
"""
ROLLED_BEFORE = "select rolled_before from rollup_state where keeper = 'workers'"
RAW_COMPLETE_FROM = "select complete_from from retention where level = 'raw'"

# Retention. What is older than `complete_from` may be incomplete: it was dropped, or is about to be.
TODAY = "select (now() at time zone 'utc')::date"
RETENTION = "select level, days, complete_from from retention"
OLDEST_DIRTY = "select min(hour) from rollup_dirty where hour >= coalesce(%(after)s, '-infinity')"
COMPLETE_FROM = """
    update retention set complete_from = greatest(complete_from, %(at)s)
    where level = %(level)s and complete_from is distinct from greatest(complete_from, %(at)s)
"""
ROLLUP_PARTITIONS = r"""
    select relname::text,
        (regexp_matches(pg_get_expr(relpartbound, oid), 'TO \(''([^'']+)'''))[1]::timestamptz
    from pg_inherits join pg_class on oid = inhrelid
    where inhparent = to_regclass(quote_ident(%(table)s))
"""
DROP = sql.SQL("drop table {partition}")
# Made apart and then attached, which locks no reader out. Only whoever has the row of STATE does it.
MAKE_PARTITIONS = sql.SQL(
    """
    do $make$
    declare
        part record;
    begin
        for part in select * from unnest({parents}::text[], {names}::text[], {lows}::timestamptz[],
            {highs}::timestamptz[]) as part (parent, name, low, high)
        loop
            if to_regclass(part.name) is null then
                execute format('create table %I (like %I including defaults including constraints'
                    ' including indexes)', part.name, part.parent);
                execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                    part.parent, part.name, part.low, part.high);
            end if;
        end loop;
    end
    $make$
    """
)
