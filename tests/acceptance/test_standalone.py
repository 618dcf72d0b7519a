"""`./run-standalone.sh` as its user meets it; past the installation, which is the script's first half."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from standalone.run import main
from tests.broker import Broker, Mosquitto, missing, running
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
    output, _ = process.communicate(timeout=180)
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


def test_two_copies_run_side_by_side_but_not_in_one_folder_and_each_accounts_for_all_that_it_took(
    data: Path, server_folder: Path, request: pytest.FixtureRequest
) -> None:
    other = server_folder / f"{data.name} other"
    other.mkdir(mode=0o711)
    (other / "env").touch(0o644)
    killed, stopped = (start(folder) for folder in (data, other))
    for process in (killed, stopped):
        request.addfinalizer(process.wait)  # runs last: nothing is left for another test
        request.addfinalizer(process.kill)

    def both_write() -> bool:
        logs = [folder / "worker.log" for folder in (data, other)]
        return all(log.exists() and '"batch"' in log.read_text() for log in logs)

    wait_until(both_write, 120, "a batch of either run")
    status, output = run(data, "--for", "2")
    assert status == 1
    assert output.strip() == f"run-standalone: another run works in {data}; stop that one first"
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=180)
    assert (stopped.returncode, stored(output) > 0) == (0, True), output
    told = re.search(r"([\d,]+) messages accepted by the broker, ([\d,]+) entries in the streams", output)
    assert told, output
    assert told[1] == told[2]
    assert f"{told[2]} entries read = " in output
    assert re.search(r"the dashboard: http://127\.0\.0\.1:\d+/", output)
    assert re.search(r"the query service: 127\.0\.0\.1:\d+ \(gRPC\)", output)
    assert "0 pending" in output
    assert processes_of(other) == []
    assert (other / "env").stat().st_mode & 0o777 == 0o600  # addresses have passwords
    killed.kill()
    killed.communicate()
    wait_until(lambda: processes_of(data) == [], 60, "the end of its servers and children")


class Tour:
    """What the README has its reader type while a run goes on, with the folder and the port of this one."""

    def __init__(self, data: Path) -> None:
        self._data = data
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        section = text.partition("\n## A tour in ten lines\n")[2].partition("\n## ")[0]
        self.parts = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        self.setting = re.search(r"MAX_FUTURE_SEC=(\d+) ./run-standalone.sh", section)

    def begin(self, environment: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
        """A run, and the address at which its worker is asked how it does."""
        process = start(self._data, environment=environment)
        assert process.stdout
        said = ""
        while "settings for other commands" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        address = re.search(r"health: (http://\S+)/readyz", said)
        assert address, said
        return process, address[1]

    def commands(self, part: int, address: str) -> list[str]:
        """The lines of a part, each a command."""
        text = self.parts[part].replace("\\\n", "").replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        fetch = f"{sys.executable} {_fetch(self._data)} {address}"
        text = text.replace("curl -s http://127.0.0.1:9464", fetch)
        lines: list[str] = text.replace(
            ". .standalone/env", f". {shlex.quote(str(self._data / 'env'))}"
        ).splitlines()
        return lines

    def run(self, environment: str, command: str) -> str:
        """What a command says, typed after the line that sets the environment. It has to succeed."""
        done = subprocess.run(
            ["/bin/bash", "-c", f"{environment}\n{command}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout


def _fetch(data: Path) -> str:
    """A program in place of curl, which not every machine has."""
    path = data / "fetch.py"
    path.write_text("import sys, urllib.request as u\nprint(u.urlopen(sys.argv[1]).read().decode())\n")
    return shlex.quote(str(path))


def test_the_tour_of_the_readme_goes_as_it_says_also_after_a_kill(
    data: Path, request: pytest.FixtureRequest
) -> None:
    tour = Tour(data)
    killed, address = tour.begin({})
    request.addfinalizer(killed.kill)  # else it would go on where something is not as it should be
    environment, ready, row, poison, listed, lag, verify, check = tour.commands(0, address)
    assert '"ready": true' in tour.run(environment, ready)
    tour.run(environment, row)
    tour.run(environment, poison)
    wait_until(lambda: "timestamp_in_future" in tour.run(environment, listed), 60, "the dead letter")
    assert "entries unread" in tour.run(environment, lag)
    wait_until(lambda: "are accounted for" in tour.run(environment, verify), 60)
    tour.run(environment, check)
    killed.kill()
    killed.communicate()
    wait_until(lambda: processes_of(data) == [], 60, "the end of its servers and children")

    assert tour.setting
    stopped, address = tour.begin({"MAX_FUTURE_SEC": tour.setting[1]})
    request.addfinalizer(stopped.kill)
    environment, replay = tour.commands(1, address)
    assert "replayed 1 into 1 stream" in tour.run(environment, replay)
    database = Database(tour.run(environment, 'printf %s "$DATABASE_URL"'), timescale=False)
    rows = "select device_id, value from sensor_readings where device_id in ('attic', 'kitchen') order by 1"
    wait_until(lambda: database.rows(rows) == [("attic", 9.5), ("kitchen", 21.5)], 60, "both rows")
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=180)
    assert (stopped.returncode, stored(output) > 0) == (0, True), output


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

    wait_until(lambda: b"Ctrl-C stops everything" in read(), 120, "the live table")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    wait_until(lambda: b"Everything is stopped" in read(), 60, "the last line")
    assert process.wait(60) == 0
    ends = ("simulator", "bridge", "worker", "query", "mqtt-broker", "postgresql", "valkey")
    order = [shown.rindex(f"{name} stopped".encode()) for name in ends]
    assert order == sorted(order)
    assert processes_of(data) == []


def test_real_servers_take_the_place_of_the_embedded_ones_and_get_no_demo_unless_asked_for(
    data: Path, empty_database: str, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    kind = Broker if missing(Mosquitto) else Mosquitto
    with running(kind, tmp_path) as broker:
        protocol = "5" if broker.version_5 else "3.1.1"
        own = ("--redis-url", redis_url, "--database-url", empty_database, "--mqtt-url", broker.url())
        status, output = run(data, *own, "--for", "0.1", MQTT_PROTOCOL=protocol)
        assert status == 0, output
        own_database = Database(empty_database, timescale=False)
        assert (own_database.count(), own_database.rows("select id from thresholds")) == (0, [])
        status, output = run(data, *own, "--demo", "--for", "2", MQTT_PROTOCOL=protocol)
    assert status == 0, output
    assert stored(output) > 0
    assert own_database.count() >= stored(output)
    assert not (data / "valkey").exists()
    assert not (data / "postgres").exists()
    assert "mqtt-broker" not in output


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """The same in this process, for what is refused before anything is started."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run_here(data: Path, *options: str) -> tuple[int, str]:
        try:
            status = main(["--data", str(data), *options])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, "".join(capsys.readouterr())

    yield run_here
    for number, handler in before.items():
        signal.signal(number, handler)


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
    data: Path, here: Callable[..., tuple[int, str]], options: tuple[str, ...], status: int, sentence: str
) -> None:
    found, output = run(data, *options) if status == 1 else here(data, *options)
    assert found == status, output
    assert sentence in output
    assert "Traceback" not in output
    assert processes_of(data) == []
