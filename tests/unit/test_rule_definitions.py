"""Rules as users write them: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import rules
from ops.quantities import duration_text, finite, number_text
from ops.rules import Definition, Wrong, accept
from tests.commands import PATIENT, any_cells, good_cells
from thresholds import Kind, Severity

MAX: dict[str, Any] = {"device": "kitchen", "sensor": "temperature", "kind": "max", "value": "30"}
RATE: dict[str, Any] = {**MAX, "kind": "rate", "value": "0.5", "window_sec": "60"}
STATE: dict[str, Any] = {"device": "gate", "sensor": "door", "kind": "equals", "text": "open"}
SILENCE: dict[str, Any] = {**MAX, "kind": "silence", "value": "5m"}


def test_what_is_not_given_takes_its_default() -> None:
    found = accept(MAX)
    assert found == Definition(
        id=found.id,
        device="kitchen",
        sensor="temperature",
        kind=Kind.MAX,
        value=30.0,
        text=None,
        window_sec=None,
        hysteresis=0.0,
        debounce_count=1,
        debounce_sec=0.0,
        severity=Severity.WARNING,
        enabled=True,
        sensor_id=None,
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("1.5h", 5400), (" 90 s ", 90)],
)
def test_durations_take_units(text: str, seconds: float) -> None:
    assert accept({**SILENCE, "value": text}).value == seconds
    assert accept({**RATE, "window_sec": text}).window_sec == seconds
    assert accept({**MAX, "debounce_sec": text}).debounce_sec == seconds


@PATIENT
@given(st.floats(0, 1e9, exclude_max=True))
def test_a_duration_in_words_reads_back_as_itself(seconds: float) -> None:
    assert finite(duration_text(seconds), duration=True) == pytest.approx(seconds, rel=1e-15)


@PATIENT
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_in_words_reads_back_as_exactly_itself(number: float) -> None:
    assert finite(number_text(number)).hex() == number.hex()


@pytest.mark.parametrize(
    ("cells", "column", "words"),
    [
        ({**MAX, "value": "nan"}, "value", "NaN"),
        ({**MAX, "value": "1e999"}, "value", "beyond the range"),
        ({**MAX, "value": 10**400}, "value", "beyond the range"),
        ({**MAX, "value": float("inf")}, "value", "inf"),
        ({**MAX, "value": "21,5"}, "value", "a number such as 21.5"),
        ({**MAX, "value": "1_000"}, "value", "a number such as 21.5"),
        ({**MAX, "value": "٣"}, "value", "a number such as 21.5"),
        ({**MAX, "value": "5m"}, "value", "a number such as 21.5"),
        ({**MAX, "value": True}, "value", "is true"),
        ({**MAX, "value": None}, "value", "is missing; max takes the limit"),
        ({**MAX, "text": "open"}, "text", "belongs to equals and differs"),
        ({**MAX, "window_sec": "5"}, "window_sec", "belongs to rate"),
        ({**MAX, "hysteresis": "-1"}, "hysteresis", "0 or more"),
        ({**MAX, "debounce_count": "0"}, "debounce_count", "from 1 on"),
        ({**MAX, "debounce_count": "1.5"}, "debounce_count", "from 1 on"),
        ({**MAX, "debounce_count": "2147483648"}, "debounce_count", "from 1 on"),
        ({**MAX, "debounce_sec": "-1s"}, "debounce_sec", "0 to less than 1e9"),
        ({**MAX, "debounce_sec": "12 parsecs"}, "debounce_sec", "a duration such as"),
        ({**MAX, "severity": "fatal"}, "severity", "warning, critical"),
        ({**MAX, "enabled": "maybe"}, "enabled", "true or false"),
        ({**MAX, "kind": "between"}, "kind", "min, max, rate, silence, equals, differs"),
        ({**MAX, "kind": 3}, "kind", "min, max, rate, silence, equals, differs"),
        ({**MAX, "device": ""}, "device", "is missing"),
        ({**MAX, "device": "x" * 101}, "device", "has 101 characters"),
        ({**MAX, "device": "a\x00"}, "device", "cannot be stored"),
        ({**MAX, "device": "a\udcff"}, "device", "cannot be stored"),
        ({**MAX, "sensor": 7}, "sensor", "it takes text"),
        ({**MAX, "id": ""}, "id", "is missing"),
        ({**MAX, "colour": "red"}, "colour", "no such column; known are id, device"),
        ({**RATE, "value": "0"}, "value", "is 0"),
        ({**RATE, "window_sec": None}, "window_sec", "is missing"),
        ({**RATE, "window_sec": "32d"}, "window_sec", "at most 31 days"),
        ({**SILENCE, "value": "0"}, "value", "more than 0"),
        ({**SILENCE, "hysteresis": "1"}, "hysteresis", "belongs to min, max and rate"),
        ({**SILENCE, "debounce_count": "2"}, "debounce_count", "a duration already"),
        ({**SILENCE, "debounce_sec": "2"}, "debounce_sec", "a duration already"),
        ({**STATE, "text": None}, "text", "is missing; equals takes the state"),
        ({**STATE, "value": "3"}, "value", "belongs to min, max, rate and silence"),
        ({**STATE, "hysteresis": "3"}, "hysteresis", "belongs to min, max and rate"),
    ],
)
def test_what_is_wrong_is_named_once_with_its_remedy(cells: Any, column: str, words: str) -> None:
    with pytest.raises(Wrong) as caught:
        accept(cells)
    (problem,) = caught.value.problems
    assert problem.column == column
    assert words in problem.sentence


def test_everything_that_is_wrong_is_named() -> None:
    with pytest.raises(Wrong) as caught:
        accept({"device": "", "kind": "max", "value": "x", "severity": "?"})
    assert {column for column, _ in caught.value.problems} == {"device", "sensor", "value", "severity"}


@PATIENT
@given(good_cells())
def test_a_good_rule_is_accepted_and_says_what_was_given(cells: dict[str, Any]) -> None:
    found = accept(cells)
    for column, given_ in cells.items():
        if given_ is not None and (column != "sensor_id" or given_):
            assert getattr(found, column) == given_
    assert rules.line(found).isprintable()


def accepted_or_words(cells: dict[str, Any]) -> bool:
    try:
        return bool(accept(cells).kind == cells["kind"])
    except Wrong as wrong:
        return bool(wrong.problems) and all(sentence.isprintable() for _, sentence in wrong.problems)


@PATIENT
@given(any_cells())
def test_whatever_comes_is_accepted_or_refused_in_words(cells: dict[str, Any]) -> None:
    assert accepted_or_words(cells)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (MAX, {**MAX, "value": "31", "hysteresis": "2", "debounce_count": "3", "enabled": False}, True),
        (MAX, {**MAX, "severity": "critical"}, False),
        (MAX, {**MAX, "kind": "min"}, False),
        (MAX, {**MAX, "device": "kitchen*"}, False),
        (RATE, {**RATE, "value": "2", "window_sec": "90"}, True),
        (RATE, {**RATE, "value": "-0.5"}, False),
        (STATE, {**STATE, "text": "closed"}, False),
        ({**MAX, "device": "a", "sensor": "b c"}, {**MAX, "device": "a b", "sensor": "c"}, False),
    ],
)
def test_the_derived_id_is_the_same_for_the_same_rule_with_another_limit(
    one: Any, other: Any, same: bool
) -> None:
    assert (accept(one).id == accept(other).id) is same


def test_derived_ids_never_change() -> None:
    """Files without ids find their rules by these: another derivation would double every rule."""
    assert accept(MAX).id == "34de26ae-db32-533a-81aa-08cbc5dc311c"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (MAX, "max 30"),
        ({**MAX, "hysteresis": 2}, "max 30, clears at 28"),
        ({**MAX, "value": 30.1, "hysteresis": 0.3}, "max 30.1, clears at 29.8"),
        ({**MAX, "kind": "min", "value": -5, "hysteresis": 1}, "min -5, clears at -4"),
        (RATE, "rises faster than 0.5/s over 1m"),
        ({**RATE, "value": -0.5, "hysteresis": 0.1}, "falls faster than 0.5/s over 1m, clears at -0.4/s"),
        (SILENCE, "silence 5m"),
        (STATE, 'equals "open"'),
        ({**STATE, "kind": "differs", "text": "a\x1b[31m" + "b" * 50}, f'differs "a\\x1b[31m{"b" * 34}…"'),
    ],
)
def test_a_condition_in_words(cells: Any, words: str) -> None:
    assert rules.condition(accept(cells)) == words


def test_a_rule_in_one_line_tells_all_of_it() -> None:
    cells = {**MAX, "id": "hot", "debounce_count": 3, "debounce_sec": 90, "enabled": False}
    assert rules.line(accept(cells)) == (
        "hot: device kitchen, sensor temperature, max 30, warning, after 3 readings, 90s, disabled"
    )


def test_the_definition_survives_json() -> None:
    found = accept({**RATE, "severity": "critical"})
    assert accept(json.loads(json.dumps(found._asdict()))) == found
