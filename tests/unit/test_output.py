"""What commands print: aligned, safe for a terminal, and nothing where reading failed midway."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from ops import output


def test_a_table_is_aligned_and_counts_its_rows() -> None:
    out = io.StringIO()
    assert output.table(("id", "device"), [("1", "kitchen"), ("long-id", "é")], out) == 2
    assert out.getvalue() == "id       device\n1        kitchen\nlong-id  é\n"


def test_a_table_without_rows_prints_nothing() -> None:
    out = io.StringIO()
    assert output.table(("id",), [], out) == 0
    assert out.getvalue() == ""


def test_what_a_device_calls_itself_moves_no_cursor() -> None:
    out = io.StringIO()
    output.table(("device",), [("a\x1b[2Jb\r\n\u202ec",)], out)
    assert out.getvalue() == "device\na\\x1b[2Jb\\r\\n\\u202ec\n"


@pytest.mark.parametrize("count", [0, 1, 2, 50_000])
def test_a_list_of_any_length_is_one_json_array(count: int) -> None:
    out = io.StringIO()
    assert output.json_array(({"n": n, "text": 'a"\n'} for n in range(count)), out) == count
    found = json.loads(out.getvalue())
    assert [one["n"] for one in found] == list(range(count))


def test_a_failure_in_the_middle_prints_nothing() -> None:
    def rows() -> Iterator[tuple[str]]:
        yield ("a",)
        raise ValueError("the server is away")

    out = io.StringIO()
    with pytest.raises(ValueError, match="away"):
        output.table(("device",), rows(), out)
    assert out.getvalue() == ""
