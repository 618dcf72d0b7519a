"""What tests share: waiting for a condition, databases, daemons as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis

import config
import redis_client
from config import Settings
from ops.ledger import Books, read_ledger
from serving import Service
from standalone.servers import Server

ROOT = Path(__file__).resolve().parent.parent
S = TypeVar("S", bound=Server)


def is_needed(program: str) -> bool:
    """Whether tests fail where this program of the system is missing, rather than being left out.

    So it is where CI is set, and where SLUICE_TESTS_NEED names it. SLUICE_TESTS_NEED has the last word: the
    empty string says that nothing is needed.
    """
    usual = "mosquitto chromium pgbouncer redis-tools postgresql" if os.environ.get("CI") else ""
    wanted = os.environ.get("SLUICE_TESTS_NEED", usual)
    return program in wanted.split()


def is_long() -> bool:
    """Whether tests that have a long form run so (SLUICE_LONG=1). The short one proves the same on less."""
    return os.environ.get("SLUICE_LONG", "") not in ("", "0")


def wait_until(condition: Callable[[], object], seconds: float = 30.0, what: str = "the condition") -> None:
    """Ask every 20 ms until `condition` holds, and less often where asking takes long: what is waited for
    needs the processor too. Fails the test when it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"{what} did not come about within {seconds} s"
        threading.Event().wait(min(max(0.02, 2 * (now - began)), 0.5))


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test, with the schema. `timescale`: its readings are a hypertable."""

    url: str
    timescale: bool

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """One statement in a session of its own, committed."""
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def count(self) -> int:
        return int(self.rows("select count(*) from sensor_readings")[0][0])

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url, "ENABLE_TIMESCALE": str(self.timescale).lower()}


def settings_for(database: Database, redis_url: str, **changes: Any) -> Settings:
    """Settings of a worker that reacts quickly enough for a test."""
    values: dict[str, Any] = {
        "database_url": database.url,
        "enable_timescale": database.timescale,
        "redis_url": redis_url,
        "batch_timeout_sec": 0.1,
        "discovery_interval_sec": 0.05,
        "claim_min_idle_sec": 60,
        "stream_retention_sec": 0,
    }
    return config.load(**(values | changes))


def books(client: redis.Redis, group: str = "db_writer") -> Books:
    """The group's ledger, summed over all streams."""
    return read_ledger(client, group, "mqtt_stream:*", "mqtt_stream:failed").total


def everything_settled(client: redis.Redis, added: int) -> bool:
    """Whether `added` entries were read and none of them is pending."""
    found = books(client)
    return found.read == added and found.pending == 0 and found.missing == 0


def add(client: redis.Redis, stream: str, entries: Sequence[dict[Any, Any]]) -> list[bytes]:
    """XADD each, pipelined. Returns the entry IDs."""
    with client.pipeline(transaction=False) as pipe:
        for fields in entries:
            pipe.xadd(stream, fields)
        return pipe.execute()


def dead_letters(client: redis.Redis) -> list[list[bytes]]:
    """The dead-letter stream: each letter's names and values in turn, as they stand."""
    reply = redis_client.execute(client, "XRANGE", "mqtt_stream:failed", "-", "+")
    return [fields for _, fields in reply]


@contextlib.contextmanager
def started(server: S) -> Iterator[S]:
    """A server that runs until the block ends."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def in_thread(service: Service) -> Iterator[list[BaseException]]:
    """It runs until the block ends, and has to end without an error by then: those come into the list."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield errors
    finally:
        service.stop()
        thread.join(20)
    assert not thread.is_alive(), "it did not stop"
    if errors:
        raise errors[0]


def run_until(service: Service, condition: Callable[[], object]) -> None:
    """Run it in a thread until `condition` holds."""
    with in_thread(service) as errors:
        wait_until(lambda: errors or condition())


class Daemon:
    """`python main.py` as a process, its log in a file: a worker, or another command."""

    def __init__(self, environment: dict[str, str], log: Path, *command: str) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "main.py"), *command],
                env={**clean_environment(), **environment},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, event: str, seconds: float = 30.0) -> None:
        """Wait for a log event, or an end of the process, which fails the test."""

        def seen() -> bool:
            if event in self.text():
                return True
            assert self.process.poll() is None, f"the daemon ended: {self.text()[-2000:]}"
            return False

        wait_until(seen, seconds, f"{event!r} in the log")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it where it still runs, frozen or not."""
        if self.process.poll() is None:
            self.thaw()
            self.kill()

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM, once it catches that: a process that still loads would end with -15. Its exit status."""
        wait_until(lambda: self.process.poll() is not None or self._catches(signal.SIGTERM), seconds)
        self.process.terminate()
        return self.process.wait(seconds)

    def _catches(self, number: int) -> bool:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
        return bool(int(caught, 16) >> (number - 1) & 1)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def program(environment: dict[str, str], log: Path, *command: str) -> Iterator[Daemon]:
    """`python main.py` as a process of its own, killed at the end where it still runs."""
    daemon = Daemon(environment, log, *command)
    try:
        yield daemon
    finally:
        daemon.end()


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures Sluice."""
    return {name: value for name, value in os.environ.items() if name not in _OURS}


_OURS = {name.upper() for name in Settings.model_fields} | {"TEST_DATABASE_URL"}


def worker_environment(database: Database, redis_url: str, **settings: object) -> dict[str, str]:
    """The environment of a worker that reacts quickly enough for a test."""
    return {
        **database.environment(),
        "REDIS_URL": redis_url,
        "BATCH_TIMEOUT_SEC": "0.2",
        "DISCOVERY_INTERVAL_SEC": "0.2",
        "STREAM_RETENTION_SEC": "0",
        **{name.upper(): str(value) for name, value in settings.items()},
    }
