"""Which rollups a batch has made wrong, noted in the batch's own transaction.

Readings newer than `rollup_state.late_before` are summed up later, all at once: they cost nothing here. For
older ones the hours are noted in `rollup_dirty`, which is only ever added to, without a unique key: workers
never wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import rollup_sql
from database import BoundedConnection
from schema import Reading

HOUR_US = 3_600_000_000


class Late:
    """Belongs to the thread of its connection."""

    def __init__(self) -> None:
        self._wanted = True

    def note(self, connection: BoundedConnection, stored: Sequence[Reading]) -> None:
        """Note what of `stored`, which this transaction has put in, is late. Raises psycopg errors.

        To be called after the rows went in: whoever moves the border waits for transactions that hold the
        lock of writing, and takes it that those which take the lock later see the new border.
        """
        if not stored or not self._wanted:
            return
        row = connection.execute(rollup_sql.LATE_BEFORE).fetchone()
        if row is None or not row[1]:
            self._wanted = False  # TimescaleDB keeps the rollups, and its own list of what is late
            return
        if row[0] is None:
            return
        border: int = row[0]
        late = [one for one in stored if one.timestamp_us < border]
        if late:
            hours = sorted({(one.device_id, one.sensor_type, one.timestamp_us // HOUR_US) for one in late})
            devices, sensors, numbers = (list(column) for column in zip(*hours, strict=True))
            connection.execute(
                rollup_sql.NOTE_LATE, {"devices": devices, "sensors": sensors, "hours": numbers}
            )
