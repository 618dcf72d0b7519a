"""Every statement of telling readers of new readings: who listens, what they hear.

A reader holds a shared advisory lock for as long as it listens. That is how workers know of it, and why
nobody pays where nobody listens.
"""

from __future__ import annotations

from typing import LiteralString

CHANNEL = "sluice_readings"
# Of all advisory locks in the database: the class that partitions.py and alert_sql.py use too.
_LOCK_CLASS = 0x51C1CE
_LOCK_NUMBER = 3

# Neither may change during a session, so a pooler in transaction mode must not stand between.
LISTEN: LiteralString = f"""
    listen {CHANNEL};
    select pg_advisory_lock_shared({_LOCK_CLASS}, {_LOCK_NUMBER})
"""
# The server gives up a connection whose other end takes nothing for so long, in milliseconds: until then
# it keeps every notification, of every database, from being thrown away.
GIVE_UP: LiteralString = "select set_config('tcp_user_timeout', %(milliseconds)s, false)"
# Looking, not trying the lock: a session that holds it for an instant could keep it behind a pooler. 2 says
# that the lock has two numbers. Asking how full the queue is makes the server throw away what everybody has
# taken, too: one that was full once stays full otherwise.
IS_WANTED: LiteralString = f"""
    select pg_notification_queue_usage() < %(most)s and exists (
        select from pg_locks
        where locktype = 'advisory' and classid = {_LOCK_CLASS} and objid = {_LOCK_NUMBER} and objsubid = 2
          and database = (select oid from pg_database where datname = current_database())
    )
"""  # noqa: S608  constants
# Binary: as text, four payloads full of quotes took 3.6 ms to escape and read, against 0.4.
TELL: LiteralString = f"select pg_notify('{CHANNEL}', said) from unnest(%(payloads)b::text[]) said"  # noqa: S608
