"""`./run-standalone.sh` as its user meets it; past the installation, which is the script's first half."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.broker import Broker
from tests.support import ROOT, Database, wait_until


@pytest.fixture
def data(server_folder: Path, tmp_path: Path) -> Path:
    folder = server_folder / f"standalone {tmp_path.name[-12:]}"
    folder.mkdir(mode=0o711)
    return folder


def start(
    data: Path, *options: str, terminal: int | None = None, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "standalone.run", "--data", str(data), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **(environment or {})},
    )


def run(data: Path, *options: str, **environment: str) -> tuple[int, str]:
    process = start(data, *options, environment=environment)
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


def processes_of(data: Path) -> list[str]:
    """Command lines of the processes that work in this folder or were told about it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(data) in command or str(data).replace(" ", "%20").encode() in environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def stored(output: str) -> int:
    summary = re.search(r"([\d,]+) entries read = ([\d,]+) stored", output)
    assert summary, output
    return int(summary[2].replace(",", ""))


def test_what_the_broker_accepted_is_in_the_streams_and_accounted_for_and_nothing_is_left_running(
    data: Path,
) -> None:
    status, output = run(data, "--for", "4")
    assert status == 0, output
    assert stored(output) > 0
    told = re.search(r"([\d,]+) messages accepted by the broker, ([\d,]+) entries in the streams", output)
    assert told, output
    assert told[1] == told[2]
    assert f"{told[2]} entries read = " in output
    assert re.search(r"the dashboard: http://127\.0\.0\.1:\d+/", output)
    assert re.search(r"the query service: 127\.0\.0\.1:\d+ \(gRPC\)", output)
    assert "0 pending" in output
    assert processes_of(data) == []


def test_the_next_run_goes_on_with_the_same_data(data: Path) -> None:
    first = stored(run(data, "--for", "2")[1])
    second = stored(run(data, "--for", "2")[1])
    assert second > first > 0


def test_two_copies_run_side_by_side(data: Path, server_folder: Path) -> None:
    other = server_folder / f"{data.name} other"
    runs = [start(folder, "--for", "4") for folder in (data, other)]
    outputs = [process.communicate(timeout=90)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], outputs
    assert all(stored(output) > 0 for output in outputs)


def test_a_second_run_in_the_same_folder_is_refused_in_one_line(data: Path) -> None:
    first = start(data, "--for", "6", "--no-demo")
    wait_until(lambda: (data / "lock").exists() and (data / "worker.log").exists())
    status, output = run(data, "--for", "2")
    assert status == 1
    assert output.strip() == f"run-standalone: another run works in {data}; stop that one first"
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert first.stdout is not None
    first.stdout.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_in_a_terminal_it_shows_a_live_table_and_ctrl_c_stops_everything_in_order(
    data: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    process = start(data, terminal=theirs)
    os.close(theirs)
    shown = bytearray()

    def read() -> bytes:
        if select.select([ours], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the other side is closed: the end
                shown.extend(os.read(ours, 65536))
        return bytes(shown)

    wait_until(lambda: b"Ctrl-C stops everything" in read(), 60, "the live table")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    wait_until(lambda: b"Everything is stopped" in read(), 60, "the last line")
    assert process.wait(30) == 0
    ends = ("simulator", "bridge", "worker", "query", "mqtt-broker", "postgresql", "valkey")
    order = [shown.rindex(f"{name} stopped".encode()) for name in ends]
    assert order == sorted(order)
    assert processes_of(data) == []


def test_when_it_is_killed_its_servers_end_too_and_the_next_run_works(data: Path) -> None:
    first = start(data)
    wait_until(lambda: (data / "worker.log").exists() and "batch" in (data / "worker.log").read_text(), 60)
    first.kill()
    first.communicate()
    wait_until(lambda: processes_of(data) == [], 30, "the end of its servers and children")
    status, output = run(data, "--for", "2")
    assert status == 0, output


def test_real_servers_take_the_place_of_the_embedded_ones_and_get_no_demo_unless_asked_for(
    data: Path, empty_database: str, client: redis.Redis, redis_url: str, broker: Broker
) -> None:
    own = ("--redis-url", redis_url, "--database-url", empty_database, "--mqtt-url", broker.url())
    status, output = run(data, *own, "--for", "0.1", MQTT_PROTOCOL="3.1.1")
    assert status == 0, output
    own_database = Database(empty_database, timescale=False)
    assert (own_database.count(), own_database.rows("select id from thresholds")) == (0, [])
    status, output = run(data, *own, "--demo", "--for", "3", MQTT_PROTOCOL="3.1.1")
    assert status == 0, output
    assert stored(output) > 0
    assert own_database.count() >= stored(output)
    assert not (data / "valkey").exists()
    assert not (data / "postgres").exists()
    assert "mqtt-broker" not in output


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (("--database-url", "mysql://x"), 2, "DATABASE_URL is a value that is kept secret; it takes"),
        (("--redis-url", "http://x"), 2, "REDIS_URL is a value that is kept secret; it takes"),
        (("--redis-url", "redis://127.0.0.1:1/0"), 1, "--redis-url: Error 111 connecting to 127.0.0.1:1"),
        (("--database-url", "postgresql://127.0.0.1:1/x"), 1, "--database-url: connection failed"),
        (("--mqtt-url", "http://x"), 2, "MQTT_URL is a value that is kept secret; it takes"),
        (("--for", "soon"), 2, "argument --for: soon is not a number of seconds above 0"),
        (("--for", "0"), 2, "0 is not a number of seconds above 0"),
        (("--fro", "1"), 2, "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_input_is_told_by_name(
    data: Path, options: tuple[str, ...], status: int, sentence: str
) -> None:
    found, output = run(data, *options)
    assert found == status, output
    assert sentence in output
    assert "Traceback" not in output
    assert processes_of(data) == []
