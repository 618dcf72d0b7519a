"""Programs by fork from a process that has everything imported: a start costs a tenth of a second.

They run `main.main(words)`, as `python main.py` does, each with an environment and a log of its own.
Nothing of what they share has been used before the fork.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from tests.support import ROOT, Daemon, Database, clean_environment, worker_environment


class Forge:
    """Starts programs. `close` kills those that still run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forge"],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()

    def start(self, environment: dict[str, str], log: Path, *words: str, naive: bool = False) -> Forged:
        """`python main.py` with these words, or the naive worker; what it says goes to `log`."""
        log.touch()
        settings = {**clean_environment(), **environment}
        question = {"environment": settings, "log": str(log), "words": words, "naive": naive}
        return Forged(self, self.ask(question), log)

    def ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


class Child:
    """As much of `subprocess.Popen` as `Daemon` needs, for a child of the forge."""

    def __init__(self, forge: Forge, pid: int) -> None:
        self._forge = forge
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None
        self._lock = threading.Lock()  # `die_now` may be called while `wait` ends

    def poll(self) -> int | None:
        return self.wait() if self._ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            if not self._ended(timeout):
                raise subprocess.TimeoutExpired("a forged program", timeout or 0)
            with self._lock:
                self._status = self._forge.ask({"reap": self.pid})
                os.close(self._pidfd)
        return self._status

    def _ended(self, timeout: float | None) -> bool:
        return self._status is not None or bool(select.select([self._pidfd], [], [], timeout)[0])

    def send_signal(self, number: int) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def die_now(self) -> None:
        """Killed, and dead when this returns. Any thread may call it; reaped later."""
        with self._lock:
            self.kill()
            self._ended(30)


class Forged(Daemon):
    """A program that came from a forge."""

    def __init__(self, forge: Forge, pid: int, log: Path) -> None:
        self.log = log
        self.child = Child(forge, pid)
        self.process = self.child  # type: ignore[assignment]


@contextlib.contextmanager
def forging() -> Iterator[Forge]:
    forge = Forge()
    try:
        yield forge
    finally:
        forge.close()


@contextlib.contextmanager
def daemons(forge: Forge, log_folder: Path) -> Iterator[Callable[..., Daemon]]:
    """A function that starts workers, each stopped by its id at the end, come what may."""
    started: list[Daemon] = []

    def start(database: Database, redis_url: str, *, naive: bool = False, **settings: object) -> Daemon:
        environment = worker_environment(database, redis_url, **settings)
        log = log_folder / f"daemon-{len(started)}.log"
        started.append(forge.start(environment, log, naive=naive))
        return started[-1]

    try:
        yield start
    finally:
        for daemon in started:
            daemon.end()


def _serve() -> None:
    import main
    from tests import naive

    gc.collect()
    gc.freeze()  # or every worker would look through all of it at its start
    children: set[int] = set()
    try:
        for line in sys.stdin:
            question = json.loads(line)
            if "reap" in question:
                _, status = os.waitpid(question["reap"], 0)
                children.discard(question["reap"])
                print(os.waitstatus_to_exitcode(status), flush=True)
                continue
            pid = os.fork()
            if pid == 0:
                _become(question["environment"], Path(question["log"]))
                if offset := question["environment"].get("TESTS_CLOCK_OFFSET"):
                    vars(main).update(time=_Time(Path(offset)), datetime=_Datetime(Path(offset)))
                code = 70  # as of a process that an exception ends; its traceback is in the log
                try:
                    code = naive.main() if question["naive"] else main.main(question["words"])
                finally:
                    if sys.exc_info()[0]:
                        traceback.print_exc()
                    sys.stdout.flush()
                    os._exit(code)
            children.add(pid)
            print(pid, flush=True)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)


class _Time:
    """`time` for `main`, off by the seconds that a file says."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, offset: Path) -> None:
        self._offset = offset

    def time_ns(self) -> int:
        return time.time_ns() + int(self._offset.read_text() or 0) * 10**9


class _Datetime:
    """`datetime` for `main`, likewise."""

    def __init__(self, offset: Path) -> None:
        self._offset = offset

    def now(self, zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(seconds=int(self._offset.read_text() or 0))


def _become(environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.chdir(log.parent)


if __name__ == "__main__":
    _serve()
