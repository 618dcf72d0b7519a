"""What one worker at a time does for all: silences, orphaned alerts, repair of the registry.

Silence counts from the arrival of a series' last reading, and only while Sluice was listening: a backlog or
an outage of its own is a gap, which is taken off. Whoever has the duty notes until when it listened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
GAP_SEC = 10.0  # not listening for longer than this is a gap
NOTE_SEC = 5.0  # how often it is written down how far the listening went
SHARE = 0.05  # of a worker's time that sweeping may take, as long as that is often enough
LONGEST_SEC = 5.0  # between two sweeps: the listening must be noted before it passes for a gap
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

    `caught_up_at` answers when, by the clock, everything there was had been read. `publish`: alerts are
    marked as due for publishing.
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
        self._next_note = 0.0
        self._noting = False  # the sweep in hand notes how far the listening went
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
        now = self._clock()
        behind = now - self._caught_up_at()
        self._noting = now >= self._next_note
        if self._noting:
            connection.execute(statements.LISTENED, {"duty": DUTY, "behind": behind, "gap": GAP_SEC})
        # The advisory lock before any alert, as everybody locks: the other way round is a deadlock.
        silent = self._silences(connection, behind)
        orphaned = self._orphans(connection)
        repaired = self._repair(connection)
        return Swept(silent, orphaned, repaired, due=self._publish and bool(orphaned or silent))

    def done(self, took: float, swept: Swept) -> None:
        """The sweep has committed; it took so many seconds."""
        now = self._clock()
        self._next = now + min(LONGEST_SEC, max(INTERVAL_SEC, took / SHARE))
        if self._noting:
            self._next_note = now + NOTE_SEC
        if swept.silent or swept.orphaned or swept.repaired:
            structlog.get_logger().info(
                "swept", silent=swept.silent, orphaned=swept.orphaned, repaired=swept.repaired
            )

    def _silences(self, connection: BoundedConnection, behind: float) -> int:
        """Open an alert for each series that is silent, under the lock of whoever opens alerts."""
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

    def _orphans(self, connection: BoundedConnection) -> int:
        """End alerts that nothing stands behind. Answers how many of them were active."""
        found = connection.execute(statements.LOCK_ORPHANS).fetchall()
        if not found:
            return 0
        ids = [id_ for (id_,) in found]
        connection.execute(statements.DROP_ORPHANS, {"ids": ids})
        return connection.execute(statements.RESOLVE_ORPHANS, {"ids": ids, "due": self._publish}).rowcount

    def _repair(self, connection: BoundedConnection) -> int:
        """Compare the next page of the registry with the readings; after the last page, the first."""
        device, sensor = self._after
        query = REPAIR.format(table=sql.Identifier(self._table))
        row = connection.execute(query, {"device": device, "sensor": sensor, "most": PAGE}).fetchone()
        seen, repaired, *last = row or (0, 0, "", "")
        self._after = (last[0], last[1]) if seen == PAGE else ("", "")
        return int(repaired)
