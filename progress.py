"""Whether a loop gets on: how long ago it last did. What a probe and a watchdog go by."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Progress:
    """Noted by the thread that works, asked by any: it is one number, so there is no lock.

    Waiting for a server that is away is progress, as long as each attempt ends.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def made(self) -> None:
        self._at = self._clock()

    @property
    def age_sec(self) -> float:
        """Seconds since it was last noted."""
        return max(0.0, self._clock() - self._at)


class Slowest:
    """Of several loops, the one that is furthest behind."""

    def __init__(self, *loops: Progress) -> None:
        self._loops = loops

    @property
    def age_sec(self) -> float:
        return max(loop.age_sec for loop in self._loops)
