"""Rollups: the readings summed up by minute, hour and day, and how long each is kept.

Revision: 0004_rollups, after 0003_thresholds.
Which release may run before and after it: workers of the release before go on undisturbed, but what they
store late is not summed up: stop them before workers of this release start (docs/rollups.md).

On TimescaleDB these are continuous aggregates, each made from the one before; elsewhere, and on its
Apache edition, they are tables that workers keep. Nothing is summed up here: that is done afterwards, step
by step.

Sums leave out numbers beyond 1e290: an overflow would end a background job, or a worker's step, for ever.
"""

from __future__ import annotations

from alembic import context, op

revision = "0004_rollups"
down_revision = "0003_thresholds"
branch_labels = None
depends_on = None

LEVELS = ("minute", "hour", "day")
# How often TimescaleDB looks for what to sum up, how much it leaves alone at the new end, and how many
# buckets it does in one transaction.
REFRESH = {
    "minute": ("1 minute", "5 minutes", 1440),
    "hour": ("10 minutes", "1 hour", 240),
    "day": ("1 hour", "1 day", 30),
}


def upgrade() -> None:
    settings = context.config.attributes["settings"]
    _state()
    tables = " ".join(_table(level) for level in LEVELS)
    if not settings.enable_timescale:
        op.execute(tables)
        op.execute("insert into rollup_state (keeper) values ('workers')")
        return
    op.execute(
        f"""
        do $$
        begin
            if current_setting('timescaledb.license') = 'timescale' then
                {" ".join(_aggregate(level, settings.table_name) for level in LEVELS)}
                insert into rollup_state (keeper) values ('timescaledb');
            else
                {tables}
                insert into rollup_state (keeper) values ('workers');
                raise warning using message = 'TimescaleDB runs with the '
                    || current_setting('timescaledb.license')
                    || ' license: no continuous aggregates; workers keep the rollups in tables';
            end if;
        end $$
        """
    )
    op.execute(_policies(settings.table_name, settings.columnstore_after_days))


def _state() -> None:
    op.execute(
        """
        create table rollup_state (
            keeper text not null,
            late_before timestamptz,
            rolled_before timestamptz,
            target timestamptz,
            after_device text collate "C" not null default '',
            after_sensor text collate "C" not null default '',
            constraint rollup_state_pkey primary key (keeper),
            constraint rollup_state_keeper_known check (keeper in ('workers', 'timescaledb'))
        ) with (fillfactor = 10)
        """
    )
    op.execute(
        """
        create table rollup_dirty (
            device_id varchar(100) collate "C" not null,
            sensor_type varchar(100) collate "C" not null,
            hour timestamptz not null
        )
        """
    )
    op.execute("create index rollup_dirty_series on rollup_dirty (device_id, sensor_type, hour)")
    op.execute(
        """
        create table retention (
            level text not null,
            days integer,
            complete_from timestamptz,
            constraint retention_pkey primary key (level),
            constraint retention_level_known check (level in ('raw', 'minute', 'hour', 'day')),
            constraint retention_days_positive check (days >= 0)
        )
        """
    )
    op.execute(
        "insert into retention (level, days) values ('raw', null), ('minute', 0), ('hour', 0), ('day', 0)"
    )


def _table(level: str) -> str:
    return f"""
        create table readings_{level} (
            bucket timestamptz not null,
            device_id varchar(100) collate "C" not null,
            sensor_type varchar(100) collate "C" not null,
            count bigint not null,
            sum double precision,
            min double precision not null,
            max double precision not null,
            first double precision not null,
            last double precision not null,
            constraint readings_{level}_pkey primary key (device_id, sensor_type, bucket)
        ) partition by range (bucket);
    """


def _aggregate(level: str, table: str) -> str:
    if level == "minute":
        source, time, where = f'"{table}"', '"timestamp"', "where value is not null"
        columns = """
            count(value) as count,
            case when max(abs(value)) < 1e290 then sum(value) filter (where abs(value) < 1e290) end as sum,
            min(value) as min, max(value) as max,
            first(value, "timestamp") as first, last(value, "timestamp") as last
        """
    else:
        source, time, where = f"readings_{LEVELS[LEVELS.index(level) - 1]}", "bucket", ""
        columns = """
            sum(count)::bigint as count,
            case when bool_and(sum is not null) and max(abs(sum)) < 1e290
                then sum(sum) filter (where abs(sum) < 1e290) end as sum,
            min(min) as min, max(max) as max, first(first, bucket) as first, last(last, bucket) as last
        """
    return f"""
        execute $view$
            create materialized view readings_{level}
            with (timescaledb.continuous, timescaledb.materialized_only = true,
                timescaledb.create_group_indexes = false) as
            select time_bucket(interval '1 {level}', {time}) as bucket, device_id, sensor_type, {columns}
            from {source} {where}
            group by time_bucket(interval '1 {level}', {time}), device_id, sensor_type
            with no data
        $view$;
        create index readings_{level}_series on readings_{level} (device_id, sensor_type, bucket);
    """


def _policies(table: str, columnstore_after_days: int) -> str:
    """The minutes are refreshed as far back as readings are kept, no further: what is summed up of dropped
    readings must not be summed up again.
    """
    store = {
        "minute": columnstore_after_days,
        "hour": columnstore_after_days and max(30, columnstore_after_days),
    }
    steps = []
    for level, (every, end, buckets) in REFRESH.items():
        start = "raw_kept" if level == "minute" else "null::interval"
        plain = f"""
            perform add_continuous_aggregate_policy('readings_{level}', start_offset => {start},
                end_offset => interval '{end}', schedule_interval => interval '{every}'"""
        steps.append(
            f"""
            if in_batches then
                {plain}, buckets_per_batch => {buckets}, max_batches_per_execution => 20);
            else
                {plain});
            end if;
            """
        )
        if store.get(level):
            steps.append(
                f"""
                execute 'alter materialized view readings_{level}
                    set (timescaledb.enable_columnstore = true)';
                call add_columnstore_policy('readings_{level}', after => interval '{store[level]} days',
                    if_not_exists => true);
                """
            )
    return f"""
        do $$
        declare
            raw_kept interval;
            in_batches boolean;
        begin
            if current_setting('timescaledb.license') <> 'timescale' then return; end if;
            select (config ->> 'drop_after')::interval into raw_kept from timescaledb_information.jobs
            where proc_name = 'policy_retention' and hypertable_name = '{table}';
            select coalesce(bool_or('buckets_per_batch' = any(proargnames)), false) into in_batches
            from pg_proc where proname = 'add_continuous_aggregate_policy';
            {" ".join(steps)}
        end $$
    """


def downgrade() -> None:
    """Drops the rollups: of readings that were dropped, they were all that was left."""
    op.execute(
        """
        do $$
        begin
            if exists (
                select from pg_class where oid = to_regclass('readings_minute') and relkind = 'v'
            ) then
                drop materialized view readings_day;
                drop materialized view readings_hour;
                drop materialized view readings_minute;
            else
                drop table readings_minute, readings_hour, readings_day;
            end if;
        end $$
        """
    )
    op.execute("drop table rollup_state, rollup_dirty, retention")
