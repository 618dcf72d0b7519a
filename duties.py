"""Work that one process at a time may do: a lease a duty, in the table `duties`.

The database's clock decides, so processes need not agree on the time. A holder that died keeps its
duty until the lease has run out; a holder that lives takes it again before that.
"""

from __future__ import annotations

from psycopg import Connection

_TAKE = """
    insert into duties (name, holder, held_until)
    values (%(name)s, %(holder)s, now() + make_interval(secs => %(seconds)s))
    on conflict (name) do update set holder = excluded.holder, held_until = excluded.held_until
    where duties.held_until < now() or duties.holder = excluded.holder
    returning holder
"""
# The row stays: other columns of it remember how far the duty was done.
_GIVE_BACK = """
    update duties set held_until = '-infinity' where name = %(name)s and holder = %(holder)s
"""


def take(connection: Connection, name: str, holder: str, seconds: float) -> bool:
    """Take or keep the duty `name` for `seconds` from now; False while another holds it.

    Counts from the caller's COMMIT only: until then it may still be undone, and it keeps others
    waiting, so commit at once. Needs no session state. Raises psycopg errors.
    """
    return (
        connection.execute(_TAKE, {"name": name, "holder": holder, "seconds": seconds}).fetchone()
        is not None
    )


def give_back(connection: Connection, name: str, holder: str) -> None:
    """Let another take the duty at once; nothing happens where `holder` has it no longer."""
    connection.execute(_GIVE_BACK, {"name": name, "holder": holder})


class Held:
    """What one holder knows of a duty, so that it asks the database only when half of its lease is over.

    `now` in seconds, by any clock of the holder's that does not jump.
    """

    def __init__(self, name: str, holder: str, lease_sec: float) -> None:
        self._name = name
        self._holder = holder
        self._lease_sec = lease_sec
        self._until = 0.0

    def surely(self, now: float) -> bool:
        """Whether it is held for long enough yet."""
        return now < self._until - self._lease_sec / 2

    def take(self, connection: Connection, now: float) -> bool:
        """As the function of that name."""
        taken = take(connection, self._name, self._holder, self._lease_sec)
        self._until = now + self._lease_sec if taken else 0.0
        return taken

    def give_back(self, connection: Connection) -> None:
        """As the function of that name."""
        if self._until:
            give_back(connection, self._name, self._holder)
