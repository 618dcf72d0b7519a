"""Alerts in the batch's own transaction: what the stored readings open, move and resolve.

A batch that changes nothing writes nothing. What makes that right with several workers is one advisory
lock, taken after the rows and held until COMMIT: shared by a batch that finds nothing to open, exclusive
by one that opens an alert. So whoever finds nothing to open has seen every alert that is open, and
whoever opens one has seen every reading that is stored. Alerts that are open already are moved under the
lock of their own row. Rows, then the advisory lock, then alerts in the order of their key: everybody
locks in this order, so nobody deadlocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import alert_store
from alert_store import Changes, Key
from database import BoundedConnection
from rules import Rules, Run
from schema import Reading
from thresholds import Alert, Kind, Rule, Sample, Series, Status, Verdict, advance


@dataclass(slots=True)
class Judged:
    """What one transaction does to the alerts: true only once it has committed.

    `due`: something is to be published.
    """

    opened: set[Key] = field(default_factory=set)
    closed: set[Key] = field(default_factory=set)
    activated: int = 0
    resolved: int = 0
    due: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    """Everything that deciding needs, read under the lock."""

    touched: dict[Key, tuple[Rule, Run]]  # violated, or open
    rates: dict[Key, list[Sample]]
    open_now: dict[Key, Alert]
    unopened: list[Key]  # violated, and no alert is open
    newest: dict[Series, tuple[int, bytes]]


_NOTHING = _Seen({}, {}, {}, [], {})


class Alerting:
    """Judges stored readings by the rules in memory. Belongs to the thread of its connection.

    `publish`: alerts that become active or resolved are marked as due for publishing. `owner_of` answers
    the owner of a device, or an empty text: then the registry is asked.
    """

    def __init__(
        self, table: str, rules: Rules, *, publish: bool, owner_of: Callable[[str], str] = lambda _: ""
    ) -> None:
        self._table = table
        self._rules = rules
        self._publish = publish
        self._owner_of = owner_of
        self._open: set[Key] = set()  # every alert that is open, and some that were
        self._number: int | None = None  # the highest number among the alerts that `_open` knows of

    def forget(self) -> None:
        """Look at all open alerts anew: the server may be another one."""
        self._open = set()
        self._number = None

    def judge(self, connection: BoundedConnection, stored: Sequence[Reading]) -> Judged:
        """Apply readings that this transaction has put in, sorted by key, to the alerts.

        To be called last before COMMIT. Raises psycopg errors; whatever it wrote goes with a rollback.
        """
        if self._rules.quiet(stored) and not self._anything_open(connection):
            return Judged()
        runs = list(self._rules.runs(stored))
        if not runs:
            return Judged()
        violated = _violations(runs)
        rates = any(
            rule.kind is Kind.RATE for run in runs if run.watched.other for rule in run.watched.rules
        )
        # A rate depends on what others are storing: they take turns.
        exclusive = rates or not self._open.issuperset(violated)
        judged, changes = self._decide(self._look(connection, runs, violated, exclusive=exclusive))
        if changes.new and not exclusive:
            # Not an upgrade, which two could want of each other: give the lock back and queue for it.
            alert_store.unlock(connection)
            judged, changes = self._decide(self._look(connection, runs, violated, exclusive=True))
        owners = {alert.series[0]: self._owner_of(alert.series[0]) for _, alert in changes.new}
        alert_store.write(connection, changes, publish=self._publish, owners=owners)
        return judged

    def _anything_open(self, connection: BoundedConnection) -> bool:
        """Whether any alert is open, asked under the shared lock: until COMMIT nobody opens one."""
        if not self._rules:
            return False
        if not self._open:
            alert_store.lock(connection, exclusive=False)
            self._open, self._number = alert_store.opened_since(connection, self._number)
            if self._open:
                alert_store.unlock(connection)
        return bool(self._open)

    def committed(self, judged: Judged) -> None:
        """The transaction of these changes has committed."""
        self._open |= judged.opened
        self._open -= judged.closed

    def _look(
        self, connection: BoundedConnection, runs: Sequence[Run], violated: set[Key], *, exclusive: bool
    ) -> _Seen:
        """Take the lock, then learn in new statements, which see what was committed before, who opened
        alerts meanwhile. Numbers are given under the exclusive lock: they follow the order of commits.
        """
        alert_store.lock(connection, exclusive=exclusive)
        meanwhile, self._number = alert_store.opened_since(connection, self._number)
        self._open |= meanwhile
        rates = alert_store.rates(connection, self._table, runs)
        violated = violated | {
            key
            for key, samples in rates.items()
            if (rule := self._rules.get(key[0])) and _any_violates(rule, samples)
        }
        if not violated and not self._open:
            return _NOTHING
        touched = {
            key: (rule, run)
            for run in runs
            for rule in run.watched.rules
            if (key := (rule.id, *run.series)) in violated or key in self._open
        }
        asked = [key for key in touched if key in self._open]
        open_now = alert_store.fetch_open(connection, asked)
        self._open.difference_update(key for key in asked if key not in open_now)
        unopened = sorted(violated - open_now.keys())
        newest = alert_store.newest_of_others(
            connection, self._table, [touched[key][1] for key in unopened]
        )
        return _Seen(touched, rates, open_now, unopened, newest)

    def _decide(self, seen: _Seen) -> tuple[Judged, Changes]:
        """What the readings do to the alerts that were seen. Nothing is written yet."""
        judged, changes = Judged(), Changes()
        for key in sorted(seen.touched):
            rule, run = seen.touched[key]
            before = seen.open_now.get(key)
            if rule.kind is Kind.SILENCE:
                if before is not None:
                    _heard(before, changes, judged)
                continue
            samples = seen.rates.get(key, []) if rule.kind is Kind.RATE else _samples(run)
            last = seen.newest.get(run.series)
            if before is None and last is not None:
                samples = [sample for sample in samples if (sample.time_us, sample.message_id) > last]
            for after in advance(rule, run.series, before, samples):
                if after != before:
                    _note(rule, before, after, changes, judged)
        judged.due = self._publish and bool(judged.activated or judged.resolved)
        return judged, changes


def _heard(before: Alert, changes: Changes, judged: Judged) -> None:
    """End a silence. One that is pending was opened when the rule was of another kind: never an alert."""
    judged.closed.add((before.rule_id, *before.series))
    if before.status is Status.PENDING:
        changes.dropped.append(before)
    else:
        changes.heard.append(before)
        judged.resolved += 1


def _note(rule: Rule, before: Alert | None, after: Alert, changes: Changes, judged: Judged) -> None:
    """Sort one alert, as it is now, into what is to be written and what is to be remembered."""
    key = (rule.id, *after.series)
    known = before is not None and before.id == after.id
    if after.status is Status.DROPPED:
        changes.dropped.append(after)
    elif known:
        changes.moved.append(after)
    else:
        changes.new.append((rule, after))
    was_active = known and before is not None and before.status is Status.ACTIVE
    judged.activated += not was_active and after.status in (Status.ACTIVE, Status.RESOLVED)
    judged.resolved += after.status is Status.RESOLVED
    if after.status in (Status.PENDING, Status.ACTIVE):
        judged.opened.add(key)
        judged.closed.discard(key)
    else:
        judged.closed.add(key)
        judged.opened.discard(key)


def _violations(runs: Iterable[Run]) -> set[Key]:
    """What is violated by values or states alone."""
    return {
        (rule.id, *run.series)
        for run in runs
        if run.watched.other or run.beyond()
        for rule in run.watched.rules
        if rule.kind is not Kind.RATE and run.violates(rule)
    }


def _any_violates(rule: Rule, samples: Iterable[Sample]) -> bool:
    return any(rule.judge(sample.value) is Verdict.VIOLATED for sample in samples)


def _samples(run: Run) -> list[Sample]:
    return [Sample(one.timestamp_us, one.message_id, one.value, one.value_text) for one in run.readings]
