"""What one worker at a time does for all: silences, orphaned alerts, repair of the registry.

Silence counts from the arrival of a series' last reading, and only while Sluice was listening: a backlog or
an outage of its own is a gap, which is taken off. Whoever has the duty notes until when it listened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from time import monotonic

import structlog
from psycopg import sql

import alert_store
import sweep_sql as statements
from database import BoundedConnection
from duties import Held
from registry_sql import REPAIR

DUTY = "sweep"
INTERVAL_SEC = 1.0
LONGEST_SEC = 5.0  # between two sweeps: the listening must be noted before it passes for a gap
LEASE_SEC = 15.0
GAP_SEC = 3.0  # not listening for longer than this, and than two sweeps, is a gap
SHARE = 0.05  # of a worker's time that sweeping may take, as long as that is often enough
SETTLED_SEC = 10.0  # after which the registry should know of a reading
RECENT = timedelta(days=2)  # readings older than this are not looked at by their time
PAGE = 500  # series compared with the readings, or silences told, in one sweep


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep has done. `silent` and `orphaned` are alerts; `due`: there is something to publish."""

    silent: int = 0
    orphaned: int = 0
    repaired: int = 0
    due: bool = False


class Sweep:
    """The duty of one worker. Belongs to the thread of its session.

    `caught_up_at` answers until when, by the clock, everything there was has been read; minus infinity
    before the first read. `publish`: alerts are marked as due for publishing. `now` is the time of day.
    """

    def __init__(
        self,
        table: str,
        holder: str,
        *,
        publish: bool,
        caught_up_at: Callable[[], float],
        now: Callable[[], datetime],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._table = table
        self._duty = Held(DUTY, holder, LEASE_SEC)
        self._publish = publish
        self._caught_up_at = caught_up_at
        self._now = now
        self._clock = clock
        self._next = 0.0
        self._pace = INTERVAL_SEC
        self._listens_since = inf  # this process; what lies before that is a gap, however short
        self._after = ("", "")  # the last series that was compared

    @property
    def due_at(self) -> float:
        """When, by the clock, to sweep next."""
        return self._next

    def take(self, connection: BoundedConnection) -> bool:
        """Whether this worker has the duty now. To be committed at once: until then others wait."""
        now = self._clock()
        self._next = now + INTERVAL_SEC
        return self._duty.surely(now) or self._duty.take(connection, now)

    def give_back(self, connection: BoundedConnection) -> None:
        """Let another worker take the duty at once."""
        self._duty.give_back(connection)

    def run(self, begin: Callable[[], BoundedConnection]) -> Swept:
        """One sweep: pieces that each commit a transaction of their own, which `begin` opens, so that none
        holds a lock that another waits for. Raises psycopg errors.
        """
        silent = self._silences(begin)
        orphaned = self._orphans(begin())
        repaired = self._repair(begin())
        return Swept(silent, orphaned, repaired, due=self._publish and bool(orphaned or silent))

    def done(self, took: float, swept: Swept) -> None:
        """The sweep has ended; it took so many seconds."""
        self._pace = min(LONGEST_SEC, max(INTERVAL_SEC, took / SHARE))
        self._next = self._clock() + (0.0 if swept.silent >= PAGE else self._pace)
        if swept.silent or swept.orphaned or swept.repaired:
            structlog.get_logger().info(
                "swept", silent=swept.silent, orphaned=swept.orphaned, repaired=swept.repaired
            )

    def _silences(self, begin: Callable[[], BoundedConnection]) -> int:
        """Open an alert for each series that is silent, under the lock of whoever opens alerts."""
        now, caught_up = self._clock(), self._caught_up_at()
        if caught_up == -inf:
            return 0  # what was sent meanwhile is not read yet
        connection = begin()
        row = connection.execute(statements.LONGEST_SILENCE).fetchone()
        if row is None or row[0] is None:
            connection.rollback()
            return 0
        self._listens_since = min(self._listens_since, caught_up)
        asked = {
            "duty": DUTY,
            "behind": now - caught_up,
            "gap": max(GAP_SEC, 2 * self._pace),
            "listens": now - self._listens_since,
            "longest": row[0],
            "due": self._publish,
            "most": PAGE,
        }
        connection.execute(statements.LISTENED, asked)
        any_silent = connection.execute(statements.IS_ANY_SILENT, asked).fetchone()
        connection.commit()
        if not any_silent or not any_silent[0]:
            return 0
        connection = begin()
        alert_store.lock(connection, exclusive=True)
        query = statements.OPEN_SILENCES.format(
            silent=statements.SILENT,
            table=sql.Identifier(self._table),
            recent=sql.Literal((self._now() - RECENT).isoformat()),
        )
        opened = connection.execute(query, asked).rowcount
        connection.commit()
        return opened

    def _orphans(self, connection: BoundedConnection) -> int:
        """End alerts that nothing stands behind. Answers how many of them were active."""
        ids = [id_ for (id_,) in connection.execute(statements.LOCK_ORPHANS).fetchall()]
        ended = 0
        if ids:
            connection.execute(statements.DROP_ORPHANS, {"ids": ids})
            asked = {"ids": ids, "due": self._publish}
            ended = connection.execute(statements.RESOLVE_ORPHANS, asked).rowcount
        connection.commit()
        return ended

    def _repair(self, connection: BoundedConnection) -> int:
        """Compare the next page of the registry with the readings; after the last page, the first."""
        device, sensor = self._after
        query = REPAIR.format(
            table=sql.Identifier(self._table), recent=sql.Literal((self._now() - RECENT).isoformat())
        )
        asked = {"device": device, "sensor": sensor, "most": PAGE, "settled": SETTLED_SEC}
        row = connection.execute(query, asked).fetchone()
        connection.commit()
        seen, repaired, *last = row or (0, 0, "", "")
        self._after = (last[0], last[1]) if seen == PAGE else ("", "")
        return int(repaired)
