"""The short form of every benchmark, and one table: what was measured against what is wanted.

    .venv/bin/python -m benchmarks.summary [--full] [--no-peers] [--from FOLDER] [--json FOLDER]

Runs throughput, latency, scale, redelivery and profile one after the other, each with servers of its own
and, unless --full is given, in its short form. `--json` keeps the JSON of each in a folder; `--from` runs
nothing and makes the table of what lies there. A target that the run did not measure, such as 100,000
streams in the short form, is left open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import ROOT, number

BENCHMARKS = ("throughput", "redelivery", "latency", "scale", "profile")


class Target(NamedTuple):
    """What a figure should be. `more`: more is better."""

    what: str
    benchmark: str
    figure: str
    least: float
    aim: float
    unit: str = ""
    more: bool = True

    def met(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.more else value <= wanted

    def verdict(self, value: float) -> str:
        if self.met(value, self.aim):
            return "aim met"
        if self.met(value, self.least):
            return "met"
        return f"missed: {number(value / self.least)} of it"


TARGETS = (
    Target("flat, 1 worker, of the COPY limit", "throughput", "flat: of the limit", 0.40, 0.60),
    Target("packed, 1 worker, of the COPY limit", "throughput", "packed: of the limit", 0.65, 0.85),
    Target(
        "flat, CPU a reading, of a bare loop's",
        "throughput",
        "flat: CPU of the bare loop's",
        1.8,
        1.2,
        more=False,
    ),
    Target("flat, against peer (a)", "throughput", "flat: of peer a", 10, 20, " x"),
    Target("flat, against peer (b)", "throughput", "flat: of peer b", 5, 10, " x"),
    Target("2 workers against 1, flat", "scale", "2 workers, 1,000 streams: of 1 worker", 1.6, 1.9, " x"),
    Target("2 workers against 1, sharded", "scale", "2 workers, 64 shards: of 1 worker", 1.6, 1.9, " x"),
    Target(
        "100,000 streams, 1 % active, of 100 streams",
        "scale",
        "100,000 streams, 1 % active: of 100",
        0.5,
        0.8,
    ),
    Target(
        "idle CPU, 10,000 quiet streams",
        "scale",
        "10,000 streams, 1 % active: idle worker",
        3,
        1,
        " %",
        more=False,
    ),
    Target("p99 at 1,000 readings/s", "latency", "1,000 readings/s: p99", 50, 20, " ms", more=False),
    Target("p99 beside a backlog", "latency", "beside a backlog: p99", 1000, 250, " ms", more=False),
    Target("memory, flat backlog", "throughput", "flat: sluice, memory", 150, 80, " MB", more=False),
    Target(
        "memory, 10,000 streams",
        "scale",
        "10,000 streams, 100 % active: memory",
        150,
        80,
        " MB",
        more=False,
    ),
    Target("all duplicates, of clean", "redelivery", "all duplicates: of clean", 0.35, 0.6),
    Target("1 % bad rows, of clean", "redelivery", "1 % bad rows: of clean", 0.9, 0.97),
)


def run(benchmark: str, folder: Path, *options: str) -> None:
    print(f"\n== {benchmark}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", str(folder / f"{benchmark}.json")]
    if subprocess.run([*command, *options], cwd=ROOT, check=False).returncode:
        raise SystemExit(f"benchmark: {benchmark} failed")


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """What each benchmark has written; nothing where one has not run."""
    found: dict[str, dict[str, Any]] = {}
    for benchmark in BENCHMARKS:
        file = folder / f"{benchmark}.json"
        try:
            found[benchmark] = json.loads(file.read_text(encoding="utf-8"))["figures"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError) as error:
            raise SystemExit(f"benchmark: {file} is not what a benchmark writes: {error}") from None
    if not found:
        raise SystemExit(f"benchmark: there are no figures in {folder}")
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, as benchmarks/README.md has it."""
    rows = ["| what | at least | aim | measured | how far |", "|---|---|---|---|---|"]
    for target in TARGETS:
        figure = found.get(target.benchmark, {}).get(target.figure)
        measured, verdict = "not in this run", ""
        if figure:
            spread = f"{number(figure['low'])} to {number(figure['high'])}"
            measured = f"{number(figure['median'])}{target.unit} ({spread})"
            verdict = target.verdict(figure["median"])
        wanted = f"{number(target.least)}{target.unit} | {number(target.aim)}{target.unit}"
        rows.append(f"| {target.what} | {wanted} | {measured} | {verdict} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the usual form of each, not the short one")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="figures that are there")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="keep the figures there")
    chosen = parser.parse_args(arguments)
    if chosen.source:
        print(table(figures(chosen.source)))
        return 0
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as home:
        folder = chosen.json or Path(home)
        folder.mkdir(parents=True, exist_ok=True)
        form = [] if chosen.full else ["--short"]
        peers = [] if chosen.peers else ["--no-peers"]
        for benchmark in BENCHMARKS:
            run(benchmark, folder, *form, *(peers if benchmark == "throughput" else []))
        print("\n" + table(figures(folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
