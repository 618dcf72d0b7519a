"""A line on a terminal that shows how far a long job is; nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import Self, TextIO

from ops.quantities import duration_text

_WIDTH = 24
_EVERY_SEC = 0.1


class Progress:
    """Shows `done` of `total` on `out`, standard error by default, where that is a terminal."""

    def __init__(
        self, verb: str, total: int, out: TextIO | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._verb = verb
        self._total = total
        self._out = out if out is not None else sys.stderr
        self._clock = clock
        self._began = clock()
        self._next = 0.0
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def show(self, done: int) -> None:
        """Draw the line anew, at most ten times a second."""
        now = self._clock()
        if now < self._next or not self._out.isatty():
            return
        self._next = now + _EVERY_SEC
        self._shown = True
        self._out.write(f"\r\x1b[K{self.line(done)}")
        self._out.flush()

    def line(self, done: int) -> str:
        """What is shown."""
        share = min(1.0, done / self._total) if self._total else 1.0
        filled = int(share * _WIDTH)
        took = max(1e-9, self._clock() - self._began)
        rate = done / took
        left = duration_text(round((self._total - done) / rate)) if rate and done < self._total else "0s"
        bar = "#" * filled + "." * (_WIDTH - filled)
        return f"{self._verb} [{bar}] {done:,} of {self._total:,}, {rate:,.0f}/s, {left} left"
