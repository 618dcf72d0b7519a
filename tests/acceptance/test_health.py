"""A worker as systemd runs it: what it tells in an outage, of a stuck loop, at a reload and at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from standalone.ports import free_port
from standalone.servers import Valkey
from tests.faults import Proxy, proxy_to
from tests.support import ROOT, Database, add, wait_until

WATCHDOG_SEC = 1.0
STUCK_AFTER_SEC = 2.0  # HEALTH_STUCK_SEC and DB_TIMEOUT_SEC, both 1
# A worker whose loop waits for a lock that nobody gives back, after its first batch.
DEADLOCK = """
import sys, threading
import main
lock = threading.Lock()
lock.acquire()
main.worker_log.batch = lambda *_: lock.acquire()
sys.exit(main.main(["worker"]))
"""


class Systemd:
    """The other end of NOTIFY_SOCKET, and what has come through it: (when, assignment)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._heard: list[tuple[float, str]] = []

    def heard(self, word: str, since: float = 0.0) -> list[str]:
        """The assignments that begin with `word` and came after `since`."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self._socket.recv(4096).decode()
                self._heard += [(time.monotonic(), part) for part in message.split("\n")]
        return [part for when, part in self._heard if part.startswith(word) and when > since]

    def close(self) -> None:
        self._socket.close()


class Worker:
    """A process with a health port, in a folder whose `.env` it reads."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "worker.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**environment, "HEALTH_PORT": str(self.port)},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; (0, "") where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float | None:
        """The value of the sample that stands so in /metrics, labels included."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return None


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    yield found
    found.close()


@pytest.fixture
def redis_proxy(redis_url: str, valkey: Valkey) -> Iterator[Proxy]:
    address = urlsplit(valkey.url)
    upstream = address.path if address.scheme == "unix" else (address.hostname or "", address.port or 0)
    with proxy_to(upstream) as found:
        yield found


@pytest.fixture
def worker(
    database: Database, redis_proxy: Proxy, systemd: Systemd, tmp_path: Path
) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []
    environment = {
        **database.environment(),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": f"redis://127.0.0.1:{redis_proxy.port}/0",
        "CONSUMER_NAME": "worker-1",
        "BATCH_TIMEOUT_SEC": "0.2",
        "DISCOVERY_INTERVAL_SEC": "0.2",
        "DB_TIMEOUT_SEC": "1",
        "HEALTH_STUCK_SEC": "1",
        "NOTIFY_SOCKET": str(systemd.path),
        "WATCHDOG_USEC": str(int(WATCHDOG_SEC * 1_000_000)),
    }

    def start(*command: str) -> Worker:
        started.append(Worker([sys.executable, *command], environment, tmp_path))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def command_of(unit: str) -> list[str]:
    """The words behind the Python of a unit's ExecStart, in this checkout."""
    text = (ROOT / "deploy" / "systemd" / unit).read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return [word.replace("/opt/sluice", str(ROOT)) for word in line.partition("=")[2].split()[1:]]


def test_a_worker_tells_systemd_and_probes_how_it_does_through_an_outage_to_its_end(
    worker: Callable[..., Worker],
    systemd: Systemd,
    redis_proxy: Proxy,
    client: redis.Redis,
    tmp_path: Path,
) -> None:
    one = worker(*command_of("sluice-worker@.service"))
    wait_until(lambda: systemd.heard("READY=1"), what="READY")
    wait_until(lambda: one.get("/readyz")[0] == 200, what="readiness")
    add(client, "mqtt_stream:d:t", [{"value": "1"}, {"value": "2"}, {"value": "null"}])
    wait_until(lambda: one.metric('sluice_readings_total{fate="stored"}') == 2, what="two readings")
    wait_until(lambda: one.metric("sluice_sampled_streams"), what="a look at the stream")
    assert one.metric('sluice_dead_letters_total{reason="value_null"}') == 1
    assert one.metric("sluice_commit_duration_seconds_count") == 1
    wait_until(lambda: any("readings/s" in said for said in systemd.heard("STATUS=")), what="a rate")

    # An outage that is longer than a loop may be stuck, and than the watchdog's patience.
    redis_proxy.refuse = True
    redis_proxy.cut()
    wait_until(lambda: one.get("/readyz")[0] == 503, what="unreadiness")
    assert json.loads(one.get("/readyz")[1])["redis"] == "ConnectionError"
    assert json.loads(one.get("/readyz")[1])["database"] == "ok"
    began = time.monotonic()
    lives: list[int] = []

    def long_enough() -> bool:
        lives.append(one.get("/livez")[0])
        return time.monotonic() > began + 2 * STUCK_AFTER_SEC

    wait_until(long_enough)
    assert set(lives) == {200}
    assert one.metric('sluice_outage{server="redis"}') == 1
    assert len(systemd.heard("WATCHDOG=1", since=began)) >= 2 * STUCK_AFTER_SEC / WATCHDOG_SEC
    redis_proxy.refuse = False
    wait_until(lambda: one.get("/readyz")[0] == 200, what="readiness again")
    wait_until(lambda: one.metric('sluice_outage{server="redis"}') == 0, what="the end of the outage")

    (tmp_path / ".env").write_text("LOG_LEVEL=debug\n")
    one.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(systemd.heard("READY=1")) == 2, what="the end of the reload")
    assert systemd.heard("RELOADING=1")
    wait_until(lambda: '"log_level": "debug", "event": "reloaded"' in one.log.read_text(), what="reloaded")

    one.process.terminate()
    assert one.process.wait(30) == 0
    assert systemd.heard("STOPPING=1")


def test_a_stuck_loop_is_not_live_and_starves_the_watchdog_which_shows_where_it_was(
    worker: Callable[..., Worker], systemd: Systemd, client: redis.Redis
) -> None:
    one = worker("-c", DEADLOCK)
    wait_until(lambda: systemd.heard("READY=1"), what="READY")
    assert one.get("/livez")[0] == 200
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    wait_until(lambda: one.get("/livez")[0] == 503, what="a loop that is stuck")
    wait_until(lambda: any("STUCK" in said for said in systemd.heard("STATUS=")), what="STATUS=STUCK")
    seen = len(systemd.heard("WATCHDOG=1"))
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 2 * WATCHDOG_SEC)
    assert len(systemd.heard("WATCHDOG=1")) == seen
    one.process.send_signal(signal.SIGABRT)  # as systemd does now
    assert one.process.wait(30) == -signal.SIGABRT
    assert 'File "<string>", line 6 in <lambda>' in one.log.read_text()
