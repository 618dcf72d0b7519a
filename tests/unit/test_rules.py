"""The rules in memory: whatever was put in and taken out, each series finds what a plain filter finds."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rules as module
from rules import Rules
from schema import Reading
from thresholds import Kind, Rule, Verdict

DEVICES = ("a", "ab", "b", "a.b", "a\nb", "")
SENSORS = ("x", "xy", "%")
# Without brackets, which fnmatch reads and rules do not.
PATTERNS = ("a", "ab", "a*", "*b", "?", "*", "a.b", "a?b", "??")


def rule(
    number: int, device: str = "a", sensor: str = "x", kind: Kind = Kind.MAX, value: float = 5.0
) -> Rule:
    return Rule(id=f"r{number}", device_pattern=device, sensor_pattern=sensor, kind=kind, value=value)


some_rule = st.builds(
    rule,
    st.integers(0, 6),
    st.sampled_from(PATTERNS),
    st.sampled_from(("x", "x*", "*", "%")),
    st.sampled_from([Kind.MIN, Kind.MAX, Kind.RATE, Kind.SILENCE]),
    st.sampled_from([-1.0, 2.0, 5.0]),
)
changes = st.one_of(
    st.tuples(st.just("put"), some_rule),
    st.tuples(st.just("remove"), st.integers(0, 6)),
    st.tuples(st.just("replace"), st.lists(some_rule, max_size=5, unique_by=lambda one: one.id)),
    st.tuples(st.just("look"), st.none()),
)


def matching(kept: dict[str, Rule], device: str, sensor: str) -> set[Rule]:
    return {
        one
        for one in kept.values()
        if fnmatchcase(device, one.device_pattern) and fnmatchcase(sensor, one.sensor_pattern)
    }


@given(st.lists(changes, max_size=12))
def test_each_series_finds_the_rules_that_a_plain_filter_finds(steps: list[tuple[str, Any]]) -> None:
    held, kept = Rules(), dict[str, Rule]()
    for what, given_value in [*steps, ("look", None)]:
        if what == "put":
            held.put(given_value)
            kept[given_value.id] = given_value
        elif what == "remove":
            held.remove(f"r{given_value}")
            kept.pop(f"r{given_value}", None)
        elif what == "replace":
            held.replace_all(given_value)
            kept = {one.id: one for one in given_value}
        else:
            _compare(held, kept)
    assert len(held) == len(kept)
    assert all(held.get(f"r{number}") == kept.get(f"r{number}") for number in range(7))


def _compare(held: Rules, kept: dict[str, Rule]) -> None:
    for device in DEVICES:
        for sensor in SENSORS:
            expected = matching(kept, device, sensor)
            watched = held.of((device, sensor))
            assert held.of((device, sensor)) is watched  # remembered
            assert set(watched.rules if watched else ()) == expected
            if watched is None:
                continue
            assert len(watched.rules) == len(expected)
            for value in (-2.0, -1.0, 0.0, 2.0, 3.0, 5.0, 6.0):
                violates = any(
                    one.judge(value) is Verdict.VIOLATED for one in expected if one.kind is not Kind.RATE
                )
                assert (value < watched.low or value > watched.high) == violates
            assert watched.other == any(one.kind is Kind.RATE for one in expected)


def a_reading(number: int, device: str, sensor: str) -> Reading:
    return Reading(device, sensor, number, bytes(16), float(number))


@given(st.lists(st.tuples(st.sampled_from(DEVICES), st.sampled_from(SENSORS)), max_size=40))
def test_runs_are_the_watched_groups_of_the_sorted_readings(series: list[tuple[str, str]]) -> None:
    held = Rules([rule(1, "a*", "x"), rule(2, "b", "*"), rule(3, "", "%")])
    readings = sorted(a_reading(number, *one) for number, one in enumerate(series))
    groups = [(key, list(group)) for key, group in groupby(readings, key=lambda one: one[:2])]
    expected = [(key, group) for key, group in groups if held.of(key) is not None]
    assert [(run.series, list(run.readings)) for run in held.runs(readings)] == expected
    assert list(Rules().runs(readings)) == []


def test_the_memory_of_series_without_rules_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED_SERIES", 10)
    held = Rules([rule(1, "d7", "x")])
    for number in range(1000):
        assert (held.of((f"d{number}", "x")) is not None) == (number == 7)
        assert len(held._watched) <= 10
    assert held.of(("d7", "x")) is not None


def test_a_run_tells_violations_by_value_and_by_state() -> None:
    door = Rule(id="door", device_pattern="a", sensor_pattern="x", kind=Kind.EQUALS, text="open")
    held = Rules([rule(1), door])
    readings = [a_reading(5, "a", "x"), a_reading(6, "a", "x")._replace(value=None, value_text="open")]
    (run,) = held.runs(readings)
    assert (run.beyond(), run.violates(rule(1)), run.violates(door)) == (False, False, True)
    (run,) = held.runs([a_reading(6, "a", "x")])
    assert (run.beyond(), run.violates(rule(1)), run.violates(door)) == (True, True, False)


@given(
    st.lists(some_rule, max_size=4, unique_by=lambda one: one.id),
    st.lists(st.tuples(st.sampled_from(DEVICES), st.sampled_from(SENSORS), st.integers(-2, 7)), max_size=8),
)
def test_quiet_are_readings_that_no_run_has_anything_to_say_of(
    kept: list[Rule], measured: list[tuple[str, str, int]]
) -> None:
    held = Rules(kept)
    readings = sorted(
        a_reading(number, device, sensor)._replace(value=float(value))
        for number, (device, sensor, value) in enumerate(measured)
    )
    loud = any(run.beyond() or run.watched.other for run in held.runs(readings))
    assert held.quiet(readings) is not loud
