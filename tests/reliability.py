"""docs/reliability.md: the table of the scenarios, with what a run of them found.

    python -m tests.reliability              run every scenario, the long ones in full, and print the table
    python -m tests.reliability --write      the same, and write it into the page
    python -m tests.reliability --rows       run nothing: take new and changed scenarios into the page
    python -m tests.reliability --from FILE  run nothing: take the figures from a report that is there

A report is what SLUICE_FAULTS_REPORT=FILE makes pytest write. All other arguments go on to pytest.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.scenarios import NOTHING_LOST, REPORT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- from here: python -m tests.reliability -->", "<!-- to here -->"
COLUMNS = (
    "fault",
    "how it is injected",
    "promise",
    "runs",
    "entries",
    "lost",
    "doubled",
    "naive: lost, doubled",
    "test",
)
NO_FIGURES = ("not run", "", "", "", "")
_CELLS = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"\d[\d,]*\b")


class MisplacedFault(Exception):
    """A `fault(…)` that no table can be made of. The message says where, and what to do."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A test with `@fault(…)`. `test`: its node id without parameters."""

    test: str
    name: str
    how: str
    promise: str


class Figures(NamedTuple):
    """The cells of a row that come from a run."""

    runs: str
    entries: str
    lost: str
    doubled: str
    naive: str


Rows = Mapping[str, Figures]


def scenarios(folder: Path = ROOT / "tests") -> list[Scenario]:
    """Every scenario of the tests, read from their source: nothing is imported."""
    return [one for path in sorted(folder.rglob("test_*.py")) for one in _of_module(path, folder.parent)]


def _of_module(path: Path, root: Path) -> Iterator[Scenario]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {"NOTHING_LOST": NOTHING_LOST}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                names[name] = text
    above: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        for call in filter(_is_fault, node.decorator_list):
            assert isinstance(call, ast.Call)
            above.add(call)
            said = {word.arg or "": _text(word.value, names, path) for word in call.keywords}
            said["name"] = _text(call.args[0], names, path) if call.args else said["name"]
            test = f"{path.relative_to(root).as_posix()}::{node.name}"
            yield Scenario(test, said["name"], said["how"], said.get("promise", NOTHING_LOST))
    for node in ast.walk(tree):
        if _is_fault(node) and node not in above:
            assert isinstance(node, ast.Call)
            raise MisplacedFault(f"{path}:{node.lineno}: put @fault(…) right above a test")


def _is_fault(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fault"


def _text(node: ast.expr, names: Mapping[str, str], path: Path) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    raise MisplacedFault(
        f"{path}:{node.lineno}: say it to @fault(…) as a text, or a constant of the module"
    )


def figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, Figures]:
    """What a report says of each test."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(str(line["test"]), []).append(line)
    return {test: _figures(of_test) for test, of_test in found.items()}


def _figures(lines: Sequence[Mapping[str, Any]]) -> Figures:
    def total(key: str) -> str:
        values = [line[key] for line in lines if key in line]
        return f"{sum(values):,}" if values else ""

    runs = sum(line.get("faults", 1) for line in lines if not line["naive"] and line["passed"])
    failed = sum(not line["passed"] for line in lines)
    lost, doubled = total("naive_lost"), total("naive_doubled")
    return Figures(
        f"{runs:,}" + (f", **{failed} failed**" if failed else ""),
        total("entries"),
        total("lost"),
        total("doubled"),
        f"{lost}, {doubled}" if lost else "",
    )


def table(rows: Rows, of: Sequence[Scenario]) -> str:
    """The table; scenarios without figures say so."""
    lines = [COLUMNS, tuple("---:" if name in COLUMNS[3:7] else "---" for name in COLUMNS)]
    for one in of:
        file, _, function = one.test.partition("::")
        link = f"[{function}](../{file})"
        said = (one.name, one.how, one.promise, *rows.get(one.test, Figures(*NO_FIGURES)), link)
        lines.append(tuple(cell.replace("|", "\\|") for cell in said))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parsed(text: str) -> dict[str, Figures]:
    """The figures of a table that is there, by test."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in _CELLS.split(line)[1:-1]]
        link = re.fullmatch(r"\[(?P<function>\w+)\]\(\.\./(?P<file>[\w/.]+)\)", cells[-1] if cells else "")
        if link and len(cells) == len(COLUMNS):
            rows[f"{link['file']}::{link['function']}"] = Figures(*cells[3:8])
    return rows


def head(rows: Rows, of: Sequence[Scenario]) -> str:
    """The two figures at the head of the page, and what they are worth."""

    def total(column: str) -> int:
        cells = (getattr(rows[one.test], column) for one in of if one.test in rows)
        return sum(int(found[0].replace(",", "")) for cell in cells if (found := _NUMBER.match(cell)))

    lost, doubled = total("lost"), total("doubled")
    none = "none lost, none doubled" if not lost and not doubled else f"{lost:,} lost, {doubled:,} doubled"
    return f"**{total('runs'):,} faults survived, {total('entries'):,} entries checked: {none}.**"


def on_page(page: str) -> str:
    """What stands between the marks."""
    return page.partition(BEGIN)[2].partition(END)[0]


def renewed(page: str, rows: Rows, of: Sequence[Scenario], taken: str) -> str:
    """The page with another table. `taken`: how the figures came about."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = (BEGIN, head(rows, of), taken, table(rows, of), END)
    return before + "\n\n".join(part for part in parts if part) + after


def said_of_run(page: str) -> str:
    """How the figures that are on the page came about."""
    found = re.search(r"^Taken .*$", on_page(page), re.MULTILINE)
    return found[0] if found else ""


def run(arguments: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """Play the scenarios; pytest's exit status, and the report."""
    with tempfile.TemporaryDirectory(prefix="sluice-faults-") as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "fault", *arguments]
        environment = {**os.environ, REPORT: str(report), "SLUICE_LONG": "1"}
        status = subprocess.run(command, cwd=ROOT, env=environment)
        return status.returncode, _read(report)


def _read(report: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="The table of faults.")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    parser.add_argument("--rows", action="store_true", help="write new and changed rows, run nothing")
    parser.add_argument("--from", dest="report", type=Path, help="take the figures from this report")
    chosen, others = parser.parse_known_args(arguments)
    page, of = PAGE.read_text(encoding="utf-8"), scenarios()
    known, taken = parsed(on_page(page)), said_of_run(page)
    status, lines = 0, []
    if chosen.report:
        lines = _read(chosen.report)
    elif not chosen.rows:
        began = time.monotonic()
        status, lines = run(others or ["-n", str(min(4, 1 + (os.cpu_count() or 1))), "--dist", "loadgroup"])
        minutes = (time.monotonic() - began) / 60
        taken = f"Taken by `make faults` in {minutes:.0f} minutes on {os.cpu_count()} processors."
    fresh = figures(lines)
    if chosen.rows or chosen.write:
        PAGE.write_text(renewed(page, known | fresh, of, taken), encoding="utf-8")
    if not chosen.rows:
        print(f"\n{head(fresh, of)}\n\n{table(fresh, of)}")
        for line in lines:
            if "megabytes" in line:
                told = f"{line['megabytes']:,} MB at most, with {line['backlog']:,} entries unread"
                print(f"\nmemory of the worker in {line['test'].rpartition('::')[2]}: {told}")
    if unplayed := [one.test for one in of if one.test not in known | fresh]:
        print(f"\nwithout figures: {', '.join(unplayed)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
