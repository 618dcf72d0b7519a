"""What one caller that streams has been told, and what it is to be told next: each reading once.

Readings come to be stored in any order: two workers commit batches of one series in either order, devices
catch up. So what is new is not what is newer, but what was not there at the last look. Such a row was
stored by a transaction that began less than `LONGEST` before that look, and `created_at` says when it did:
rows that were stored earlier have been looked at, of later ones the keys are remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from database import BoundedConnection
from live import News, Series
from query import queries
from query.arguments import SeriesWanted
from query.queries import EVER, NEVER, Arrival, Known, Wanted

LONGEST = timedelta(seconds=60)  # of a transaction that stores readings; DB_TIMEOUT_SEC stays below
LATE = timedelta(hours=1)  # how much older than the newest of its series a reading may be
UNTOLD = timedelta(minutes=2)  # the same, where a worker had too many series to say how old
HEARD = LONGEST + timedelta(minutes=1)  # the registry is up to a minute behind
QUIET = timedelta(days=1)  # before the last look, at a series of which nobody has said anything
MOST_REMEMBERED = 50_000  # keys, of all series of a caller: 7 to 19 MB
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Due(NamedTuple):
    """Where to look for what is new in a series: from the oldest to the newest reading that workers have
    told of, and from `back` before its newest one on, where they have not said what came.
    """

    oldest_us: int | None = None
    newest_us: int = -1
    back: timedelta | None = None

    def joined(self, other: Due) -> Due:
        oldest = [one for one in (self.oldest_us, other.oldest_us) if one is not None]
        back = [one for one in (self.back, other.back) if one is not None]
        return Due(min(oldest, default=None), max(self.newest_us, other.newest_us), max(back, default=None))


TOUCHED = Due(back=UNTOLD)
ANYTHING = Due(back=LATE)


def due_of(news: News) -> Due:
    return Due(max(0, news.timestamp_us - news.span_us), news.timestamp_us)


class Found(NamedTuple):
    """What a look has found of a series, in order of time. `late`: readings of before its window were told
    of. `cut`: there were too many, and this is the newest one alone.
    """

    series: Series
    looked: datetime
    arrivals: list[Arrival]
    late: bool
    cut: bool


@dataclass(slots=True)
class _Told:
    """How far one series has come.

    `newest`: the time of its newest reading; None: none is known. `looked`: when it was last looked at, by
    the database's clock. `since`: transactions that began before it are given up. What was measured up to
    `passed`, and stored before `passed_stored`, was left out. `after`: where a replay begins, until it is
    done. `seen`: keys by `created_at`.
    """

    newest: datetime | None
    looked: datetime
    since: datetime = EVER
    passed: datetime = EVER
    passed_stored: datetime = EVER
    after: datetime | None = None
    skipped: bool = False
    seen: dict[datetime, set[bytes]] = field(default_factory=dict)
    remembered: int = 0

    @property
    def base(self) -> datetime:
        """Lateness counts from here: a clock that was ahead makes nobody late."""
        return self.looked if self.newest is None else min(self.newest, self.looked)

    def knows(self, one: Arrival) -> bool:
        return one.key in self.seen.get(one.stored, ())

    def remember(self, arrivals: Iterable[Arrival]) -> None:
        """Those that could be met again. What is too old for that is forgotten."""
        horizon = self.looked - LONGEST
        for stored in [stored for stored in self.seen if stored < horizon]:
            self.forget(stored)
        for one in arrivals:
            if one.stored >= horizon:
                self.seen.setdefault(one.stored, set()).add(one.key)
                self.remembered += 1

    def forget(self, stored: datetime) -> None:
        self.remembered -= len(self.seen.pop(stored))


class Progress:
    """Belongs to one caller's thread."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._told: dict[Series, _Told] = {}

    @property
    def remembered(self) -> int:
        """How many keys are kept."""
        return sum(one.remembered for one in self._told.values())

    @property
    def replaying(self) -> dict[Series, Due]:
        """Series of which the caller has yet to get what there was after the time that it named."""
        return {series: ANYTHING for series, one in self._told.items() if one.after is not None}

    def begin(self, connection: BoundedConnection, wanted: Iterable[SeriesWanted]) -> None:
        """What is stored by now is not new, but what is newer than the `after` of a caller."""
        asked = {(one.device_id, one.sensor): one.after for one in wanted}
        began = queries.stored_now(connection)
        # The registry first: of a series that nobody has heard of there is nothing to look for.
        known = queries.known(connection, asked)
        told = {series: _Told(known.get(series, Known()).newest, began) for series in asked}
        heard_of = {series for series, one in known.items() if (one.arrived or EVER) >= began - HEARD}
        share = MOST_REMEMBERED // len(asked)
        seeds = [
            Wanted(
                series=series,
                start=max(told[series].base - LATE, EVER if series in heard_of else began - QUIET),
                end=after or NEVER,
                stored=began - LONGEST,
                most=share + 1,
            )
            for series, after in asked.items()
        ]
        _, found = queries.arrivals(connection, seeds, table=self._table)
        for (series, one), arrivals in zip(told.items(), found, strict=True):
            one.after = _replayed_after(asked[series], one, began)
            if len(arrivals) > share:
                one.since = began  # too many to tell apart: of what is just being stored, some is missed
            else:
                one.remember(arrivals)
        self._told = told

    def look(self, connection: BoundedConnection, due: Mapping[Series, Due], most: int) -> list[Found]:
        """What is new in these series, at most `most` readings of each, or the newest one.

        Changes nothing, so that a look that failed may be tried again: `took` says what was told.
        """
        starts = self._starts(connection, due)
        plans = {series: self._plan(series, one, most, starts.get(series)) for series, one in due.items()}
        wanted = [plan for plan, _ in plans.values() if plan.start <= plan.end]
        looked, new = self._new(connection, wanted)
        cut = {one.series: one for one in wanted if len(new[one.series]) > most}
        if cut:
            _, last = self._new(connection, list(cut.values()), newest=True)
            new |= {series: arrivals[-1:] for series, arrivals in last.items()}
        return [
            Found(series, looked or self._told[series].looked, new.get(series, []), late, series in cut)
            for series, (_, late) in plans.items()
        ]

    def took(self, found: Found) -> bool:
        """The caller is told what was found, now. Whether it must hear that something was left out."""
        one = self._told[found.series]
        one.looked, one.after = found.looked, None
        one.skipped |= found.late or found.cut
        one.remember(found.arrivals)
        if not found.arrivals:
            return False
        newest = found.arrivals[-1].time
        one.newest = newest if one.newest is None else max(one.newest, newest)
        if found.cut:
            one.passed, one.passed_stored = max(one.passed, newest), found.looked
        skipped, one.skipped = one.skipped, False
        return skipped

    def forget(self) -> None:
        """Beyond what may be remembered, half of all, those of the oldest transactions: one that takes
        longer than what is left is lost.
        """
        if self.remembered <= MOST_REMEMBERED:
            return
        ages = [(stored, one) for one in self._told.values() for stored in one.seen]
        for stored, one in sorted(ages, key=lambda age: age[0]):
            if self.remembered <= MOST_REMEMBERED // 2:
                break
            one.forget(stored)
            one.since = stored + _MICROSECOND

    def _starts(self, connection: BoundedConnection, due: Mapping[Series, Due]) -> dict[Series, datetime]:
        """From where on to look for what nobody has told the times of.

        The registry is asked where that may be hundreds of partitions: of a series whose newest reading is
        old, and of one that had none. Of what it has not heard of, only the present is looked at.
        """
        wide = [(series, self._told[series], one.back) for series, one in due.items() if one.back]
        asked = [
            series
            for series, one, back in wide
            if one.newest is None or (back == LATE and one.base - LATE < one.looked - QUIET)
        ]
        known = queries.known(connection, asked) if asked else {}
        starts = {}
        for series, one, back in wide:
            start = one.base - back
            if one.newest is None:
                start = EVER if series in known else start
            elif series in asked and (known.get(series, Known()).newest or EVER) <= one.newest:
                start = max(start, one.looked - QUIET)
            starts[series] = start
        return starts

    def _plan(
        self, series: Series, due: Due, most: int, wide_start: datetime | None
    ) -> tuple[Wanted, bool]:
        """Where to look, and whether there is something older than that. An empty range: nowhere."""
        one = self._told[series]
        stored = max(one.since, one.looked - LONGEST)
        start, end, late = NEVER, EVER, False
        if one.after is not None:
            start, end, stored = one.after + _MICROSECOND, NEVER, EVER
        elif wide_start is not None:
            start, end = wide_start, NEVER
        if due.oldest_us is not None:
            oldest = _EPOCH + timedelta(microseconds=due.oldest_us)
            # Of a series without a reading nothing can be late.
            first = oldest if one.newest is None else one.base - LATE
            late = oldest < first
            start = min(start, max(oldest, first))
            end = max(end, _EPOCH + timedelta(microseconds=due.newest_us))
        wanted = Wanted(
            series=series,
            start=start,
            end=end,
            stored=stored,
            passed=one.passed,
            passed_stored=one.passed_stored,
            most=most + 1 + one.remembered,
        )
        return wanted, late

    def _new(
        self, connection: BoundedConnection, wanted: list[Wanted], *, newest: bool = False
    ) -> tuple[datetime | None, dict[Series, list[Arrival]]]:
        """Of each series what the caller has not been told."""
        if not wanted:
            return None, {}
        looked, found = queries.arrivals(connection, wanted, newest=newest, table=self._table)
        return looked, {
            one.series: [row for row in arrivals if not self._told[one.series].knows(row)]
            for one, arrivals in zip(wanted, found, strict=True)
        }


def _replayed_after(after: datetime | None, one: _Told, began: datetime) -> datetime | None:
    """Not from long ago where the registry, which may be behind, knows of nothing that is newer."""
    if after is None:
        return None
    return after if one.newest is not None and one.newest > after else max(after, began - QUIET)
