"""What a worker shows of itself: its counts as samples, and one line for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

import metrics
from metrics import Sample, Stats
from sampling import Backlog


class WorkerSigns:
    """`samples` may be called by any thread, `status` by one. Neither waits, nor asks a server.

    `backlog` answers the newest look at this worker's part of the group, `connected` whether the database
    is connected, `publishing` whether the broker of alerts is, None where there is none.
    """

    def __init__(
        self,
        stats: Stats,
        *,
        started: Callable[[], bool],
        backlog: Callable[[], Backlog | None],
        connected: Callable[[], bool],
        publishing: Callable[[], bool | None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._stats = stats
        self._started = started
        self._backlog = backlog
        self._connected = connected
        self._publishing = publishing
        self._clock = clock
        self._told_at = clock()
        self._told = 0

    def samples(self) -> Iterator[Sample]:
        """All metrics of a worker."""
        yield from metrics.of_worker(self._stats)
        yield metrics.CONNECTIONS, ("in_use",), int(self._connected())
        publishing = self._publishing()
        if publishing is not None:
            yield metrics.PUBLISHER, (), int(publishing)
        backlog = self._backlog()
        if backlog is None:  # no number is better than a wrong one
            return
        yield metrics.PENDING, (), backlog.pending
        yield metrics.LAG_ENTRIES, (), backlog.unread
        yield metrics.LAG_SECONDS, (), backlog.oldest_sec
        yield metrics.LAG_UNKNOWN, (), backlog.unknown
        yield metrics.TRIMMED_UNREAD, (), backlog.trimmed_unread
        yield metrics.SAMPLED_STREAMS, (), backlog.streams
        yield metrics.SAMPLE_AGE, (), max(0.0, self._clock() - backlog.at)
        if backlog.dead_letters is not None:
            yield metrics.DEAD_LETTERS_KEPT, (), backlog.dead_letters

    def status(self) -> str:
        """How fast it goes since the last time, and what is left to do."""
        now, stored = self._clock(), self._stats.readings_written
        rate = (stored - self._told) / max(0.001, now - self._told_at)
        self._told_at, self._told = now, stored
        away = sorted(server for server, away in self._stats.away.copy().items() if away)
        if away:
            return f"waits for {' and '.join(away)}; nothing is lost"
        if not self._started():
            return "starts"
        backlog = self._backlog()
        if backlog is None:
            return f"{rate:,.0f} readings/s"
        unknown = f" and an unknown number in {backlog.unknown} streams" if backlog.unknown else ""
        return (
            f"{rate:,.0f} readings/s; in its part {backlog.unread:,} entries unread{unknown}, the oldest "
            f"for {backlog.oldest_sec:.1f} s, {backlog.pending:,} pending"
        )
