"""Runs `main.main` as a user types it, and rules for its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import structlog
from hypothesis import strategies as st

import main
from tests.support import Database


class Done(NamedTuple):
    """How a command ended. `told` is what it printed, `errors` what it complained about."""

    status: int
    told: str
    errors: str


Command = Callable[..., Done]


def commands(
    database: Database | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """A function that takes the words of a command line. `database` None: as the environment says."""
    for name, value in (database.environment() if database else {}).items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> Done:
        capsys.readouterr()
        try:
            status = main.main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            structlog.reset_defaults()
        return Done(status, *capsys.readouterr())

    return run


LETTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
# Names with what CSV, LIKE and regular expressions make something of.
ODD = st.sampled_from(list("ab*?%_\\\"',;. \n\r\t()[]+^$|#é漢"))
NAMES = st.text(st.one_of(ODD, LETTERS), min_size=1, max_size=100)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(0, 1e9, exclude_max=True)
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "min": st.fixed_dictionaries({"value": NUMBERS, "hysteresis": st.floats(0, 1e300)}),
    "max": st.fixed_dictionaries({"value": NUMBERS, "hysteresis": st.floats(0, 1e300)}),
    "rate": st.fixed_dictionaries(
        {
            "value": NUMBERS.filter(lambda number: number != 0),
            "window_sec": st.floats(0, 86_400 * 31, exclude_min=True),
            "hysteresis": st.floats(0, 1e300),
        }
    ),
    "silence": st.fixed_dictionaries({"value": st.floats(0, 1e9, exclude_min=True, exclude_max=True)}),
    "equals": st.fixed_dictionaries({"text": st.text(st.one_of(ODD, LETTERS))}),
    "differs": st.fixed_dictionaries({"text": st.text(st.one_of(ODD, LETTERS))}),
}
DEBOUNCES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"debounce_count": st.integers(1, 2**31 - 1), "debounce_sec": SECONDS}
)


@st.composite
def good_cells(draw: st.DrawFn) -> dict[str, Any]:
    """A rule that is to be accepted, as JSON gives it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    return {
        "device": draw(NAMES),
        "sensor": draw(NAMES),
        "kind": kind,
        **draw(KINDS[kind]),
        **({} if kind == "silence" else draw(DEBOUNCES)),
        "severity": draw(st.sampled_from([None, "warning", "critical"])),
        "enabled": draw(st.sampled_from([None, True, False])),
        "id": draw(st.one_of(st.none(), NAMES)),
        "sensor_id": draw(st.one_of(st.none(), st.text(LETTERS))),
    }


NASTY = st.one_of(
    st.none(),
    st.floats(),
    st.sampled_from([0.0, -0.0, -1.0, 1.0, 1e9, 86_400.0 * 31, 86_400.0 * 31 + 1e-3, float("inf")]),
)


@st.composite
def any_cells(draw: st.DrawFn) -> dict[str, Any]:
    """A rule that may be wrong in any way that a column's type allows, mostly in one or two."""
    cells = draw(good_cells())
    wrong = {
        "device": st.sampled_from(["", "x" * 101, "é" * 100]),
        "sensor": st.sampled_from(["", "x" * 101, "é" * 100]),
        "id": st.sampled_from(["", "x" * 101, "é" * 100]),
        "kind": st.sampled_from([*sorted(KINDS), "MAX", "", "between"]),
        "severity": st.sampled_from(["Warning", "", "fatal", "critical"]),
        "value": NASTY,
        "window_sec": NASTY,
        "hysteresis": NASTY,
        "debounce_sec": NASTY,
        "debounce_count": st.sampled_from([None, 0, -1, 1, 2, 2**31, 2**31 - 1]),
        "text": st.one_of(st.none(), st.just(""), st.just("open")),
    }
    for column in draw(st.lists(st.sampled_from(sorted(wrong)), max_size=3, unique=True)):
        cells[column] = draw(wrong[column])
    return cells
