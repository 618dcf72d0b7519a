"""What a running process shows of itself, to probes, to metrics and to systemd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from metrics import Sample
from progress import Progress, Slowest

OK = ""  # of a check: nothing is wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """Every function may be called from any thread while the process runs, and never raises.

    `stuck_after_sec`: the loop is stuck when it has not got on for so long. `started`: it has reached its
    servers once. `checks`: by name, `OK` or in a few words what is wrong. `status`: one line for people.
    `reload` only takes a note, since a signal handler calls it.
    """

    progress: Progress | Slowest
    stuck_after_sec: float
    started: Callable[[], bool]
    stopping: Callable[[], bool]
    checks: Callable[[], dict[str, str]]
    samples: Callable[[], Iterable[Sample]]
    status: Callable[[], str]
    reload: Callable[[], None] = lambda: None

    @property
    def stuck(self) -> bool:
        return self.progress.age_sec > self.stuck_after_sec
