"""Worker processes as users run them, timed by their own logs and by the kernel's books about them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import redis_client
from benchmarks.bench import ROOT
from ops.ledger import Books, read_ledger
from standalone.servers import die_with_parent

_TICKS = os.sysconf("SC_CLK_TCK")
START_SEC = 60.0
STALL_SEC = 120.0


class Worker:
    """`python main.py worker` with default settings. A thread reads its log as it comes."""

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        news: threading.Condition,
        **settings: object,
    ) -> None:
        """`news` is told of each line that the worker logs; workers that are watched together share it."""
        self.entries = 0  # settled, by its log
        self.batches: list[tuple[float, int]] = []  # when it said so, and how many entries
        self.first: dict[
            str, tuple[float, float]
        ] = {}  # event: when it was first logged, and CPU time by then
        self.found_at = 0.0  # Unix time of the last time it said that it has found new streams
        self._tail: deque[str] = deque(maxlen=8)
        self._news = news
        environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "CONSUMER_NAME": f"bench-{os.getpid()}-{time.monotonic_ns()}",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "INFO",
            # Backlogs of few series reach hours ahead: a second for each of their readings.
            "MAX_FUTURE_SEC": "86400",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "worker"],
            cwd=tempfile.gettempdir(),  # where no .env lies
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stderr or ():
            now = time.perf_counter()
            self._tail.append(line)
            with contextlib.suppress(ValueError), self._news:
                told = json.loads(line)
                name = told["event"]
                self.first.setdefault(name, (now, self.cpu()))
                if name == "streams_found":
                    self.found_at = time.time()
                if name == "batch":
                    self.entries += told["entries"]
                    self.batches.append((now, told["entries"]))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until `condition` holds, which is asked at each line of the log."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not condition():
                self._news.wait(0.05)
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"a worker ended, or did nothing for long:\n{''.join(self._tail)}")

    def wait_for(self, event: str) -> None:
        self.wait(lambda: event in self.first, START_SEC)

    @property
    def found(self) -> tuple[float, float]:
        """When it first had found streams, and its processor time by then."""
        return self.first["streams_found"]

    def cpu(self) -> float:
        """Seconds of processor time so far, user and system."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        except OSError:  # it has just ended
            return 0.0
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def peak_mb(self) -> float:
        """The most memory it has held, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000

    def end(self) -> None:
        """SIGTERM, and after a while SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join(10)
        if self.process.stderr:
            self.process.stderr.close()


class Drained(NamedTuple):
    """How a backlog was drained: from when every worker had found the streams to the last entry settled.

    `entries` are those of that time. `cpu` is the processor time of all workers for an entry, from when
    each had found the streams; memory is that of the largest.
    """

    seconds: float
    entries: int
    cpu: float
    peak_mb: float

    def speed(self, readings_per_entry: float) -> float:
        return self.entries * readings_per_entry / self.seconds

    def cpu_us(self, readings_per_entry: float) -> float:
        """Microseconds of processor time a reading."""
        return self.cpu * 1e6 / readings_per_entry


@contextlib.contextmanager
def workers(redis_url: str, database_url: str, count: int, **settings: object) -> Iterator[list[Worker]]:
    """`count` workers that were started together; ended at the end, come what may."""
    started: list[Worker] = []
    news = threading.Condition()
    try:
        # one by one, so that those which did start are ended where another does not
        started.extend(Worker(redis_url, database_url, news, **settings) for _ in range(count))
        yield started
    finally:
        for worker in started:
            worker.end()


def watch(started: Sequence[Worker], entries: int) -> Drained:
    """Wait until workers have settled `entries` by their logs."""
    for worker in started:
        worker.wait_for("streams_found")

    def done() -> int:
        return sum(worker.entries for worker in started)

    while (reached := done()) < entries:
        started[0].wait(partial(_beyond, done, reached), STALL_SEC)
    cpu = sum(worker.cpu() - worker.found[1] for worker in started)
    peak = max(worker.peak_mb() for worker in started)
    batches = [batch for worker in started for batch in worker.batches]
    ended = max(when for when, _ in batches)
    began = max(worker.found[0] for worker in started)
    if began >= ended:  # one had done everything before the last had found its streams
        began = min(worker.found[0] for worker in started)
    before = sum(count for when, count in batches if when < began)
    return Drained(ended - began, entries - before, cpu / entries, peak)


def _beyond(done: Callable[[], int], reached: int) -> bool:
    return done() > reached


def drain(redis_url: str, database_url: str, entries: int, count: int = 1, **settings: object) -> Drained:
    """Have `count` workers drain the backlog of `entries` that is in Redis, and prove that they did."""
    with workers(redis_url, database_url, count, **settings) as started:
        drained = watch(started, entries)
        began = time.perf_counter()
        tries = 0
        while not settled(redis_url, entries):
            tries += 1
            if time.perf_counter() - began > STALL_SEC:
                raise SystemExit(f"the books do not add up: {books(redis_url)}")
        late = time.perf_counter() - began if tries else 0.0  # it logged before it acknowledged
        return drained._replace(seconds=drained.seconds + late)


def books(redis_url: str) -> Books:
    with redis_client.connect(redis_url, timeout_sec=60) as client:
        return read_ledger(client, "db_writer", "mqtt_stream:*", "mqtt_stream:failed").total


def settled(redis_url: str, entries: int) -> bool:
    """Whether every entry has been read and none is pending or missing."""
    found = books(redis_url)
    return (found.read, found.settled, found.pending, found.missing) == (entries, entries, 0, 0)
