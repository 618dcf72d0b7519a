"""Keeps the rollups where no TimescaleDB does: one worker at a time, in short steps, between batches.

Two borders say how far it has come. Readings older than `late_before` are late: batches note them. What
is older than `rolled_before` is summed up, but for what is noted. The first is moved, then all transactions
that may not have seen it move are waited for, then what lies between the two is summed up, by series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from time import monotonic
from typing import NamedTuple

import psycopg
import structlog
from psycopg import sql

import rollup_sql as statements
from database import BoundedConnection
from duties import Held
from rollup_parts import EPOCH, RollupParts

DUTY = "rollups"
LEASE_SEC = 15.0
LOOK_SEC = 5.0  # between two looks of a worker without the duty
IDLE_SEC = 2.0  # between two looks where there is nothing to do
WAIT_SEC = 0.2  # between two looks whether older transactions have ended
LATE_SEC = 300  # readings that come within this time need not be summed up twice
BUDGET_SEC = 0.03  # of one visit; a batch may be waiting behind it
BUSY_BUDGET_SEC = 0.02
BUSY_SHARE = 0.05  # of a worker's time, while there are entries to be read
BEHIND_SEC = 1.0  # a worker that has not read everything for so long is busy
PAGE_SEC = 0.02  # what one page should take
MOST_SERIES = 1000
MOST_HOURS = 100  # hours of series that one transaction sums up again
MOST_NOTES = 5000  # notes looked at for them: an hour may be noted often
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_NOTHING = ("", "", EPOCH)
_FOREVER_SEC = 1e9
_END = datetime(9999, 1, 1, tzinfo=UTC)

Begin = Callable[[], BoundedConnection]
Series = tuple[str, str]
Hour = tuple[str, str, datetime]


class _State(NamedTuple):
    """`settled`: what is older is not expected any more; by the database's clock, a whole minute."""

    late_before: datetime | None
    rolled_before: datetime | None
    target: datetime | None
    after_device: str
    after_sensor: str
    settled: datetime


class Rolling:
    """The duty of one worker. Belongs to the thread of its session.

    `caught_up_at` answers until when, by the clock, everything there was has been read.
    """

    def __init__(
        self,
        table: str,
        holder: str,
        *,
        caught_up_at: Callable[[], float],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._table = table
        self._duty = Held(DUTY, holder, LEASE_SEC)
        self._caught_up_at = caught_up_at
        self._clock = clock
        self._next = 0.0
        self._parts = RollupParts()
        self._page = 200
        self._hours = MOST_HOURS
        self._too_long = False  # a page of a single series was: the range has to be shorter
        self._waiting_for: set[str] | None = None  # transactions; None: not asked yet
        self._waiting_at: datetime | None = None
        self._after: Hour = _NOTHING  # the last hour that was summed up again

    @property
    def due_at(self) -> float:
        """When, by the clock, to roll next."""
        return self._next

    def take(self, connection: BoundedConnection) -> bool:
        """Whether this worker has the duty now. To be committed at once: until then others wait."""
        now = self._clock()
        self._next = now + LOOK_SEC
        if self._duty.surely(now):
            return True
        row = connection.execute(statements.IS_KEPT_BY_WORKERS).fetchone()
        if row is None or not row[0]:
            self._next = inf  # TimescaleDB does it
            return False
        return self._duty.take(connection, now)

    def give_back(self, connection: BoundedConnection) -> None:
        """Let another worker take the duty at once."""
        self._duty.give_back(connection)

    def run(self, begin: Begin) -> None:
        """Some steps, each a transaction of its own, which `begin` opens. Raises psycopg errors: then
        whatever was not committed is done again.
        """
        began = self._clock()
        behind = began - self._caught_up_at()
        busy = behind > BEHIND_SEC
        rolled = repaired = 0
        try:
            while True:
                moved = self._forward(begin, behind)
                again = self._repair(begin)
                rolled, repaired = rolled + moved, repaired + again
                took = self._clock() - began
                if not (moved or again) or took > (BUSY_BUDGET_SEC if busy else BUDGET_SEC):
                    break
        except psycopg.errors.QueryCanceled:
            self._too_long = self._page == 1
            self._page, self._hours = max(1, self._page // 4), max(1, self._hours // 4)
            raise
        finally:
            self._parts.forget()
        if moved or again:
            self._next = self._clock() + took * ((1 - BUSY_SHARE) / BUSY_SHARE if busy else 1.0)
        else:
            self._next = self._clock() + (WAIT_SEC if self._waiting_for else IDLE_SEC)
        if repaired:
            structlog.get_logger().info("rollups_repaired", hours=repaired, ms=round(took * 1000, 1))

    def _forward(self, begin: Begin, behind: float) -> int:
        """One step towards the present; whether there was one to make.

        A crash between two of them costs nothing: the state says where to go on, and what was summed up is
        summed up again.
        """
        connection = begin()
        connection.execute(statements.TUNE)
        row = connection.execute(
            statements.STATE, {"lag": LATE_SEC + min(max(0.0, behind), _FOREVER_SEC)}
        ).fetchone()
        if row is None:  # somebody else is at it
            connection.rollback()
            return 0
        late, rolled, target, device, sensor, settled = row
        state = _State(_utc(late), _utc(rolled), _utc(target), device, sensor, settled.astimezone(UTC))
        moved = self._step(connection, state)
        connection.commit()
        return moved

    def _step(self, connection: BoundedConnection, state: _State) -> int:
        late, rolled = state.late_before, state.rolled_before
        if late is None or rolled is None:
            start = self._next_part(connection, EPOCH) or state.settled
            connection.execute(statements.BEGIN_AT, {"at": min(start, state.settled)})
            return 1
        if rolled < late:
            if self._waits(connection, late):
                return 0
            self._sum_up(connection, state, rolled, late)
            return 1
        until = min(self._reach(connection, rolled), state.settled)
        if until <= rolled:
            return 0
        # From the COMMIT of this on batches note what is older. Those that asked before it are waited for.
        connection.execute(statements.MOVE_LATE, {"until": until})
        return 1

    def _reach(self, connection: BoundedConnection, rolled: datetime) -> datetime:
        """Until when to go at once: a day, or over the gap to the next partition."""
        start = self._next_part(connection, rolled)
        if start is None:
            return _END
        return start if start > rolled else EPOCH + ((rolled - EPOCH) // _DAY + 1) * _DAY

    def _next_part(self, connection: BoundedConnection, after: datetime) -> datetime | None:
        """Where, from `after` on, the first partition or chunk begins that may hold readings."""
        asked = {"table": self._table}
        bounds = connection.execute(statements.PARTITION_BOUNDS, asked).fetchall()
        if not bounds:
            row = connection.execute(statements.HAS_CHUNKS).fetchone()
            if row and row[0]:
                bounds = connection.execute(statements.CHUNK_BOUNDS, asked).fetchall()
        ranges = [(low.astimezone(UTC), high.astimezone(UTC)) for low, high in bounds]
        return min((max(low, after) for low, high in ranges if high > after), default=None)

    def _waits(self, connection: BoundedConnection, late: datetime) -> bool:
        """Whether a transaction still runs that wrote before the border had moved: it may have put readings
        behind it without noting them.
        """
        found = connection.execute(statements.WRITERS, {"table": self._table}).fetchall()
        writers = {writer for (writer,) in found}
        if self._waiting_for is None or self._waiting_at != late:
            self._waiting_for, self._waiting_at = writers, late
        else:
            self._waiting_for &= writers
        return bool(self._waiting_for)

    def _sum_up(
        self, connection: BoundedConnection, state: _State, rolled: datetime, late: datetime
    ) -> None:
        """The next page of series, from where all is summed up until the target of this pass."""
        target, after = state.target or late, (state.after_device, state.after_sensor)
        if self._too_long:
            self._too_long = False
            target, after = max(rolled + _MINUTE, _floor(rolled + (target - rolled) / 2, _MINUTE)), ("", "")
        began = self._clock()
        low, high = _floor(rolled, _DAY), _ceil(target, _DAY)
        query = statements.PAGE.format(
            table=sql.Identifier(self._table), low=_literal(low), high=_literal(high)
        )
        asked = {"device": after[0], "sensor": after[1], "most": self._page}
        series: list[Series] = connection.execute(query, asked).fetchall()
        if series:
            self._parts.ensure(connection, low, high)
            self._minutes(connection, [(*one, rolled, target) for one in series])
            for level, source, width in _COARSER:  # those that are complete by now
                first, last = _floor(rolled, width), _floor(target, width)
                if first < last:
                    wanted = [(*one, first, last) for one in series]
                    self._coarser(connection, level, source, width, wanted)
        if len(series) < self._page:
            connection.execute(statements.TARGET_REACHED, {"target": target})
        else:
            device, sensor = series[-1]
            connection.execute(statements.PAGE_DONE, {"target": target, "device": device, "sensor": sensor})
        took = self._clock() - began
        if took > 2 * PAGE_SEC:
            self._page = max(1, self._page // 2)
        elif took < PAGE_SEC / 2 and len(series) == self._page:
            self._page = min(MOST_SERIES, 2 * self._page)

    def _repair(self, begin: Begin) -> int:
        """Sum up again some hours that were noted; how many.

        One transaction takes them off the list and then reads what is there: a batch that it does not see
        leaves its note behind. A crash before COMMIT leaves all as it was.
        """
        connection = begin()
        connection.execute(statements.TUNE)
        if connection.execute(statements.STATE, {"lag": 0}).fetchone() is None:
            connection.rollback()
            return 0
        device, sensor, hour = self._after
        asked = {"device": device, "sensor": sensor, "hour": hour, "notes": MOST_NOTES, "most": self._hours}
        taken = connection.execute(statements.TAKE_DIRTY, asked).fetchall()
        hours = [(device, sensor, hour.astimezone(UTC)) for device, sensor, hour in taken]
        row = connection.execute(statements.RAW_COMPLETE_FROM).fetchone()
        oldest = row[0] if row and row[0] is not None else EPOCH
        # Of older hours readings were dropped: what was summed up of them is all there is, and stays.
        for day, wanted in _by_day([one for one in hours if one[2] >= oldest]).items():
            self._again(connection, day, wanted)
        connection.commit()
        # From the beginning again once the end is reached, so that no device keeps another waiting.
        self._after = hours[-1] if hours else _NOTHING
        self._hours = min(MOST_HOURS, 2 * self._hours)
        return len(hours)

    def _again(self, connection: BoundedConnection, day: datetime, hours: Sequence[Hour]) -> None:
        """Hours of one day, in place of what was summed up of them."""
        self._parts.ensure(connection, day, day + _DAY)
        wanted = [(device, sensor, hour, hour + _HOUR) for device, sensor, hour in hours]
        days = [
            (device, sensor, day, day + _DAY) for device, sensor in dict.fromkeys(w[:2] for w in wanted)
        ]
        self._delete(connection, "readings_minute", wanted)
        self._minutes(connection, wanted)
        self._delete(connection, "readings_hour", wanted)
        self._coarser(connection, "readings_hour", "readings_minute", _HOUR, wanted)
        self._delete(connection, "readings_day", days)
        self._coarser(connection, "readings_day", "readings_hour", _DAY, days)

    def _delete(self, connection: BoundedConnection, target: str, wanted: Sequence[_Range]) -> None:
        query = statements.DELETE.format(
            target=sql.Identifier(target), wanted=statements.WANTED, **_bounds(wanted)
        )
        connection.execute(query, _columns(wanted))

    def _minutes(self, connection: BoundedConnection, wanted: Sequence[_Range]) -> None:
        query = statements.MINUTES.format(
            table=sql.Identifier(self._table),
            wanted=statements.WANTED,
            put=statements.PUT,
            **_bounds(wanted),
        )
        connection.execute(query, _columns(wanted))

    def _coarser(
        self,
        connection: BoundedConnection,
        target: str,
        source: str,
        width: timedelta,
        wanted: Sequence[_Range],
    ) -> None:
        query = statements.COARSER.format(
            target=sql.Identifier(target),
            source=sql.Identifier(source),
            width=sql.SQL("interval {}").format(sql.Literal(f"{width // timedelta(seconds=1)} seconds")),
            wanted=statements.WANTED,
            put=statements.PUT,
            **_bounds(wanted),
        )
        connection.execute(query, _columns(wanted))


_Range = tuple[str, str, datetime, datetime]  # a series, from, until
_COARSER = (("readings_hour", "readings_minute", _HOUR), ("readings_day", "readings_hour", _DAY))


def _columns(wanted: Sequence[_Range]) -> dict[str, list[object]]:
    devices, sensors, lows, highs = (list(column) for column in zip(*wanted, strict=True))
    return {"devices": devices, "sensors": sensors, "lows": lows, "highs": highs}


def _bounds(wanted: Sequence[_Range]) -> dict[str, sql.Literal]:
    return {"low": _literal(min(one[2] for one in wanted)), "high": _literal(max(one[3] for one in wanted))}


def _by_day(hours: Sequence[Hour]) -> dict[datetime, list[Hour]]:
    found: dict[datetime, list[Hour]] = {}
    for one in hours:
        found.setdefault(_floor(one[2], _DAY), []).append(one)
    return found


def _utc(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(UTC)


def _floor(moment: datetime, width: timedelta) -> datetime:
    return EPOCH + (moment - EPOCH) // width * width


def _ceil(moment: datetime, width: timedelta) -> datetime:
    return EPOCH - (EPOCH - moment) // width * width


def _literal(moment: datetime) -> sql.Literal:
    return sql.Literal(moment.isoformat())
