"""New readings of chosen series for callers that stream: one listener tells all, nobody waits for another.

What a caller has yet to be told of is at most its own series, each once; the readings themselves stay in
the database until the caller takes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic

from database import BoundedConnection
from live import Many, Newest, News, Series, Told
from query import answers, queries
from query import collector_pb2 as pb
from query.arguments import SeriesWanted
from query.calls import AWAY, Calls, LongCall
from query.refusal import Code, Refused

MOST_AT_ONCE = 1_000  # readings of a series since the last look; who is further behind gets the newest one
MOST_REPLAYED = 10_000  # the same, of the first look with `after`
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOGETHER = 10_000  # readings that one look may bring into memory, for each caller
_CONNECT_SEC = 5.0
_LOOK_SEC = 1.0
_PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED)


class Subscription:
    """What one caller has yet to look at. `tell` is for the listener's thread, `take` for the caller's."""

    def __init__(self, series: Iterable[Series]) -> None:
        self.series = frozenset(series)
        self._due: dict[Series, News | None] = {}
        self._changed = threading.Condition()
        self.begun = False  # what is stored from now on will be told
        self.closed = False

    def tell(self, series: Series, news: News | None) -> None:
        with self._changed:
            if news is not None or series not in self._due:
                self._due[series] = news
            self._changed.notify()

    def tell_all(self, series: Iterable[Series]) -> None:
        with self._changed:
            for one in series:
                self._due.setdefault(one, None)
            self._changed.notify()

    def take(self, timeout_sec: float) -> dict[Series, News | None]:
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
                    subscription.tell_all(subscription.series)
            elif isinstance(told, Newest):
                for news in told.readings:
                    for subscription in self._by_series.get(news[:2], ()):
                        subscription.tell(news[:2], news)
            else:
                for series in told.series:
                    for subscription in self._by_series.get(series, ()):
                        subscription.tell(series, None)

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
        # Subscribed before: what is stored between the two is looked at, and found not to be newer.
        reached = self._calls.ask(call, lambda connection: self._begin(connection, wanted))
        replayed = {(one.device_id, one.sensor) for one in wanted if one.after is not None}
        most = MOST_REPLAYED
        subscription.tell_all(replayed)
        subscription.begun = True
        good_at = monotonic()
        while not subscription.closed:
            due = subscription.take(_LOOK_SEC)
            try:
                for part in _parts(due, max(1, _TOGETHER // most)):
                    yield from self._news(call, part, reached, most)
                if due:
                    most = MOST_AT_ONCE
            except Refused as refused:
                if refused.code not in _PASSING or monotonic() - good_at > self._patience_sec:
                    raise
                subscription.tell_all(due)
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

    def _begin(
        self, connection: BoundedConnection, wanted: tuple[SeriesWanted, ...]
    ) -> dict[Series, datetime]:
        """The time of each series beyond which a reading is new."""
        reached: dict[Series, datetime] = {}
        for device in dict.fromkeys(one.device_id for one in wanted if one.after is None):
            # Known and without a number: one of states, whose old numbers are of no interest.
            for sensor in queries.sensors(connection, device):
                reached[device, sensor] = datetime.now(UTC)
            for newest in queries.latest(connection, device, table=self._table):
                reached[device, newest.sensor] = newest.time
        return {
            (one.device_id, one.sensor): one.after
            # `after` itself has been seen, though it may have been rounded to microseconds
            if one.after is not None
            else reached.get((one.device_id, one.sensor), _EPOCH - timedelta(microseconds=1))
            for one in wanted
        }

    def _news(
        self, call: LongCall, due: Mapping[Series, News | None], reached: dict[Series, datetime], most: int
    ) -> Iterator[pb.StreamReadingsResponse]:
        def look(
            connection: BoundedConnection,
        ) -> list[tuple[Series, list[tuple[datetime, float | str]], bool]]:
            return [
                (series, *self._since(connection, series, news, reached[series], most))
                for series, news in due.items()
            ]

        for series, found, skipped in self._calls.ask(call, look):
            for time, measured in found:
                yield answers.streamed(*series, time, measured, skipped=skipped)
                reached[series] = max(reached[series], time)

    def _since(
        self, connection: BoundedConnection, series: Series, news: News | None, after: datetime, most: int
    ) -> tuple[list[tuple[datetime, float | str]], bool]:
        """What is newer, in order of time; the newest alone, and True, where that is too much."""
        found: list[tuple[datetime, float | str]] = [
            (point.time, point.value)
            for point in queries.since(connection, *series, after, most, table=self._table)
        ]
        skipped = len(found) >= most
        if skipped:
            newest = queries.latest(connection, series[0], table=self._table)
            found = [(one.time, one.value) for one in newest if one.sensor == series[1]] or found[-1:]
        if news is not None and news.value_text is not None:
            time = _EPOCH + timedelta(microseconds=news.timestamp_us)
            if time > after:
                found = sorted([*found, (time, news.value_text)], key=lambda one: one[0])
        return found, skipped


def _parts(due: dict[Series, News | None], size: int) -> Iterator[dict[Series, News | None]]:
    rows = list(due.items())
    for start in range(0, len(rows), size):
        yield dict(rows[start : start + size])
