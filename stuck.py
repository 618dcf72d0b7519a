"""Ends what a stopped worker has left open: a COPY for which nothing comes any more.

A process that is stopped in mid-COPY keeps its transaction, with the keys it has put in and, on
TimescaleDB, the chunk it has made. No time-out of the server ends a COPY that waits for its client, and the
kernel of a stopped process answers every probe. So whoever meets its locks ends its session. Should it wake
up, it finds its connection closed and writes its batch again, as after any other cut.
"""

from __future__ import annotations

import structlog

from database import BoundedConnection

# The account may end sessions of its own, and needs no grant for it.
_END = """
    select count(*) filter (where pg_terminate_backend(pid))
    from pg_stat_activity
    where datname = current_database() and usename = current_user and pid <> pg_backend_pid()
      and application_name = 'sluice' and state = 'active' and query ilike 'copy%%from stdin%%'
      and wait_event_type = 'Client' and state_change < now() - make_interval(secs => %(seconds)s)
"""


def end_copies(connection: BoundedConnection, seconds: float) -> int:
    """End sessions of workers whose COPY began `seconds` ago and waits for them. How many. Commits.

    A batch is encoded before COPY is opened, and sent as fast as the network takes it: within milliseconds.
    Raises psycopg errors.
    """
    row = connection.execute(_END, {"seconds": seconds}).fetchone()
    connection.commit()
    ended = int(row[0]) if row else 0
    if ended:
        structlog.get_logger().warning("stuck_copies_ended", sessions=ended)
    return ended
