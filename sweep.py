"""What one worker at a time does for all: silences, orphaned alerts, repair of the registry.

Silence counts from the arrival of a series' last reading, and only while Sluice was listening: a backlog or
an outage of its own is a gap, which is taken off. Whoever has the duty notes until when it listened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic

import structlog
from psycopg import sql

import alert_store
import duties
import sweep_sql as statements
from database import BoundedConnection
from registry_sql import REPAIR

DUTY = "sweep"
INTERVAL_SEC = 1.0
LEASE_SEC = 15.0
GAP_SEC = 3.0  # not listening for longer than this, and than two sweeps, is a gap
SHARE = 0.05  # of a worker's time, at most, that sweeping may take
SETTLED_SEC = 10.0  # after which the registry should know of a reading
PAGE = 500  # series compared with the readings in one sweep


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did, true once it has committed. `silent` and `orphaned` are alerts."""

    silent: int = 0
    orphaned: int = 0
    repaired: int = 0
    due: bool = False


class Sweep:
    """The duty of one worker. Belongs to the thread of its connection.

    `caught_up_at` answers until when, by the clock, everything there was has been read; minus infinity
    before the first read. `publish`: alerts are marked as due for publishing.
    """

    def __init__(
        self,
        table: str,
        holder: str,
        *,
        publish: bool,
        caught_up_at: Callable[[], float],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._table = table
        self._holder = holder
        self._publish = publish
        self._caught_up_at = caught_up_at
        self._clock = clock
        self._next = 0.0
        self._pace = INTERVAL_SEC
        self._listens_since = inf  # this process; what lies before that is a gap, however short
        self._held_until = 0.0
        self._after = ("", "")  # the last series that was compared

    @property
    def due_at(self) -> float:
        """When, by the clock, to sweep next."""
        return self._next

    def take(self, connection: BoundedConnection) -> bool:
        """Whether this worker has the duty now. To be committed at once: until then others wait."""
        now = self._clock()
        self._next = now + INTERVAL_SEC
        if now < self._held_until - LEASE_SEC / 2:
            return True
        taken = duties.take(connection, DUTY, self._holder, LEASE_SEC)
        self._held_until = now + LEASE_SEC if taken else 0.0
        return taken

    def give_back(self, connection: BoundedConnection) -> None:
        """Let another worker take the duty at once."""
        if self._held_until:
            duties.give_back(connection, DUTY, self._holder)

    def run(self, connection: BoundedConnection) -> Swept:
        """One sweep, in the caller's transaction. Raises psycopg errors."""
        orphaned = connection.execute(statements.RESOLVE_ORPHANS, {"due": self._publish}).rowcount
        connection.execute(statements.DROP_ORPHANS)
        silent = self._silences(connection)
        repaired = self._repair(connection)
        return Swept(silent, orphaned, repaired, due=self._publish and bool(orphaned or silent))

    def done(self, took: float, swept: Swept) -> None:
        """The sweep has committed; it took so many seconds."""
        self._pace = max(INTERVAL_SEC, took / SHARE)
        self._next = self._clock() + self._pace
        if swept.silent or swept.orphaned or swept.repaired:
            structlog.get_logger().info(
                "swept", silent=swept.silent, orphaned=swept.orphaned, repaired=swept.repaired
            )

    def _silences(self, connection: BoundedConnection) -> int:
        """Open an alert for each series that is silent, under the lock of whoever opens alerts."""
        now, caught_up = self._clock(), self._caught_up_at()
        if caught_up == -inf:
            return 0  # what was sent meanwhile is not read yet
        row = connection.execute(statements.LONGEST_SILENCE).fetchone()
        if row is None or row[0] is None:
            return 0
        self._listens_since = min(self._listens_since, caught_up)
        behind = now - caught_up
        listened = {
            "duty": DUTY,
            "behind": behind,
            "gap": max(GAP_SEC, 2 * self._pace),
            "listens": now - self._listens_since,
            "longest": row[0],
        }
        connection.execute(statements.LISTENED, listened)
        asked = {"duty": DUTY, "behind": behind}
        if not connection.execute(statements.SILENT, asked).fetchall():
            return 0
        alert_store.lock(connection, exclusive=True)
        opened = 0
        for rule, device, sensor, first in connection.execute(statements.SILENT, asked).fetchall():
            values = {
                "id": alert_store.silence_id(rule, (device, sensor), first),
                "rule": rule,
                "device": device,
                "sensor": sensor,
                "first": first,
                "due": self._publish,
            }
            query = statements.OPEN_SILENCE.format(table=sql.Identifier(self._table))
            opened += connection.execute(query, values).rowcount
        return opened

    def _repair(self, connection: BoundedConnection) -> int:
        """Compare the next page of the registry with the readings; after the last page, the first."""
        device, sensor = self._after
        query = REPAIR.format(table=sql.Identifier(self._table))
        asked = {"device": device, "sensor": sensor, "most": PAGE, "settled": SETTLED_SEC}
        row = connection.execute(query, asked).fetchone()
        seen, repaired, *last = row or (0, 0, "", "")
        self._after = (last[0], last[1]) if seen == PAGE else ("", "")
        return int(repaired)
