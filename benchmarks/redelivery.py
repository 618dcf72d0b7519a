"""What redelivery and bad rows cost, against a clean backlog in the same run.

    .venv/bin/python -m benchmarks.redelivery [--workers K] [--short] [--json FILE] …

The workload is *flat*: one reading an entry over 1,000 streams. Each round drains, in turn:

- clean: a backlog of which nothing is stored yet;
- all duplicates: the same backlog, delivered to a group that knows nothing of it (Redis came back from an
  old snapshot), while every row of it is in the table;
- 1 % duplicates: one row in a hundred is in the table, so every batch holds some;
- 1 % bad rows: one entry in a hundred has no number for a value and is dead-lettered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import redis_client
from benchmarks import bench
from benchmarks.bench import Figures
from benchmarks.daemons import books, drain
from benchmarks.workloads import START, Backlog, Flat, Row, batches, copy, is_one_in
from ops.ledger import Books

EVERY = 100
RUNS = ("clean", "all duplicates", "1 % duplicates", "1 % bad rows")


class Deliveries:
    """The backlogs of one run, and what has to be in the table before each is delivered."""

    def __init__(self, chosen: argparse.Namespace, urls: tuple[str, str], figures: Figures) -> None:
        self._chosen = chosen
        self._redis_url, self._database_url = urls
        self._figures = figures
        good = Flat(chosen.entries)
        rows = list(good.rows())
        bad = Flat(chosen.entries, bad_every=EVERY)
        self._bad = bad.entries - bad.readings
        some = [row for n, row in enumerate(rows) if is_one_in(EVERY, n, good.series)]
        self._there: dict[str, list[Row]] = {"all duplicates": rows, "1 % duplicates": some}
        with redis_client.connect(self._redis_url, timeout_sec=120) as client:
            self._good_backlog = Backlog(client, good)
            self._bad_backlog = Backlog(client, bad)
            for counts, order in bench.rounds(chosen, chosen.kinds):
                for name in order:
                    self._deliver(name, counts)

    def _deliver(self, name: str, counts: bool) -> None:
        there = self._there.get(name, [])
        bench.empty(self._database_url)
        copy(self._database_url, [batches(sorted(there))])
        bench.checkpoint(self._database_url)
        (self._bad_backlog if name == "1 % bad rows" else self._good_backlog).restore()
        drained = drain(self._redis_url, self._database_url, self._chosen.entries, self._chosen.workers)
        self._check(name, len(there), books(self._redis_url))
        if counts:
            self._figures.add(name, drained.speed(1), "entries/s")
            self._figures.add(f"{name}, CPU", drained.cpu_us(1), "us an entry")

    def _check(self, name: str, there: int, found: Books) -> None:
        bad = self._bad if name == "1 % bad rows" else 0
        wanted = (self._chosen.entries - there - bad, there, bad)
        if (found.stored, found.duplicate, found.dead_lettered) != wanted:
            raise SystemExit(f"{name}: stored, duplicate, dead-lettered should be {wanted}, but: {found}")
        rows = bench.count_rows(self._database_url)
        if rows != self._chosen.entries - bad:
            raise SystemExit(f"{name}: the table holds {rows} of {self._chosen.entries - bad} rows")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.command_line(__doc__, entries=200_000, short=60_000)
    parser.add_argument("--workers", type=int, default=1, choices=range(1, 17), metavar="K")
    parser.add_argument("--kinds", nargs="+", choices=RUNS, default=RUNS)
    bench.add_rules_option(parser)
    chosen = bench.parse(parser, arguments)
    figures = Figures("redelivery")
    with bench.place(chosen) as urls:
        bench.have_partitions(urls[1], {START // 86_400})
        bench.make_rules(urls[1], watched=chosen.rules)
        Deliveries(chosen, urls, figures)
    for name in RUNS[1:]:
        figures.ratio(f"{name}: of clean", name, "clean")
    figures.tell(chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
