"""New readings of chosen series for callers that stream: one listener tells all, nobody waits for another.

What a caller has yet to be told of is at most its own series, each once; the readings themselves stay in
the database until the caller takes them. What it has been told is in `progress`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from database import BoundedConnection
from live import Many, Newest, Series, Told
from query import answers
from query import collector_pb2 as pb
from query.arguments import SeriesWanted
from query.calls import AWAY, Calls, LongCall
from query.progress import ANYTHING, TOUCHED, Due, Found, Progress, due_of
from query.refusal import Code, Refused

MOST_AT_ONCE = 1_000  # readings of a series since the last look; who is further behind gets the newest one
MOST_REPLAYED = 10_000  # the same, of the first look with `after`
_TOGETHER = 10_000  # readings that one look may bring into memory, for each caller
_CONNECT_SEC = 5.0
_LOOK_SEC = 1.0
_PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED)


class Subscription:
    """What one caller has yet to look at. `tell` is for the listener's thread, `take` for the caller's."""

    def __init__(self, series: Iterable[Series]) -> None:
        self.series = frozenset(series)
        self._due: dict[Series, Due] = {}
        self._changed = threading.Condition()
        self.begun = False  # what is stored from now on will be told
        self.closed = False

    def tell(self, due: Mapping[Series, Due]) -> None:
        with self._changed:
            for series, one in due.items():
                before = self._due.get(series)
                self._due[series] = one if before is None else before.joined(one)
            self._changed.notify()

    def take(self, timeout_sec: float) -> dict[Series, Due]:
        """What is due, as soon as anything is; nothing after the time-out, or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._due or self.closed, timeout_sec)
            due, self._due = self._due, {}
            return due

    def pause(self, seconds: float) -> None:
        """Wait, unless and until it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed, seconds)

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()


class Hub:
    """Hands on what the listener hears. `hear` never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_series: dict[Series, set[Subscription]] = {}
        self._all: set[Subscription] = set()
        self.stopped = False

    @property
    def count(self) -> int:
        """Subscriptions now. Any thread may ask."""
        return len(self._all)

    @contextmanager
    def subscribed(self, series: Iterable[Series]) -> Iterator[Subscription]:
        """A subscription until the block ends."""
        subscription = Subscription(series)
        with self._lock:
            self._all.add(subscription)
            for one in subscription.series:
                self._by_series.setdefault(one, set()).add(subscription)
            if self.stopped:
                subscription.close()
        try:
            yield subscription
        finally:
            with self._lock:
                self._all.discard(subscription)
                for one in subscription.series:
                    self._by_series[one].discard(subscription)
                    if not self._by_series[one]:
                        del self._by_series[one]

    def hear(self, told: Told) -> None:
        with self._lock:
            if isinstance(told, Many):
                for subscription in self._all:
                    subscription.tell(dict.fromkeys(subscription.series, ANYTHING))
            elif isinstance(told, Newest):
                for news in told.readings:
                    for subscription in self._by_series.get(news[:2], ()):
                        subscription.tell({news[:2]: due_of(news)})
            else:
                for series in told.series:
                    for subscription in self._by_series.get(series, ()):
                        subscription.tell({series: TOUCHED})

    @property
    def begun(self) -> int:
        """How many streams there are that will be told of whatever is stored from now on."""
        with self._lock:
            return sum(subscription.begun for subscription in self._all)

    def stop(self) -> None:
        """End every stream."""
        with self._lock:
            self.stopped = True
            for subscription in self._all:
                subscription.close()


class Streams:
    """Answers the calls that stream. `listening`: whether new readings are heard of at this moment.

    A stream outlives an outage of `patience_sec`, and then goes on where it was.
    """

    def __init__(
        self,
        calls: Calls,
        hub: Hub,
        table: str,
        most: int,
        listening: Callable[[], bool],
        patience_sec: float,
    ) -> None:
        self._calls = calls
        self._hub = hub
        self._table = table
        self._permits = threading.BoundedSemaphore(most)
        self._listening = listening
        self._patience_sec = patience_sec

    def stream(
        self, wanted: tuple[SeriesWanted, ...], call: LongCall
    ) -> Iterator[pb.StreamReadingsResponse]:
        """Until the call or the server ends. Raises `Refused`."""
        if not self._permits.acquire(blocking=False):
            raise Refused(
                Code.RESOURCE_EXHAUSTED, "the server has as many streams as QUERY_STREAMS allows already"
            )
        try:
            with self._hub.subscribed((one.device_id, one.sensor) for one in wanted) as subscription:
                call.on_end(subscription.close)
                yield from self._follow(wanted, call, subscription)
        finally:
            self._permits.release()

    def _follow(
        self, wanted: tuple[SeriesWanted, ...], call: LongCall, subscription: Subscription
    ) -> Iterator[pb.StreamReadingsResponse]:
        self._wait_for_listener(subscription)
        progress = Progress(self._table)
        # Subscribed before: what is stored between the two is looked at, and found to be seen.
        self._calls.ask(call, lambda connection: progress.begin(connection, wanted))
        subscription.begun = True
        good_at = monotonic()
        while not subscription.closed:
            replaying = progress.replaying
            due = replaying or subscription.take(_LOOK_SEC)
            try:
                yield from self._news(call, progress, due, MOST_REPLAYED if replaying else MOST_AT_ONCE)
            except Refused as refused:
                if refused.code not in _PASSING or monotonic() - good_at > self._patience_sec:
                    raise
                subscription.tell(due)
                subscription.pause(_LOOK_SEC)
                continue
            if self._listening():
                good_at = monotonic()
            elif monotonic() - good_at > self._patience_sec:
                raise Refused(Code.UNAVAILABLE, AWAY)
        if self._hub.stopped:
            raise Refused(Code.UNAVAILABLE, "the server is stopping; connect again")

    def _wait_for_listener(self, subscription: Subscription) -> None:
        deadline = monotonic() + _CONNECT_SEC
        while not self._listening() and not subscription.closed:
            if monotonic() > deadline:
                raise Refused(Code.UNAVAILABLE, AWAY)
            subscription.pause(0.05)

    def _news(
        self, call: LongCall, progress: Progress, due: dict[Series, Due], most: int
    ) -> Iterator[pb.StreamReadingsResponse]:
        """Takes out of `due` what was told."""
        for part in _parts(due, max(1, _TOGETHER // most)):

            def look(connection: BoundedConnection, part: dict[Series, Due] = part) -> list[Found]:
                return progress.look(connection, part, most)

            for found in self._calls.ask(call, look):
                skipped = progress.took(found)
                del due[found.series]
                for one in found.arrivals:
                    yield answers.streamed(*found.series, one, skipped=skipped)
                    skipped = False
            progress.forget()


def _parts(due: dict[Series, Due], size: int) -> Iterator[dict[Series, Due]]:
    rows = list(due.items())
    for start in range(0, len(rows), size):
        yield dict(rows[start : start + size])
