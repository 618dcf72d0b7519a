"""The readings: a hypertable with columnstore and retention, or a table with daily partitions.

Revision: 0001_readings, the first.
Which release may run before and after it: none before; any after.

What the server has is asked on the server, in DO blocks, so that `./migrate.sh sql` prints the same
statements that an upgrade runs.
"""

from __future__ import annotations

from alembic import context, op

revision = "0001_readings"
down_revision = None
branch_labels = None
depends_on = None

COLUMNS = """
    "timestamp" timestamptz not null,
    device_id varchar(100) collate "C" not null,
    sensor_type varchar(100) collate "C" not null,
    value double precision,
    value_text text,
    metadata jsonb,
    message_id uuid not null,
    created_at timestamptz not null default now(),
"""


def upgrade() -> None:
    settings = context.config.attributes["settings"]
    table = f'"{settings.table_name}"'
    constraints = f"""
    constraint "{settings.table_name}_pkey" primary key (device_id, sensor_type, "timestamp", message_id),
    constraint "{settings.table_name}_one_value" check (num_nonnulls(value, value_text) = 1)
    """
    if not settings.enable_timescale:
        op.execute(f'create table {table} ({COLUMNS} {constraints}) partition by range ("timestamp")')
        return
    op.execute("create extension if not exists timescaledb")
    op.execute(f"create table {table} ({COLUMNS} {constraints})")
    op.execute(
        f"""
        select create_hypertable('{table}', by_range('timestamp',
            interval '{settings.chunk_interval_hours} hours'), create_default_indexes => false)
        """
    )
    _policies(table, settings.columnstore_after_days, settings.retention_days)


def _policies(table: str, columnstore_after_days: int, retention_days: int) -> None:
    """Columnstore and retention, where the edition has them: the Apache edition has no background jobs."""
    steps = []
    if columnstore_after_days:
        steps.append(
            f"""
            alter table {table} set (timescaledb.enable_columnstore,
                timescaledb.segmentby = 'device_id, sensor_type',
                timescaledb.orderby = '"timestamp" desc, message_id');
            call add_columnstore_policy('{table}', after => interval '{columnstore_after_days} days',
                if_not_exists => true);
            """
        )
    if retention_days:
        steps.append(f"perform add_retention_policy('{table}', interval '{retention_days} days');")
    if not steps:
        return
    op.execute(
        f"""
        do $$
        begin
            if current_setting('timescaledb.license') = 'timescale' then
                {" ".join(steps)}
            else
                -- no percent sign: the statements that `sql` prints would double it
                raise warning using message = 'TimescaleDB runs with the '
                    || current_setting('timescaledb.license')
                    || ' license: no columnstore, no retention policy';
            end if;
        end $$
        """
    )


def downgrade() -> None:
    """Drops the readings. The extension stays: other tables may use it."""
    settings = context.config.attributes["settings"]
    op.execute(f'drop table "{settings.table_name}"')
