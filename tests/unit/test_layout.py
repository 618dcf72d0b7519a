"""Holds the code to the table of rooms in docs/internals.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r"^\| `(?P<room>[\w/.]+)` \| (?P<job>.+) \| (?P<may>[^|]+) \|$", re.MULTILINE)


@cache
def rooms() -> dict[str, set[str] | None]:
    """Room to the rooms it may import; None: all."""
    table = {
        row["room"].rstrip("/").removesuffix(".py"): row["may"].strip() for row in ROW.finditer(_text())
    }
    spine = {room for room in table if (ROOT / f"{room}.py").exists() and room != "main"}
    allowed: dict[str, set[str] | None] = {}
    for room, may in table.items():
        names = set(re.findall(r"`([\w/]+)`", may))
        allowed[room] = None if may == "all" else names | (spine if "spine" in may else set())
    return allowed


def _text() -> str:
    return (ROOT / "docs" / "internals.md").read_text(encoding="utf-8").partition("## The house")[2]


def modules() -> Iterator[tuple[str, Path]]:
    """(room, file) of every first-party module; tests and single migrations are nobody's import."""
    for path in sorted(ROOT.glob("*.py")):
        yield path.stem, path
    for folder in ("health", "mqtt", "ops", "query", "dashboard", "standalone", "alembic", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.parent.name != "versions":
                yield folder, path


def imported(path: Path) -> set[str]:
    """First-party rooms that a module imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    # `import alembic` is the package, never our folder of migrations, which is no package
    return (found & set(rooms())) - {"alembic"}


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda value: str(value).rpartition("/")[2])
def test_a_module_imports_only_what_the_table_allows(room: str, path: Path) -> None:
    assert room in rooms(), f"{path.name} has no room in docs/internals.md"
    allowed = rooms()[room]
    if allowed is not None:
        assert imported(path) - {room} <= allowed


def test_every_room_of_the_table_exists() -> None:
    assert len(rooms()) > 20
    for room in rooms():
        assert (ROOT / f"{room}.py").exists() or (ROOT / room).is_dir(), f"there is no {room}"


def test_there_is_no_circle_of_imports() -> None:
    arrows: dict[str, set[str]] = {}
    for room, path in modules():
        arrows.setdefault(room, set()).update(imported(path) - {room})
    # main loads ops where a command asks for it; nobody imports main but benchmarks and tests
    arrows["main"].discard("ops")
    while arrows:
        leaves = {room for room, targets in arrows.items() if not targets & set(arrows)}
        assert leaves, f"a circle among {sorted(arrows)}"
        arrows = {room: targets for room, targets in arrows.items() if room not in leaves}


@pytest.mark.parametrize("trap", ["alembic/__init__.py", "grpc", "logging.py", "types.py"])
def test_nothing_shadows_a_package_or_the_standard_library(trap: str) -> None:
    assert not (ROOT / trap).exists()


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda value: str(value).rpartition("/")[2])
def test_a_module_says_its_one_responsibility(room: str, path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_loop_fits_one_screen() -> None:
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    (run,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "run")
    assert (run.end_lineno or 0) - run.lineno < 30
