"""What the tests of several sessions ask of the database: who waits, and whether anybody deadlocked."""

from __future__ import annotations

from tests.support import Database, wait_until

_WAITING = """
    select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
"""
_OTHERS = """
    select 1 from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and application_name = 'sluice'
"""
_DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"


def waiting_for_a_lock(database: Database) -> bool:
    return bool(database.rows(_WAITING))


def deadlocks(database: Database) -> int:
    """Of this database so far. Waits for all workers to disconnect: only then have all of them counted."""
    wait_until(lambda: not database.rows(_OTHERS))
    return int(database.rows(_DEADLOCKS)[0][0])
