"""Files of rules: CSV and JSON in, everything that is wrong in words, and a round trip that is exact."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import rule_files
from ops.rule_files import Unusable
from ops.rules import COLUMNS, Definition, accept
from tests.commands import PATIENT, good_cells

HEADER = "device,sensor,kind,value"


def read_csv(text: str) -> list[Definition]:
    return rule_files.read(text.encode(), as_json=False)


def read_json(found: Any) -> list[Definition]:
    return rule_files.read(json.dumps(found).encode(), as_json=True)


def read_or_words(data: bytes, *, as_json: bool) -> bool:
    """Whether a file is either taken, or refused with a word about it."""
    try:
        return isinstance(rule_files.read(data, as_json=as_json), list)
    except Unusable as unusable:
        return bool(str(unusable))


def refusal(data: str | bytes, *, as_json: bool = False) -> list[str]:
    with pytest.raises(Unusable) as caught:
        rule_files.read(data.encode() if isinstance(data, str) else data, as_json=as_json)
    return str(caught.value).splitlines()


def test_columns_come_in_any_order_and_empty_cells_take_the_default() -> None:
    text = "kind,severity,value,sensor,device,debounce_count\nmax,,30,temperature,kitchen,\n"
    expected = accept({"device": "kitchen", "sensor": "temperature", "kind": "max", "value": 30.0})
    assert read_csv(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{HEADER}\r\nkitchen,temperature,max,30\r\n",
        f"{HEADER}\n\nkitchen, temperature, max , 30\n\n",
        ' device, "sensor",kind,value\n"kitchen","temperature","max","30"',
    ],
    ids=["from a spreadsheet", "with spaces and blank lines", "quoted, without a last newline"],
)
def test_csv_as_people_and_programs_write_it(text: str) -> None:
    (rule,) = read_csv(text)
    assert (rule.device, rule.sensor, rule.kind, rule.value) == ("kitchen", "temperature", "max", 30.0)


def test_an_empty_state_is_a_state_and_other_empty_texts_are_none() -> None:
    states, limits = read_csv("device,sensor,kind,value,text\ngate,door,equals,,\ngate,door,max,3,\n")
    assert (states.text, limits.text) == ("", None)


@PATIENT
@given(st.lists(good_cells(), max_size=5))
def test_what_is_written_reads_back_as_exactly_the_same(cells: list[dict[str, Any]]) -> None:
    rules = list({rule.id: rule for rule in map(accept, cells)}.values())
    text = "".join(rule_files.csv_lines(rules))
    assert read_csv(text) == rules
    assert [list(map(str, rule)) for rule in read_csv(text)] == [list(map(str, rule)) for rule in rules]
    assert read_json([rule._asdict() for rule in rules]) == rules


def test_every_bad_line_is_told_with_its_column_and_what_it_takes() -> None:
    text = (
        f"{HEADER},text\n"
        "kitchen,temperature,max,hot,\n"
        'kitchen,"two\nlines",max,30,\n'
        "kitchen,temperature,above,30,\n"
        "kitchen,temperature,max\n"
        ",temperature,max,30,open\n"
    )
    told = refusal(text)
    assert told[0].startswith("line 2, value: is 'hot'")
    assert told[1].startswith("line 5, kind: is 'above'; it takes one of min, max")
    assert told[2] == "line 6 has 3 cells, the header has 5"
    assert told[3].startswith("line 7, device: is missing")
    assert told[4].startswith("line 7, text: means nothing for max")
    assert len(told) == 5


def test_twenty_complaints_are_shown_and_the_rest_counted() -> None:
    told = refusal(HEADER + "\n" + "kitchen,temperature,max,hot\n" * 25)
    assert len(told) == 21
    assert (told[0][:7], told[19][:8], told[20]) == ("line 2,", "line 21,", "and 5 more")


def test_the_same_rule_twice_is_refused_and_the_other_line_named() -> None:
    (told,) = refusal(
        f"{HEADER}\nkitchen,temperature,max,30\nkitchen,door,max,1\nkitchen,temperature,max,31\n"
    )
    assert told.startswith("line 4, id: is the same rule as line 2 (id ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty; its first line names the columns: id,device,"),
        ("device;sensor;kind\na;b;max", "columns are separated by commas"),
        ("device,sensor\n", "line 1: the column kind is missing"),
        ("device,sensor,kind,colour\n", "line 1: there is no column 'colour'; known are id, device"),
        ("device,sensor,kind,kind\n", "line 1: the column kind stands there 2 times"),
        (f'{HEADER}\nkitchen,"temperature,max,30\n', "is not CSV: "),
        (b"device,sensor,kind\nk\xfcche,t,max\n", "line 2 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_table_of_rules_is_refused_in_words(text: str | bytes, words: str) -> None:
    told = refusal(text)
    assert any(words in line for line in told), told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "line 1 is not JSON"),
        ("{}", "takes an array of objects"),
        ("[3]", "item 1 is not an object"),
        ("[{}]", "item 1, device: is missing"),
        ('[{"device": ["a"]}]', "item 1, device: is an array or an object"),
        ('[{"device": "a", "device": "b"}]', "item 1 has the member 'device' twice"),
        ('[{"device": "a", "sensor": "b", "kind": "max", "value": NaN}]', "item 1, value: "),
        ('[{"device": "\\ud800", "sensor": "b", "kind": "max", "value": 1}]', "cannot be stored"),
        ("[" * 100_000, "not JSON that can be read"),
        ("[" + "9" * 5000 + "]", "not JSON that can be read"),
    ],
)
def test_json_that_holds_no_rules_is_refused_in_words(text: str, words: str) -> None:
    told = refusal(text, as_json=True)
    assert any(words in line for line in told), told


@PATIENT
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_rules_or_refused(data: bytes, as_json: bool) -> None:
    assert read_or_words(data, as_json=as_json)


@PATIENT
@given(
    st.lists(st.lists(st.sampled_from([*COLUMNS, "max", "", '"', "\n", "1", ";"]), max_size=6), max_size=4)
)
def test_any_cells_are_rules_or_refused(lines: list[list[str]]) -> None:
    text = "\n".join(",".join(cells) for cells in lines)
    assert read_or_words(text.encode(), as_json=False)


def test_a_long_state_is_read_and_the_limit_of_the_csv_module_put_back() -> None:
    before = csv.field_size_limit()
    (rule,) = read_csv(f"device,sensor,kind,text\na,b,equals,{'x' * 300_000}\n")
    assert len(rule.text or "") == 300_000
    assert csv.field_size_limit() == before


def test_what_list_tells_beside_a_rule_is_passed_over() -> None:
    assert (
        len(read_json([{"device": "a", "sensor": "b", "kind": "max", "value": 1, "open_alerts": 2}])) == 1
    )
