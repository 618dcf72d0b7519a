"""A batch cut into transactions: sorted, twins apart, bounded, halved where a row is refused. No SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

import psycopg

import database
from schema import DAY_US, Answer, Reading, Reason, Rejection, RowFate, days_of

# A transaction that touches many days takes many locks and, where chunks are missing, keeps every other
# worker from making one: 1,000 days took 1.3 s, 3,000 died of "out of shared memory" (docs/internals.md).
MAX_DAYS = 32
_KEY = itemgetter(0, 1, 2, 3)

# The fates of these readings, None where all were stored; and whether an earlier attempt may have
# committed.
Commit = Callable[[Sequence[Reading], bool], tuple[Sequence[Answer] | None, bool]]


class Portions:
    """The way of one batch's readings. `commit` stores some of them, staged or not, in one transaction of
    at most `most`. `distinct`: no two of them have the same key.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        commit: Commit,
        *,
        most: int,
        staged: bool,
        distinct: bool = False,
    ) -> None:
        self._commit = commit
        self._most = most
        self._staged = staged
        self._distinct = distinct
        self._readings = readings
        self._fates: list[Answer] = []
        self.retried = False

    def run(self) -> Sequence[Answer] | None:
        """Store them all; what became of each, in the order they came in. None: all of them were stored."""
        if not self._readings:
            return None
        if self._distinct and not self._staged and self._fits():
            try:
                # By all members, which is by the key: no comparison gets beyond it.
                fates, self.retried = self._commit(sorted(self._readings), False)
            except psycopg.errors.UniqueViolation:
                self._staged = True
            except psycopg.Error as error:
                if not database.is_row_fault(error):
                    raise
            else:
                return None if fates is None else self._unsorted(fates)
        return self._carefully()

    def _fits(self) -> bool:
        return len(self._readings) <= self._most and len(days_of(self._readings)) <= MAX_DAYS

    def _unsorted(self, fates: Sequence[Answer]) -> list[Answer]:
        found: list[Answer] = [RowFate.STORED] * len(fates)
        for index, fate in zip(self._sorted()[0], fates, strict=True):
            found[index] = fate
        return found

    def _carefully(self) -> Sequence[Answer] | None:
        self._fates = [RowFate.STORED] * len(self._readings)
        once, twins = self._sorted()
        for part in cut(self._readings, once, self._most):
            self._store(part, self._staged)
        # Only the table knows what a twin repeats: its sibling may have been refused, or be a conflict.
        for part in cut(self._readings, twins, self._most):
            self._store(part, staged=True)
        return None if self._fates.count(RowFate.STORED) == len(self._fates) else self._fates

    def _sorted(self) -> tuple[list[int], list[int]]:
        """Indices in the order of the key: each key once, and the later ones of a key, its twins."""
        keys = list(map(_KEY, self._readings))
        order = sorted(range(len(keys)), key=keys.__getitem__)
        once: list[int] = []
        twins: list[int] = []
        last = None
        for index in order:
            (twins if keys[index] == last else once).append(index)
            last = keys[index]
        return once, twins

    def _store(self, part: Sequence[int], staged: bool) -> None:
        readings = [self._readings[index] for index in part]
        try:
            fates, retried = self._commit(readings, staged)
        except psycopg.errors.UniqueViolation:
            if staged:
                raise
            self._store(part, staged=True)
        except psycopg.Error as error:
            if not database.is_row_fault(error):
                raise
            self._bisect(part, staged, error)
        else:
            self.retried = self.retried or retried
            if fates is None:
                return
            for index, fate in zip(part, fates, strict=True):
                self._fates[index] = fate

    def _bisect(self, part: Sequence[int], staged: bool, error: psycopg.Error) -> None:
        """Halve until the row to blame stands alone: about 2 log2(n) transactions for one bad row."""
        if len(part) == 1:
            self._fates[part[0]] = _refused(self._readings[part[0]], error)
            return
        middle = len(part) // 2
        self._store(part[:middle], staged)
        self._store(part[middle:], staged)


def cut(readings: Sequence[Reading], order: Sequence[int], most: int) -> Iterable[Sequence[int]]:
    """Parts of `order` for one transaction each: at most `most` readings and MAX_DAYS distinct days.

    Usually that is all of it at once. Each part keeps the order of the key.
    """
    days = days_of(readings)
    if len(order) <= most and len(days) <= MAX_DAYS:
        if order:
            yield order
        return
    ordered_days = sorted(days)
    for start in range(0, len(ordered_days), MAX_DAYS):
        first, last = ordered_days[start], ordered_days[min(start + MAX_DAYS, len(ordered_days)) - 1]
        within = [i for i in order if first <= readings[i].timestamp_us // DAY_US <= last]
        for begin in range(0, len(within), most):
            yield within[begin : begin + most]


def _refused(reading: Reading, error: psycopg.Error) -> Rejection:
    what = error.diag.constraint_name or type(error).__name__
    return Rejection(
        Reason.REFUSED_BY_DATABASE,
        f"the database refused the row: SQLSTATE {error.sqlstate}, {what}",
        reading.device_id,
        reading.sensor_type,
        str(reading.value if reading.value is not None else reading.value_text)[:200],
    )
