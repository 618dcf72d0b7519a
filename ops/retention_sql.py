"""Every statement of `main.py retention`: what is kept how long, on both kinds of database."""

from __future__ import annotations

from psycopg import sql

KEEPER = "select keeper from rollup_state"
ROWS = "select level, days from retention"
SET_DAYS = "update retention set days = %(days)s where level = %(level)s"
LOCK = "lock table retention in share row exclusive mode"

# Partitions of a table, oldest first, with their bounds; those of other tables have none.
PARTITIONS = r"""
    select oid::regclass::text, pg_total_relation_size(oid), pg_relation_size(oid) > 0
    from pg_inherits join pg_class on oid = inhrelid
    where inhparent = to_regclass(quote_ident(%(table)s))
    order by (regexp_match(pg_get_expr(relpartbound, oid), '''([^'']+)'''))[1]::timestamptz
"""
CHUNKED = """
    select coalesce(hypertable_size(to_regclass(quote_ident(%(table)s))), 0),
        (select show_chunks(to_regclass(quote_ident(%(table)s)))::text limit 1)
"""
# The partition or chunk is named by the server, quoted.
OLDEST = sql.SQL("select min({time}) from {part}")

# TimescaleDB's policies: those of a continuous aggregate go by the name of its view, or of what it holds.
_OF_TABLE = """
    j.hypertable_name in (%(table)s, (
        select materialization_hypertable_name from timescaledb_information.continuous_aggregates
        where view_name = %(table)s))
"""
POLICY_DAYS = f"""
    select ceil(extract(epoch from (j.config ->> 'drop_after')::interval) / 86400)::int
    from timescaledb_information.jobs j where j.proc_name = 'policy_retention' and {_OF_TABLE}
"""  # noqa: S608  constants
REMOVE_POLICY = "select remove_retention_policy(to_regclass(quote_ident(%(table)s)), if_exists => true)"
ADD_POLICY = """
    select add_retention_policy(to_regclass(quote_ident(%(table)s)),
        drop_after => make_interval(days => %(days)s::int))
"""
# What the policy before this one has dropped does not come back.
NOTE_DROPPED = """
    update retention set complete_from = greatest(complete_from,
        date_bin('1 day', now() - make_interval(days => %(days)s::int), '1970-01-01Z') + interval '1 day')
    where level = %(level)s
"""
# A rollup is refreshed no further back than what it is made from is complete, or what was summed up of
# dropped readings would be summed up again, from none.
COMPLETE_DAYS = """
    select floor(extract(epoch from now() - complete_from) / 86400)::int from retention
    where level = %(level)s and complete_from is not null
"""
ALTER_REFRESH = f"""
    select alter_job(j.job_id, config => jsonb_set(j.config, '{{start_offset}}',
        coalesce(to_jsonb(%(days)s::int || ' days'), 'null'::jsonb)))
    from timescaledb_information.jobs j
    where j.proc_name = 'policy_refresh_continuous_aggregate' and {_OF_TABLE}
"""  # noqa: S608  constants
