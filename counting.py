"""What counts are made of: numbers by name, histograms, and the time that stages take.

Each is written by one thread and may be read by any. Nothing here costs anything for a single reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from time import monotonic
from typing import Protocol


class CountsErrors(Protocol):
    """Counts attempts that failed."""

    errors: int

    def failed(self, server: str, cause: str) -> None: ...

    def recovered(self, server: str) -> None: ...


class Histogram:
    """How often a value fell below each of `bounds`. Written by one thread; reading is safe anywhere."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last one: above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Stage(Enum):
    """What a worker does with a batch, in this order."""

    READ = "read"
    PARSE = "parse"
    WRITE = "write"
    SETTLE = "settle"


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
AGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0)
SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


class Laps:
    """Times the stages of a batch, twice a stage and never for a reading. Belongs to the loop's thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._at = self._began = clock()
        self.seconds = {stage: Histogram(SECONDS) for stage in Stage}

    def begin(self) -> None:
        self._at = self._clock()

    def done(self, stage: Stage) -> float:
        """The stage has ended. Answers how many seconds the stages since READ have taken."""
        now = self._clock()
        self.seconds[stage].observe(now - self._at)
        self._at = now
        if stage is Stage.READ:
            self._began = now
        return now - self._began


@dataclass(slots=True)
class Counts:
    """What every process counts of its servers. `away`: 1 while an outage of it is waited out."""

    errors: int = 0  # attempts that failed because a server was away or refused
    retries: dict[tuple[str, str], int] = field(default_factory=dict)
    away: dict[str, int] = field(default_factory=dict)

    def failed(self, server: str, cause: str) -> None:
        """An attempt at `server` has failed. `cause`: the kind of error, one of a few dozen."""
        self.errors += 1
        self.retries[server, cause] = self.retries.get((server, cause), 0) + 1
        self.away[server] = 1

    def recovered(self, server: str) -> None:
        self.away[server] = 0

    def as_dict(self) -> dict[str, int]:
        """The plain counts, by name."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in values if isinstance(value, int)}
