"""The registry: which series and devices there are, and who of the workers has which duty.

Revision: 0002_registry, after 0001_readings.
Which release may run before and after it: the first release's workers go on undisturbed, they do not
know these tables; workers of this release need it.

Workers update these rows about once a second, so pages keep room for it and no changing column is
indexed: then an update moves nothing but the row.
"""

from __future__ import annotations

from alembic import op

revision = "0002_registry"
down_revision = "0001_readings"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table series (
            device_id varchar(100) collate "C" not null,
            sensor_type varchar(100) collate "C" not null,
            owner text not null default '',
            unit text,
            active boolean not null default true,
            first_seen timestamptz not null default now(),
            last_seen timestamptz,
            last_time timestamptz,
            last_value double precision,
            last_value_text text,
            constraint series_pkey primary key (device_id, sensor_type),
            constraint series_owner_length check (length(owner) <= 200),
            constraint series_times_finite check (isfinite(first_seen)
                and coalesce(isfinite(last_seen), true) and coalesce(isfinite(last_time), true))
        ) with (fillfactor = 70)
        """
    )
    op.execute(
        """
        create table devices (
            device_id varchar(100) collate "C" not null,
            owner text not null default '',
            status text,
            status_time timestamptz,
            first_seen timestamptz not null default now(),
            last_seen timestamptz,
            constraint devices_pkey primary key (device_id),
            constraint devices_status_known check (status in ('online', 'offline')),
            constraint devices_owner_length check (length(owner) <= 200)
        ) with (fillfactor = 70)
        """
    )
    op.execute(
        """
        create table duties (
            name text not null,
            holder text not null,
            held_until timestamptz not null,
            done_until timestamptz,
            gaps tstzmultirange not null default '{}',
            constraint duties_pkey primary key (name)
        )
        """
    )
    _announce_activity()


def _announce_activity() -> None:
    """Tell the workers about a series that was switched on or off, or removed. New ones they find, but for
    those that are off from the beginning.
    """
    op.execute(
        """
        create function sluice_announce_series() returns trigger language plpgsql as $$
        declare series series;
        begin
            series := case when tg_op = 'INSERT' then new else old end;
            perform pg_notify('sluice_series',
                json_build_array(series.device_id, series.sensor_type)::text);
            return null;
        end $$
        """
    )
    op.execute(
        """
        create trigger announce_inactive after insert on series for each row
        when (not new.active) execute function sluice_announce_series()
        """
    )
    op.execute(
        """
        create trigger announce_activity after update of active on series for each row
        when (old.active is distinct from new.active) execute function sluice_announce_series()
        """
    )
    op.execute(
        """
        create trigger announce_removal after delete on series for each row
        execute function sluice_announce_series()
        """
    )


def downgrade() -> None:
    """Drops what is known of series and devices; the readings stay."""
    op.execute("drop table series, devices, duties")
    op.execute("drop function sluice_announce_series()")
