"""Rules as CSV or JSON: from text to definitions with everything that is wrong, and back. Pure."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ops.output import excerpt
from ops.quantities import Raw, number_text
from ops.rules import COLUMNS, REQUIRED, STATES, Definition, Wrong, accept

SHOWN = 20
# `thresholds list --json` tells this too; what it printed may be imported.
TOLD_ONLY = "open_alerts"
_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')


class Place(NamedTuple):
    """Where in a file: `line 7` of CSV, `item 7` of JSON."""

    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.unit} {self.number}"


class Complaints:
    """What is wrong with a file: the first `SHOWN` as sentences, and how many there are."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(sentence)

    def __str__(self) -> str:
        rest = self.count - len(self.shown)
        more = [f"and {rest} more"] if rest else []
        return "\n".join([*self.shown, *more])


class Unusable(Exception):
    """A file of which nothing was taken. The message: a line for each complaint."""


def read(data: bytes, *, as_json: bool) -> list[Definition]:
    """All rules of a file. Raises `Unusable`."""
    complaints = Complaints()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unusable(f"line {line} is not UTF-8; save the file as UTF-8") from None
    rows = _json_rows(text, complaints) if as_json else _csv_rows(text, complaints)
    found: list[Definition] = []
    places: dict[str, Place] = {}
    for place, cells in rows:
        try:
            rule = accept(cells)
        except Wrong as wrong:
            for problem in wrong.problems:
                complaints.add(f"{place}, {problem.column}: {problem.sentence}")
            continue
        if rule.id in places:
            complaints.add(
                f"{place}, id: is the same rule as {places[rule.id]} (id {excerpt(rule.id, 100)});"
                " leave one out, or give them ids"
            )
        places.setdefault(rule.id, place)
        found.append(rule)
    if complaints.count:
        raise Unusable(str(complaints))
    return found


def _csv_rows(text: str, complaints: Complaints) -> Iterator[tuple[Place, dict[str, Raw]]]:
    # A state may be long; the limit is the module's, so it is put back.
    usual = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        header: list[str] | None = None
        begins = 1
        for row in reader:
            place, begins = Place("line", begins), reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = _header(place, row)
            elif len(row) != len(header):
                complaints.add(f"{place} has {len(row)} cells, the header has {len(header)}")
            else:
                yield place, _csv_cells(header, row)
        if header is None:
            raise Unusable(f"the file is empty; its first line names the columns: {','.join(COLUMNS)}")
    except csv.Error as error:
        complaints.add(f"line {reader.line_num} is not CSV: {error}")
    finally:
        csv.field_size_limit(usual)


def _header(place: Place, row: list[str]) -> list[str]:
    """The names of the columns. Raises `Unusable`: without them no line can be read."""
    header = [name.strip() for name in row]
    wrong = Complaints()
    for name in dict.fromkeys(header):
        if name not in COLUMNS:
            wrong.add(f"{place}: there is no column '{excerpt(name)}'; known are {', '.join(COLUMNS)}")
        elif header.count(name) > 1:
            wrong.add(f"{place}: the column {name} stands there {header.count(name)} times")
    for name in REQUIRED:
        if name not in header:
            wrong.add(f"{place}: the column {name} is missing")
    if wrong.count and len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise Unusable(f"{place}: columns are separated by commas, not by semicolons or tabs")
    if wrong.count:
        raise Unusable(str(wrong))
    return header


def _csv_cells(header: list[str], row: list[str]) -> dict[str, Raw]:
    """An empty cell takes the default; but for a state, which may be the empty text."""
    cells: dict[str, Raw] = dict(zip(header, row, strict=True))
    for name in ("kind", "severity", "enabled"):
        if name in cells:
            cells[name] = str(cells[name]).strip()
    state = cells.get("kind") in STATES
    return {name: cell for name, cell in cells.items() if cell != "" or (state and name == "text")}


def _json_rows(text: str, complaints: Complaints) -> Iterator[tuple[Place, dict[str, Raw]]]:
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise Unusable(f"line {error.lineno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Unusable(f"not JSON that can be read: {error}") from None
    if not isinstance(found, list):
        raise Unusable("a JSON file takes an array of objects, one for each rule")
    for number, item in enumerate(found, 1):
        place = Place("item", number)
        if not isinstance(item, _Object):
            complaints.add(f"{place} is not an object with the members {', '.join(COLUMNS)}")
        elif item.repeated:
            complaints.add(f"{place} has the member '{excerpt(item.repeated)}' twice")
        elif nested := [name for name, cell in item.items() if isinstance(cell, list | dict)]:
            complaints.add(f"{place}, {excerpt(nested[0])}: is an array or an object; it takes one value")
        else:
            yield place, {name: cell for name, cell in item.items() if name != TOLD_ONLY}


class _Object(dict[str, Any]):
    """A JSON object that remembers a name that it had twice."""

    repeated: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found.repeated = next(name for name in names if names.count(name) > 1)
    return found


def csv_lines(rules: Iterable[Definition]) -> Iterator[str]:
    """A header and a line for each rule, such that `read` gives the same rules."""
    yield ",".join(COLUMNS) + "\n"
    for rule in rules:
        yield ",".join(_cell(cell) for cell in rule) + "\n"


def _cell(cell: Raw) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        return number_text(cell)
    text = str(cell)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
