"""Runs `main.main` as a user types it, and rules for its tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import structlog
from hypothesis import HealthCheck, settings
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


# A busy machine is no finding.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
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


_EDGES = (0.0, 5e-324, 1.0, 86_400.0 * 31, 86_400.0 * 31 + 1e-3, 1e9 - 1e-6, 1e9, 1e308, math.inf)
EDGES = (None, math.nan, *_EDGES, *(-edge for edge in _EDGES))
NASTY = st.one_of(st.sampled_from(EDGES), st.floats())
_NAMES = ("", "x", "x" * 100, "x" * 101, "é" * 100)
# Every value that lies at an edge of what a column takes.
WRONG: dict[str, tuple[Any, ...]] = {
    "device": _NAMES,
    "sensor": _NAMES,
    "id": _NAMES,
    "kind": (*sorted(KINDS), "MAX", "", "between"),
    "severity": (None, "warning", "critical", "Warning", "", "fatal"),
    "text": (None, "", "open"),
    "debounce_count": (None, 0, -1, 1, 2, 2**31, 2**31 - 1),
    **dict.fromkeys(("value", "window_sec", "hysteresis", "debounce_sec"), EDGES),
}
GOOD: dict[str, dict[str, Any]] = {
    "min": {"value": 1.0},
    "max": {"value": 1.0},
    "rate": {"value": 1.0, "window_sec": 60.0},
    "silence": {"value": 60.0},
    "equals": {"text": "open"},
    "differs": {"text": "open"},
}


def edge_cells() -> Iterator[dict[str, Any]]:
    """Every good rule with one column at an edge."""
    for kind, cells in GOOD.items():
        for column, edges in WRONG.items():
            for edge in edges:
                yield {"device": "d", "sensor": "s", "id": "x", "kind": kind, **cells, column: edge}


@st.composite
def any_cells(draw: st.DrawFn) -> dict[str, Any]:
    """A rule that may be wrong in any way that a column's type allows, mostly in one or two."""
    cells = draw(good_cells())
    for column in draw(st.lists(st.sampled_from(sorted(WRONG)), max_size=3, unique=True)):
        cells[column] = draw(NASTY if WRONG[column] is EDGES else st.sampled_from(WRONG[column]))
    return cells
