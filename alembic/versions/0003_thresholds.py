"""Thresholds and alerts, and what device events leave behind.

Revision: 0003_thresholds, after 0002_registry.
Which release may run before and after it: as 0002_registry.

`sluice_like` turns a glob, with `*` and `?`, into a pattern for LIKE; chr(37) is the percent sign, which
the statements that `./migrate.sh sql` prints would double, chr(92) the backslash.

The triggers stand on `thresholds` only, which changes rarely. None may stand on the readings.
"""

from __future__ import annotations

from alembic import op

revision = "0003_thresholds"
down_revision = "0002_registry"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create function sluice_like(glob text) returns text language sql immutable strict parallel safe
        return replace(replace(replace(replace(replace(glob, chr(92), repeat(chr(92), 2)),
            chr(37), chr(92) || chr(37)), '_', chr(92) || '_'), '*', chr(37)), '?', '_')
        """
    )
    _thresholds()
    _stamp_changes()
    _announce_changes()
    _alerts()
    op.execute(
        """
        create table applied_events (
            subject text not null,
            ms numeric(20) not null,
            rank smallint not null,
            seq numeric(20) not null,
            constraint applied_events_pkey primary key (subject)
        )
        """
    )
    op.execute(
        """
        create table device_deletions (
            device_id varchar(100) collate "C" not null,
            requested_at timestamptz not null default now(),
            constraint device_deletions_pkey primary key (device_id)
        )
        """
    )


def _thresholds() -> None:
    op.execute("create sequence thresholds_version")
    op.execute(
        """
        create table thresholds (
            id text not null,
            device_pattern text collate "C" not null,
            sensor_pattern text collate "C" not null,
            kind text not null,
            severity text not null default 'warning',
            value double precision,
            value_text text,
            window_sec double precision,
            hysteresis double precision not null default 0,
            debounce_count integer not null default 1,
            debounce_sec double precision not null default 0,
            enabled boolean not null default true,
            sensor_id text,
            created_at timestamptz not null default now(),
            updated_at timestamptz not null default now(),
            version bigint not null,
            constraint thresholds_pkey primary key (id),
            constraint thresholds_id_length check (length(id) between 1 and 100),
            constraint thresholds_device_pattern_length check (length(device_pattern) between 1 and 100),
            constraint thresholds_sensor_pattern_length check (length(sensor_pattern) between 1 and 100),
            constraint thresholds_sensor_id_length check (length(sensor_id) <= 200),
            constraint thresholds_times_finite check (isfinite(created_at) and isfinite(updated_at)),
            constraint thresholds_kind_known
                check (kind in ('min', 'max', 'rate', 'silence', 'equals', 'differs')),
            constraint thresholds_severity_known check (severity in ('warning', 'critical')),
            constraint thresholds_value_fits_kind check (coalesce(case
                when kind in ('min', 'max') then abs(value) < 'Infinity'
                when kind = 'rate' then value <> 0 and abs(value) < 'Infinity'
                when kind = 'silence' then value > 0 and value < 1e9
                else value is null end, false)),
            constraint thresholds_text_fits_kind
                check ((value_text is not null) = (kind in ('equals', 'differs'))),
            constraint thresholds_window_fits_kind check (coalesce(case
                when kind = 'rate' then window_sec > 0 and window_sec <= 86400 * 31
                else window_sec is null end, false)),
            constraint thresholds_hysteresis_fits_kind check (hysteresis >= 0 and hysteresis < 'Infinity'
                and (hysteresis = 0 or kind in ('min', 'max', 'rate'))),
            constraint thresholds_debounce_fits_kind check (debounce_count >= 1 and debounce_sec >= 0
                and debounce_sec < 1e9
                and (kind <> 'silence' or (debounce_count = 1 and debounce_sec = 0)))
        )
        """
    )
    op.execute("alter sequence thresholds_version owned by thresholds.version")
    op.execute("create index thresholds_silence on thresholds (value) where kind = 'silence' and enabled")


def _stamp_changes() -> None:
    """Each change gets a version of its own, by which workers tell that they have missed one."""
    op.execute(
        """
        create function sluice_stamp_threshold() returns trigger language plpgsql as $$
        begin
            if tg_op = 'UPDATE' and new.id <> old.id then
                raise exception 'the id of a threshold does not change: its alerts name it';
            end if;
            new.version := nextval('thresholds_version');
            new.updated_at := now();
            return new;
        end $$
        """
    )
    op.execute(
        """
        create trigger stamp before insert or update on thresholds for each row
        execute function sluice_stamp_threshold()
        """
    )


def _announce_changes() -> None:
    """One notification a statement: the ids that changed, or '*' for more than a notification carries."""
    op.execute(
        """
        create function sluice_announce_thresholds() returns trigger language plpgsql as $$
        declare payload text;
        begin
            if tg_op = 'TRUNCATE' then
                payload := '*';
            elsif exists (select from changed) then
                select case when count(*) > 20 then '*' else json_agg(id)::text end
                into payload from (select id from changed limit 21) as few;
            end if;
            if octet_length(payload) > 7900 then payload := '*'; end if;
            if payload is not null then perform pg_notify('sluice_thresholds', payload); end if;
            return null;
        end $$
        """
    )
    for event, rows in (("insert", "new"), ("update", "new"), ("delete", "old")):
        op.execute(
            f"""
            create trigger announce_{event} after {event} on thresholds
            referencing {rows} table as changed for each statement
            execute function sluice_announce_thresholds()
            """
        )
    op.execute(
        """
        create trigger announce_truncate after truncate on thresholds for each statement
        execute function sluice_announce_thresholds()
        """
    )


def _alerts() -> None:
    op.execute(
        """
        create table alerts (
            id uuid not null,
            number bigint generated by default as identity,
            threshold_id text not null,
            sensor_id text,
            device_id varchar(100) collate "C" not null,
            sensor_type varchar(100) collate "C" not null,
            place_id text not null default '',
            threshold_type text not null,
            severity text not null,
            threshold_value double precision,
            threshold_text text,
            status text not null,
            value double precision,
            value_text text,
            last_value double precision,
            last_value_text text,
            peak_value double precision,
            violations integer not null default 1,
            first_time timestamptz not null,
            last_time timestamptz not null,
            last_message_id uuid,
            created_at timestamptz,
            resolved_at timestamptz,
            created_due boolean not null default false,
            resolved_due boolean not null default false,
            created_sent_at timestamptz,
            resolved_sent_at timestamptz,
            recorded_at timestamptz not null default now(),
            constraint alerts_pkey primary key (id),
            constraint alerts_status_known check (status in ('pending', 'active', 'resolved')),
            constraint alerts_times_fit_status check ((created_at is null) = (status = 'pending')
                and (resolved_at is not null) = (status = 'resolved')),
            constraint alerts_times_finite check (isfinite(first_time) and isfinite(last_time)
                and coalesce(isfinite(created_at), true) and coalesce(isfinite(resolved_at), true))
        ) with (fillfactor = 70)
        """
    )
    op.execute("create unique index alerts_number on alerts (number)")
    op.execute(
        """
        create unique index alerts_open on alerts (threshold_id, device_id, sensor_type)
        where status <> 'resolved'
        """
    )
    op.execute("create index alerts_due on alerts (number) where created_due or resolved_due")
    op.execute("create index alerts_place on alerts (place_id, created_at)")
    op.execute("create index alerts_series on alerts (device_id, sensor_type, first_time)")


def downgrade() -> None:
    """Drops rules and alerts; the readings stay."""
    op.execute("drop table thresholds, alerts, applied_events, device_deletions")
    op.execute("drop function sluice_stamp_threshold(), sluice_announce_thresholds(), sluice_like(text)")
