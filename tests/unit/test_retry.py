"""Waiting out a bad world: what is retried, what is said, when it ends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from metrics import Stats
from retry import FIRST_REPEAT_SEC, LONGEST_REPEAT_SEC, Outage, Patience, StopFlag, Stopping, describe


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Away(Exception):
    pass


class Patient(StopFlag):
    """Never really pauses; keeps how long it was asked to."""

    def __init__(self) -> None:
        super().__init__(timeout_sec=8, clock=Clock())
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = iter(range(times))

    def attempt() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return attempt


def test_the_world_s_errors_are_retried_until_it_works_and_counted() -> None:
    stop, stats = Patient(), Stats()
    thrown_away: list[int] = []
    patience = Patience("server", (Away,), stop, stats, rng=random.Random(1))
    with capture_logs():
        assert patience.call(failing(5, Away("gone")), lambda: thrown_away.append(1)) == "done"
    assert (stats.errors, len(thrown_away), len(stop.pauses)) == (5, 5, 5)


def test_a_bug_passes_at_once() -> None:
    stop, stats = Patient(), Stats()
    with pytest.raises(ZeroDivisionError):
        Patience("server", (Away,), stop, stats).call(lambda: 1 // 0)
    assert (stats.errors, stop.pauses) == (0, [])


def test_pauses_grow_with_jitter_up_to_a_cap() -> None:
    stop = Patient()
    patience = Patience("server", (Away,), stop, Stats(), longest_sec=5.0, rng=random.Random(7))
    with capture_logs():
        patience.call(failing(200, Away()))
    assert max(stop.pauses[:2]) < 0.5
    assert 4.0 < max(stop.pauses) <= 5.0
    assert len(set(stop.pauses)) > 150, "no two workers come back at the same moment"


def test_a_stop_whose_time_runs_out_ends_the_waiting() -> None:
    clock = Clock()
    stop = StopFlag(timeout_sec=8, clock=clock)

    def attempt() -> None:
        stop.set()
        clock.now += 3.0
        raise Away("still gone")

    with capture_logs() as logs, pytest.raises(Stopping, match="still gone"):
        Patience("server", (Away,), stop, Stats()).call(attempt, in_hand=True)
    assert clock.now == 9.0, "three attempts: after 6 of 8 seconds only closing is left"
    assert [log["event"] for log in logs] == ["outage_began", "stop_waits_for_server"]


def test_a_stop_with_nothing_in_hand_ends_the_waiting_at_once() -> None:
    stop = StopFlag(timeout_sec=8, clock=Clock())

    def attempt() -> None:
        stop.set()
        raise Away("still gone")

    with capture_logs(), pytest.raises(Stopping) as stopped:
        Patience("server", (Away,), stop, Stats()).call(attempt)
    assert not stopped.value.in_hand


def test_an_outage_is_told_at_its_start_at_growing_intervals_and_at_its_end() -> None:
    clock = Clock()
    outage = Outage("server", clock)
    told: list[tuple[float, str]] = []
    with capture_logs() as logs:
        while clock.now < 3600:
            outage.failed(Away("gone"))
            told += [(clock.now, log["event"]) for log in logs]
            logs.clear()
            clock.now += 1.0
        outage.over()
        outage.over()
        ended: list[Any] = list(logs)
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(told)]
    assert told[0] == (0.0, "outage_began")
    assert {event for _, event in told[1:]} == {"outage_continues"}
    assert gaps[0] == FIRST_REPEAT_SEC
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_REPEAT_SEC
    assert [(log["event"], log["attempts"]) for log in ended] == [("outage_ended", 3600)]


def test_nothing_is_told_of_what_works() -> None:
    with capture_logs() as logs:
        assert Patience("server", (Away,), Patient(), Stats()).call(lambda: 1) == 1
    assert logs == []


def test_an_error_is_described_in_one_short_line() -> None:
    assert describe(Away("first\nDETAIL: a row that nobody should see")) == "Away: first"
    assert describe(Away()) == "Away: no message"
    assert len(describe(Away("x" * 9999))) == 300


def test_a_stop_counts_from_the_first_time_it_is_asked_for() -> None:
    clock = Clock()
    stop = StopFlag(timeout_sec=8, clock=clock)
    assert not stop.is_set()
    assert not stop.overdue()
    stop.set()
    clock.now = 6.5
    stop.set()
    assert stop.is_set()
    assert stop.overdue()
