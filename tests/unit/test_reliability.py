"""docs/reliability.md names every scenario, and its table says what a report says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import (
    PAGE,
    MisplacedFault,
    Scenario,
    figures,
    head,
    on_page,
    parsed,
    renewed,
    scenarios,
    table,
)

KILLED = Scenario("tests/a/test_a.py::test_killed", "worker killed", "SIGKILL | twice", "nothing lost")
DEAF = Scenario("tests/a/test_b.py::test_deaf", "deaf server", "the proxy", "goes on")
REPORT = [
    {"test": KILLED.test, "naive": False, "passed": True, "entries": 1000, "lost": 0, "doubled": 0},
    {
        "test": KILLED.test,
        "naive": False,
        "passed": True,
        "entries": 234,
        "lost": 0,
        "doubled": 0,
        "faults": 9,
    },
    {"test": KILLED.test, "naive": True, "passed": True, "naive_lost": 3, "naive_doubled": 0},
]


def test_the_page_has_a_row_for_every_scenario_and_no_other() -> None:
    found = scenarios()
    assert len(found) > 0
    # without the figures, which a run changes
    page, wanted = (parsed(text) for text in (on_page(PAGE.read_text("utf-8")), table({}, found)))
    assert page.keys() == wanted.keys(), "run python -m tests.reliability --rows"
    assert table(page, found) in PAGE.read_text("utf-8"), "run python -m tests.reliability --rows"


def test_the_head_of_the_page_is_the_sum_of_its_table() -> None:
    page = PAGE.read_text("utf-8")
    assert head(parsed(on_page(page)), scenarios()) in page


def test_every_scenario_has_a_name_of_its_own() -> None:
    names = [(one.name, one.how) for one in scenarios()]
    assert len(names) == len(set(names))


def test_a_report_becomes_a_table_that_can_be_read_back() -> None:
    rows = figures(REPORT)
    assert rows[KILLED.test] == ("10", "1,234", "0", "0", "3, 0")
    text = table(rows, [KILLED, DEAF])
    assert (
        "| worker killed | SIGKILL \\| twice | nothing lost | 10 | 1,234 | 0 | 0 | 3, 0 | [test_killed]"
        in text
    )
    assert "| deaf server | the proxy | goes on | not run |" in text
    assert parsed(text)[KILLED.test] == rows[KILLED.test]
    assert head(rows, [KILLED, DEAF]) == (
        "**10 faults survived, 1,234 entries checked: none lost, none doubled.**"
    )


def test_what_a_scenario_lost_and_that_it_failed_is_told() -> None:
    failed = {"test": KILLED.test, "naive": False, "passed": False, "entries": 5, "lost": 2, "doubled": 0}
    rows = figures([*REPORT, failed])
    assert rows[KILLED.test][:4] == ("10, **1 failed**", "1,239", "2", "0")
    assert head(rows, [KILLED]) == "**10 faults survived, 1,239 entries checked: 2 lost, 0 doubled.**"


def test_a_page_is_made_anew_between_its_marks_only() -> None:
    page = PAGE.read_text("utf-8")
    made = renewed(page, figures(REPORT), [KILLED], "Taken in a test.")
    assert "test_deaf" not in made
    assert made.partition("<!--")[0] == page.partition("<!--")[0]
    assert made.rpartition("-->")[2] == page.rpartition("-->")[2]
    assert "Taken in a test." in on_page(made)


@pytest.mark.parametrize(
    "source",
    [
        "SHARED = fault('a', how='b')\n",
        "@fault(f'{1}', how='b')\ndef test_a(stage_of): ...\n",
    ],
    ids=["not above a test", "not a text"],
)
def test_a_fault_of_which_no_row_can_be_made_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(source)
    with pytest.raises(MisplacedFault, match=r"test_x\.py:1: .*@fault"):
        scenarios(tmp_path / "tests")


def test_names_of_promises_are_understood(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        "GOES_ON = 'goes on'\n@fault('a', how='b', promise=GOES_ON)\ndef test_a(stage_of): ...\n"
        "@fault('c', how='d')\ndef test_b(stage_of): ...\n"
    )
    assert [(one.test, one.promise) for one in scenarios(tmp_path / "tests")] == [
        ("tests/test_x.py::test_a", "goes on"),
        ("tests/test_x.py::test_b", "nothing lost, nothing twice"),
    ]
