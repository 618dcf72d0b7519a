"""Where a worker's processor time goes: microseconds a reading by stage, taken on the real loop.

    .venv/bin/python -m benchmarks.profile [--workloads flat packed] [--short] [--json FILE] …

`DatabaseWriterService.run` drains the backlogs of benchmarks.throughput in this process, with two rules on
every series unless --no-rules is given. Each stage is one or more functions that are called once a batch;
around each stands a clock that counts the processor time of its thread and the time by the wall, less what
the stages inside it took. So "commit wait" is what COPY and COMMIT spend neither encoding nor computing. A
profiler that counts every call would make small functions look dear.

A stage whose functions are gone, because somebody renamed them, is named as not found: mend `STAGES`.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any, NamedTuple

import config
import redis_client
from benchmarks import bench
from benchmarks.bench import Figures
from benchmarks.workloads import START, Backlog, Flat, Packed, Workload
from main import DatabaseWriterService
from redis_reader import RedisReader

# In the order of a batch. Every function that exists counts towards its stage; at least one has to.
STAGES: dict[str, tuple[str, ...]] = {
    "read": (
        "redis_reader:RedisReader.read",
        "redis_reader:RedisReader.read_ahead",
        "redis_reader:RedisReader.recover",
    ),
    "parse": ("parse:parse_all", "batches:parse_batch"),
    "batch": ("schema:Batch.readings", "schema:decide", "fates:decide"),
    "registry": (
        "registry:Registry.note",
        "registry:Registry.refused",
        "registry:Registry.unknown",
        "housekeeping:Housekeeping.write_registry",
        "db_writer:DatabaseWriter._note",
    ),
    "sort and cut": ("portions:Portions.run",),
    "thresholds": ("alerting:Alerting.judge",),
    "telling": ("telling:Telling.tell",),
    "encode": ("rows:encode", "rows:encode_numbered"),
    "copy and commit": ("db_writer:DatabaseWriter._attempt",),
    "write, the rest": ("db_writer:DatabaseWriter.write",),
    "ack": ("redis_reader:RedisReader.settle",),
    "upkeep": ("db_writer:DatabaseWriter.upkeep", "redis_reader:RedisReader.upkeep"),
}


class Spent(NamedTuple):
    cpu: float = 0.0
    wall: float = 0.0

    def plus(self, cpu: float, wall: float) -> Spent:
        return Spent(self.cpu + cpu, self.wall + wall)


@dataclass(slots=True)
class _Frame:
    inside: Spent = field(default_factory=Spent)


@dataclass(slots=True)
class Clocks:
    """What each stage took in all threads, each without the stages inside it."""

    spent: dict[str, Spent] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        frames: list[_Frame] = self._local.__dict__.setdefault("frames", [])
        frame = _Frame()
        frames.append(frame)
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            frames.pop()
            if frames:
                frames[-1].inside = frames[-1].inside.plus(cpu, wall)
            own = (cpu - frame.inside.cpu, wall - frame.inside.wall)
            with self._lock:
                self.spent[stage] = self.spent.get(stage, Spent()).plus(*own)

    def around(self, stage: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def outer(*arguments: Any, **named: Any) -> Any:
            with self.running(stage):
                return inner(*arguments, **named)

        return outer


@contextmanager
def measured(clocks: Clocks) -> Iterator[list[str]]:
    """Clocks around the functions of every stage, taken away afterwards: the stages not found."""
    undo: list[tuple[Any, str, Any]] = []
    missing = []
    try:
        for stage, functions in STAGES.items():
            places = [place for function in functions for place in _places(function)]
            places = [place for place in places if isinstance(place[2], (FunctionType, property))]
            for owner, name, found in places:
                undo.append((owner, name, found))
                if isinstance(found, property) and found.fget:
                    setattr(owner, name, property(clocks.around(stage, found.fget)))
                else:
                    setattr(owner, name, clocks.around(stage, found))
            if not places:
                missing.append(stage)
        yield missing
    finally:
        for owner, name, found in reversed(undo):
            setattr(owner, name, found)


def _places(function: str) -> Iterator[tuple[Any, str, Any]]:
    """Where a function is known by name: its class, or every module that imported it. None: it is gone."""
    module, _, path = function.partition(":")
    try:
        owner: Any = importlib.import_module(module)
        *classes, name = path.split(".")
        for one in classes:
            owner = getattr(owner, one)
        found = vars(owner)[name]
    except (ImportError, AttributeError, KeyError):
        return
    if classes:
        yield owner, name, found
        return
    for other in list(sys.modules.values()):
        for known, value in list(getattr(other, "__dict__", {}).items()):
            if value is found:
                yield other, known, found


def drain_here(redis_url: str, database_url: str, entries: int, clocks: Clocks) -> tuple[Spent, list[str]]:
    """Drain the backlog with a worker in this process: what that took in all, and the stages not found.

    That is from the first read, after streams were found and rules learnt, to the end of the last batch.
    """
    settings = config.load(redis_url=redis_url, database_url=database_url, consumer_name="bench-profile")
    began: list[float] = []
    ended: list[float] = []
    with measured(clocks) as missing, redirected() as redirect:
        service = DatabaseWriterService(settings)

        def before_read() -> None:
            if not began:
                clocks.spent.clear()
                began[:] = [time.process_time(), time.perf_counter()]

        def after_settle() -> None:
            ended[:] = [time.process_time(), time.perf_counter()]
            stop_when_done()

        def stop_when_done() -> None:
            if service.stats.messages_written >= entries:
                service.stop()

        redirect("read", before_read, None)
        redirect("settle", None, after_settle)
        redirect("upkeep", None, stop_when_done)  # what was settled may be counted only later
        service.run()
    if service.stats.messages_written != entries:
        raise SystemExit(f"the worker settled {service.stats.messages_written} of {entries} entries")
    return Spent(ended[0] - began[0], ended[1] - began[1]), missing


Hook = Callable[[], None] | None


@contextmanager
def redirected() -> Iterator[Callable[[str, Hook, Hook], None]]:
    """Calls something before and after a method of the reader; undone at the end."""
    undo: dict[str, Any] = {}

    def redirect(name: str, before: Hook, after: Hook) -> None:
        inner = undo[name] = vars(RedisReader)[name]

        @wraps(inner)
        def outer(*arguments: Any, **named: Any) -> Any:
            if before:
                before()
            try:
                return inner(*arguments, **named)
            finally:
                if after:
                    after()

        setattr(RedisReader, name, outer)

    try:
        yield redirect
    finally:
        for name, inner in undo.items():
            setattr(RedisReader, name, inner)


def profile(
    name: str, workload: Workload, urls: tuple[str, str], chosen: Any, figures: Figures
) -> set[str]:
    """All rounds of one workload. Answers the stages that were not found."""
    lost: set[str] = set()
    with redis_client.connect(urls[0], timeout_sec=120) as client:
        backlog = Backlog(client, workload)
        for counts, _ in bench.rounds(chosen, [name]):
            backlog.restore()
            bench.empty(urls[1])
            clocks = Clocks()
            whole, missing = drain_here(*urls, workload.entries, clocks)
            lost |= set(missing)
            if counts:
                _note(name, workload, clocks, whole, figures)
    return lost


def _note(name: str, workload: Workload, clocks: Clocks, whole: Spent, figures: Figures) -> None:
    per = 1e6 / workload.readings
    for stage in STAGES:
        if stage in clocks.spent:
            figures.add(f"{name}: {stage}", clocks.spent[stage].cpu * per, "us of CPU a reading")
    known = sum(spent.cpu for spent in clocks.spent.values())
    figures.add(f"{name}: elsewhere", max(0.0, whole.cpu - known) * per, "us of CPU a reading")
    figures.add(f"{name}: in all", whole.cpu * per, "us of CPU a reading")
    commit = clocks.spent.get("copy and commit", Spent())
    figures.add(f"{name}: commit wait", (commit.wall - commit.cpu) * per, "us of waiting a reading")
    figures.add(f"{name}: by the clock", whole.wall * per, "us a reading")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.command_line(__doc__, entries=200_000, short=60_000)
    parser.add_argument("--workloads", nargs="+", choices=("flat", "packed"), default=("flat", "packed"))
    bench.add_rules_option(parser)
    chosen = bench.parse(parser, arguments)
    workloads: dict[str, Workload] = {"flat": Flat(chosen.entries), "packed": Packed(chosen.entries // 4)}
    figures = Figures("profile")
    lost: set[str] = set()
    with bench.place(chosen) as urls:
        bench.have_partitions(urls[1], {START // 86_400})
        bench.make_rules(urls[1], watched=chosen.rules)
        for name in chosen.workloads:
            lost |= profile(name, workloads[name], urls, chosen, figures)
    figures.tell(chosen)
    for stage in STAGES:
        if stage in lost:
            names = " or ".join(STAGES[stage])
            print(f"stage not found: {stage}. There is no {names}; its time is part of another stage's.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
