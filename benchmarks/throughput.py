"""How fast workers drain a backlog, beside the limit of the machine, a bare loop, and what others would do.

    .venv/bin/python -m benchmarks.throughput [--workers K] [--no-peers] [--short] [--json FILE] …

Two workloads: *flat*, one reading an entry over 1,000 streams, and *packed*, five readings an entry as a
JSON payload over 16 sharded streams. Each round runs, in turn, on the same backlog and the empty table:

- sluice: K daemon processes with default settings and, unless --no-rules is given, two rules on every
  series; from when they have found the streams until every entry is settled;
- limit: binary COPY of the same rows, encoded and sorted beforehand, over K connections, nothing beside it;
- limit as it arrives: the same, sorted within each batch of 5,000 only, in the order of arrival;
- hiredis alone: XREADGROUP over the same streams that reads everything and acknowledges nothing;
- bare loop: hiredis, float(), datetime, psycopg's write_row, COMMIT and XACK, without a check (flat only);
- peers: see benchmarks/peers, on a smaller backlog of their own (flat only).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import redis_client
from benchmarks import bench, rivals
from benchmarks.bench import Figures
from benchmarks.daemons import drain
from benchmarks.workloads import START, Backlog, Flat, Packed, Workload, batches, copy, shares

# Which peer on how many streams, and what part of the entries. FastStream has a subscriber and a connection
# for each stream: on a thousand it stores about 1,000 readings/s, so it is measured where
# that costs it nothing.
PEERS = {"peer a": ("peer a", 1000, 10), "peer b": ("peer b", 10, 5)}


class Side:
    """One workload on its servers: the backlog, the rows, and everything that is done with them."""

    def __init__(self, chosen: argparse.Namespace, urls: tuple[str, str], figures: Figures) -> None:
        self._chosen = chosen
        self._redis_url, self._database_url = urls
        self._figures = figures
        self._client = redis_client.connect(self._redis_url, timeout_sec=120)

    def measure(self, name: str, workload: Workload) -> None:
        """All rounds of one workload."""
        backlog = Backlog(self._client, workload)
        arriving = list(workload.rows())
        parts = {
            "limit": shares(batches(sorted(arriving)), self._chosen.workers),
            "limit as it arrives": shares(batches(arriving), self._chosen.workers),
        }
        del arriving
        runs: dict[str, Callable[[bool], None]] = {
            "sluice": partial(self._sluice, f"{name}: sluice", workload, backlog),
            **{way: partial(self._copy, f"{name}: {way}", workload, parts[way]) for way in parts},
            "hiredis": partial(self._bare, f"{name}: hiredis alone", "read", workload, backlog),
        }
        if isinstance(workload, Flat):
            runs["bare"] = partial(self._bare, f"{name}: bare loop", "store", workload, backlog)
            if self._chosen.peers:
                runs |= {peer: partial(self._peer, peer) for peer in PEERS}
        for counts, order in bench.rounds(self._chosen, list(runs)):
            for one in order:
                bench.empty(self._database_url)
                runs[one](counts)
        self._ratios(name)

    def _sluice(self, name: str, workload: Workload, backlog: Backlog, counts: bool) -> None:
        backlog.restore()
        drained = drain(self._redis_url, self._database_url, workload.entries, self._chosen.workers)
        self._check_rows(workload.readings)
        if counts:
            each = workload.readings / workload.entries
            self._figures.add(name, drained.speed(each))
            self._figures.add(f"{name}, CPU", drained.cpu_us(each), "us a reading")
            self._figures.add(f"{name}, memory", drained.peak_mb, "MB")

    def _copy(self, name: str, workload: Workload, parts: list[Sequence[bytes]], counts: bool) -> None:
        seconds = copy(self._database_url, parts)
        self._check_rows(workload.readings)
        if counts:
            self._figures.add(name, workload.readings / seconds)

    def _bare(self, name: str, way: str, workload: Workload, backlog: Backlog, counts: bool) -> None:
        backlog.restore()
        ran = rivals.bare(way, self._redis_url, self._database_url, workload.entries)
        if way == "store":
            self._check_rows(workload.readings)
        if counts:
            self._figures.add(name, workload.readings / ran.seconds)
            self._figures.add(f"{name}, CPU", ran.cpu * 1e6 / workload.readings, "us a reading")

    def _peer(self, name: str, counts: bool) -> None:
        program, streams, part = PEERS[name]
        workload = Flat(max(100, self._chosen.entries // part), streams)
        Backlog(self._client, workload).restore()
        ran = rivals.peer(program, self._redis_url, self._database_url, workload.entries)
        self._check_rows(workload.readings)
        if counts:
            self._figures.add(f"flat: {name}", workload.readings / ran.seconds)
            self._figures.add(f"flat: {name}, CPU", ran.cpu * 1e6 / workload.readings, "us a reading")

    def _check_rows(self, wanted: int) -> None:
        found = bench.count_rows(self._database_url)
        if found != wanted:
            raise SystemExit(f"the table holds {found} of {wanted} rows")

    def _ratios(self, name: str) -> None:
        ratio, mine = self._figures.ratio, f"{name}: sluice"
        ratio(f"{name}: of the limit", mine, f"{name}: limit")
        ratio(f"{name}: of the limit as it arrives", mine, f"{name}: limit as it arrives")
        ratio(f"{name}: of hiredis alone", mine, f"{name}: hiredis alone")
        ratio(f"{name}: CPU of the bare loop's", f"{mine}, CPU", f"{name}: bare loop, CPU")
        for peer in PEERS:
            ratio(f"{name}: of {peer}", mine, f"{name}: {peer}")

    def close(self) -> None:
        self._client.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.command_line(__doc__, entries=200_000, short=60_000)
    parser.add_argument("--workers", type=int, default=1, choices=range(1, 17), metavar="K")
    parser.add_argument("--workloads", nargs="+", choices=("flat", "packed"), default=("flat", "packed"))
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    bench.add_rules_option(parser)
    chosen = bench.parse(parser, arguments)
    workloads: dict[str, Workload] = {"flat": Flat(chosen.entries), "packed": Packed(chosen.entries // 4)}
    figures = Figures("throughput")
    if chosen.peers and "flat" in chosen.workloads:
        rivals.install_peers()
    with bench.place(chosen) as urls:
        bench.have_partitions(urls[1], {START // 86_400})
        bench.make_rules(urls[1], watched=chosen.rules)
        side = Side(chosen, urls, figures)
        try:
            for name in chosen.workloads:
                side.measure(name, workloads[name])
        finally:
            side.close()
    figures.tell(chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
