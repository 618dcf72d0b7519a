"""What a rule says of one reading, and how an alert moves along many."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thresholds import Alert, Kind, Rule, Sample, Status, Verdict, advance

SERIES = ("hall", "temperature")
SECOND = 1_000_000


def rule(kind: Kind = Kind.MAX, value: float | None = 30.0, **changes: Any) -> Rule:
    return Rule(
        id="r", device_pattern="hall", sensor_pattern="temperature", kind=kind, value=value, **changes
    )


def samples(*values: float | str | None) -> list[Sample]:
    """One a second; the first at second 1."""
    return [
        Sample(
            number * SECOND,
            number.to_bytes(16, "big"),
            None if isinstance(value, str) else value,
            value if isinstance(value, str) else None,
        )
        for number, value in enumerate(values, 1)
    ]


def follow(of: Rule, *values: float | str | None) -> list[Alert]:
    return advance(of, SERIES, None, samples(*values))


JUDGED = [
    (rule(), nextafter(30, inf), Verdict.VIOLATED),
    (rule(), 30.0, Verdict.CLEAR),
    (rule(hysteresis=2), 30.0, Verdict.BETWEEN),
    (rule(hysteresis=2), nextafter(28, inf), Verdict.BETWEEN),
    (rule(hysteresis=2), 28.0, Verdict.CLEAR),
    (rule(Kind.MIN), nextafter(30, -inf), Verdict.VIOLATED),
    (rule(Kind.MIN), 30.0, Verdict.CLEAR),
    (rule(Kind.MIN, hysteresis=2), 30.0, Verdict.BETWEEN),
    (rule(Kind.MIN, hysteresis=2), nextafter(32, -inf), Verdict.BETWEEN),
    (rule(Kind.MIN, hysteresis=2), 32.0, Verdict.CLEAR),
    (rule(value=0.0), -0.0, Verdict.CLEAR),
    (rule(value=0.0), 5e-324, Verdict.VIOLATED),
    (rule(Kind.RATE, 2.0, window_sec=9), 2.5, Verdict.VIOLATED),
    (rule(Kind.RATE, 2.0, window_sec=9), -9.0, Verdict.CLEAR),
    (rule(Kind.RATE, 2.0, window_sec=9), inf, Verdict.VIOLATED),
    (rule(Kind.RATE, -2.0, window_sec=9), -2.5, Verdict.VIOLATED),
    (rule(Kind.RATE, -2.0, window_sec=9), 9.0, Verdict.CLEAR),
    (rule(Kind.RATE, -2.0, window_sec=9), -inf, Verdict.VIOLATED),
    (rule(Kind.RATE, -2.0, window_sec=9, hysteresis=1), -1.5, Verdict.BETWEEN),
    (rule(Kind.RATE, -2.0, window_sec=9, hysteresis=1), -1.0, Verdict.CLEAR),
    (rule(Kind.RATE, 2.0, window_sec=9), None, Verdict.NOTHING),
    (rule(), "open", Verdict.NOTHING),
    (rule(Kind.SILENCE, 60.0), 1e9, Verdict.CLEAR),
    (rule(Kind.SILENCE, 60.0), "open", Verdict.CLEAR),
    (rule(Kind.EQUALS, None, text="open"), "open", Verdict.VIOLATED),
    (rule(Kind.EQUALS, None, text="open"), "Open", Verdict.CLEAR),
    (rule(Kind.EQUALS, None, text="open"), 1.0, Verdict.NOTHING),
    (rule(Kind.DIFFERS, None, text="open"), "open", Verdict.CLEAR),
    (rule(Kind.DIFFERS, None, text="open"), "", Verdict.VIOLATED),
    (rule(Kind.DIFFERS, None, text="open"), 1.0, Verdict.NOTHING),
]


@pytest.mark.parametrize(("of", "said", "verdict"), JUDGED)
def test_each_kind_judges_at_its_edges(of: Rule, said: float | str | None, verdict: Verdict) -> None:
    assert of.judge(*((None, said) if isinstance(said, str) else (said, None))) is verdict


@given(
    st.sampled_from([Kind.MIN, Kind.MAX]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_values_within_the_bounds_violate_nothing_and_all_others_do(
    kind: Kind, limit: float, value: float
) -> None:
    of = rule(kind, limit)
    low, high = of.bounds
    assert (low <= value <= high) == (of.judge(value) is not Verdict.VIOLATED)


@pytest.mark.parametrize("kind", [Kind.RATE, Kind.EQUALS, Kind.DIFFERS, Kind.SILENCE])
def test_bounds_of_other_kinds_say_nothing_of_values(kind: Kind) -> None:
    assert rule(kind, 3.0).bounds == (-inf, inf)


PEAKS = [
    (rule(), [31, 35, 33], 35),
    (rule(Kind.MIN), [29, 20, 25], 20),
    (rule(Kind.RATE, 2.0, window_sec=9), [3, 9, 4], 9),
    (rule(Kind.RATE, -2.0, window_sec=9), [-3, -9, -4], -9),
]


@pytest.mark.parametrize(("of", "values", "peak"), PEAKS)
def test_the_peak_lies_in_the_direction_of_the_violation(
    of: Rule, values: list[float], peak: float
) -> None:
    (alert,) = follow(of, *values)
    assert (alert.peak, alert.last_value, alert.violations) == (peak, values[-1], 3)


def test_a_peak_beside_a_state_is_the_number() -> None:
    assert [rule().worse(None, 1.0), rule().worse(1.0, None), rule().worse(None, None)] == [1.0, 1.0, None]


def test_an_excursion_is_one_alert_from_its_first_violation_until_it_cleared() -> None:
    (alert,) = follow(rule(hysteresis=2), 20, 31, 33, 29, 31, 28, 20)
    assert alert.status is Status.RESOLVED
    assert (alert.first_us, alert.created_us, alert.resolved_us) == (2 * SECOND, 2 * SECOND, 6 * SECOND)
    assert (alert.value, alert.peak, alert.last_value, alert.violations) == (31, 33, 28, 3)


def test_two_excursions_are_two_alerts_with_ids_of_their_own() -> None:
    first, second = follow(rule(), 31, 30, 31)
    assert (first.status, second.status) == (Status.RESOLVED, Status.ACTIVE)
    assert first.id != second.id


def test_debounce_by_count_opens_at_that_violation_and_not_before() -> None:
    of = rule(debounce_count=3)
    assert [a.status for a in follow(of, 31, 32)] == [Status.PENDING]
    (alert,) = follow(of, 31, 32, 33)
    assert (alert.status, alert.value, alert.first_us, alert.created_us) == (
        Status.ACTIVE,
        33,
        SECOND,
        3 * SECOND,
    )


def test_debounce_by_seconds_opens_exactly_when_they_have_passed() -> None:
    of = rule(debounce_sec=2.0)
    assert [a.status for a in follow(of, 31, 31)] == [Status.PENDING]
    assert [a.status for a in follow(of, 31, 31, 31)] == [Status.ACTIVE]
    almost = [Sample(SECOND, bytes(16), 31.0), Sample(3 * SECOND - 1, bytes(16), 31.0)]
    assert [a.status for a in advance(of, SERIES, None, almost)] == [Status.PENDING]


def test_both_debounces_are_to_be_served() -> None:
    of = rule(debounce_count=2, debounce_sec=3.0)
    assert [a.status for a in follow(of, 31, 31, 31)] == [Status.PENDING]
    assert [a.status for a in follow(of, 31, 31, 31, 31)] == [Status.ACTIVE]


@pytest.mark.parametrize("between", [30.0, 29.0], ids=["in the hysteresis", "at its edge"])
def test_a_debounce_starts_again_after_any_reading_that_does_not_violate(between: float) -> None:
    of = rule(debounce_count=2, hysteresis=1)
    (alert,) = follow(of, 31, between, 31)
    assert (alert.status, alert.violations, alert.first_us) == (Status.PENDING, 1, 3 * SECOND)


def test_what_came_and_went_before_its_debounce_was_served_was_never_there() -> None:
    assert follow(rule(debounce_count=2), 31, 20) == []


def test_a_pending_alert_that_was_known_comes_back_dropped() -> None:
    of = rule(debounce_count=2)
    first, second = samples(31, 20)
    (pending,) = advance(of, SERIES, None, [first])
    (dropped,) = advance(of, SERIES, pending, [second])
    assert (dropped.id, dropped.status) == (pending.id, Status.DROPPED)


def test_a_reading_that_says_nothing_moves_only_how_far_it_was_looked() -> None:
    before = follow(rule(), 31)[0]
    (after,) = advance(rule(), SERIES, before, samples(31, "stuck"))
    assert after.last_us == 2 * SECOND
    assert (after.status, after.last_value, after.last_text, after.violations) == (
        Status.ACTIVE,
        31,
        None,
        1,
    )


def test_a_late_sample_moves_nothing_and_one_of_the_same_time_goes_by_its_message() -> None:
    (open_now,) = advance(rule(), SERIES, None, [Sample(5 * SECOND, b"\5" * 16, 31.0)])
    late = [Sample(4 * SECOND, b"\xff" * 16, 1.0), Sample(5 * SECOND, b"\4" * 16, 1.0)]
    same = [Sample(5 * SECOND, b"\5" * 16, 1.0)]
    assert advance(rule(), SERIES, open_now, late + same) == [open_now]
    newer = [Sample(5 * SECOND, b"\6" * 16, 1.0)]
    assert [a.status for a in advance(rule(), SERIES, open_now, newer)] == [Status.RESOLVED]


RULES = st.builds(
    rule,
    st.sampled_from([Kind.MIN, Kind.MAX, Kind.RATE]),
    st.sampled_from([5.0, -1.0, 3.0]),
    hysteresis=st.sampled_from([0.0, 1.0, 2.0]),
    debounce_count=st.integers(1, 3),
    debounce_sec=st.sampled_from([0.0, 1.0, 3.0]),
)
VALUES = st.lists(st.one_of(st.integers(-3, 8).map(float), st.just("stuck"), st.none()), max_size=40)


@given(RULES, VALUES, st.lists(st.integers(0, 40)))
def test_any_split_into_consecutive_pieces_ends_in_the_same_alerts(
    of: Rule, values: list[Any], cuts: list[int]
) -> None:
    given_all = samples(*values)
    edges = sorted({0, len(given_all), *(cut for cut in cuts if cut < len(given_all))})
    ended: list[Alert] = []
    open_now: Alert | None = None
    for begin, end in pairwise(edges):
        found = advance(of, SERIES, open_now, given_all[begin:end])
        still = [a for a in found if a.status in (Status.PENDING, Status.ACTIVE)]
        assert still == found[len(found) - len(still) :], "the open one is the last"
        assert len(still) <= 1
        ended += [a for a in found if a.status is Status.RESOLVED]
        open_now = still[0] if still else None
    whole = advance(of, SERIES, None, given_all)
    assert ended + ([open_now] if open_now else []) == whole


@given(RULES, VALUES, st.integers(0, 40))
def test_pieces_that_come_again_change_nothing(of: Rule, values: list[Any], again: int) -> None:
    given_all = samples(*values)
    found = advance(of, SERIES, None, given_all)
    if found and found[-1].status in (Status.PENDING, Status.ACTIVE):
        assert advance(of, SERIES, found[-1], given_all[again:]) == [found[-1]]
