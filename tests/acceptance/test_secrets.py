"""Shown by: whatever goes wrong, no secret is in a log, an error, a repr or an argument of a process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

import config
import redis_client
import wiring
from config import ConfigError
from setting_sources import SECRETS
from standalone.ports import free_port
from standalone.run import without_login
from standalone.servers import Postgres, Valkey
from tests.broker import Broker, running
from tests.faults import proxy_to
from tests.support import ROOT, wait_until

HUSH = "hush-hush"  # every secret begins so
NOBODY = 1  # a port where nobody listens


def secret(name: str) -> str:
    """A value for a secret, good as a token and as a password, that is found wherever it turns up."""
    return f"{HUSH}-{name}-Zq7Kx93v"


def environment(postgres: str, redis: str, mqtt: str, options: str = "") -> dict[str, str]:
    """Every secret setting that can be set, for servers at these hosts and ports."""
    found = {
        "DATABASE_URL": f"postgresql://sluice:{secret('database')}@{postgres}/sluice{options}",
        "DATABASE_DIRECT_URL": f"postgresql://sluice:{secret('direct')}@{postgres}/sluice{options}",
        "REDIS_URL": f"redis://worker:{secret('redis')}@{redis}/0",
        "MQTT_URL": f"mqtt://gateway:{secret('mqtt')}@{mqtt}",
        "MQTT_USERNAME": secret("user"),
        "MQTT_PASSWORD": secret("password"),
        "QUERY_TOKEN": secret("query"),
        "QUERY_DELETE_TOKEN": secret("delete"),
        "DASHBOARD_PASSWORD": secret("page"),
        "DASHBOARD_TOKEN": secret("token"),
        "QUERY_PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        "SHUTDOWN_TIMEOUT_SEC": "3",
        "BATCH_TIMEOUT_SEC": "0.2",
        "LOG_LEVEL": "debug",
    }
    clean = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in config.Settings.model_fields
    }
    return {**clean, **found}


PROGRAMS: dict[str, Sequence[str]] = {
    "worker": ("main.py",),
    "bridge": ("main.py", "bridge"),
    "query": ("main.py", "query"),
    "dashboard": ("main.py", "dashboard"),
    "verify": ("main.py", "verify", "--json"),
    "thresholds": ("main.py", "thresholds", "list"),
    "series": ("main.py", "series", "list"),
    "retention": ("main.py", "retention"),
    "simulate": ("main.py", "simulate", "--devices", "1", "--for", "1"),
    "migrate": ("-m", "ops.migrate", "upgrade"),
}


@dataclass
class Run:
    """A program that is running, and what it says."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def ask_to_end(self) -> None:
        """Look at its arguments as everybody can; then SIGTERM."""
        if self.process.poll() is None:
            command = Path(f"/proc/{self.process.pid}/cmdline").read_bytes().decode(errors="replace")
            assert HUSH not in command, f"{self.name} shows a secret to everybody: {command}"
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(name: str, folder: Path, settings: dict[str, str], command: Sequence[str] = ()) -> Run:
    out = folder / f"{name}.out"
    with out.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *(command or PROGRAMS[name])],
            cwd=ROOT,
            env={**settings, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return Run(name, process, out)


def check(runs: Sequence[Run]) -> None:
    """Wait until each has ended or has logged that something is wrong, end it, search what it said."""
    troubles = (
        "outage",
        "refused",
        "unreachable",
        "crashed",
        "Error",
        "not usable",
        "sluice:",
        "standalone:",
    )
    try:
        for one in runs:
            wait_until(
                lambda one=one: one.process.poll() is not None or any(t in one.said() for t in troubles),  # type: ignore[misc]
                60,
                f"an error of {one.name}",
            )
        for one in runs:
            one.ask_to_end()
    finally:
        for one in runs:
            one.end()
    for one in runs:
        assert one.said().strip(), f"{one.name} says nothing, which proves nothing"
        assert HUSH not in one.said(), f"{one.name} tells a secret: {one.said()}"


def test_no_program_tells_a_secret_where_every_server_is_away(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{NOBODY}"
    settings = environment(nowhere, nowhere, nowhere)
    check([run(name, tmp_path, settings) for name in PROGRAMS])


FEW = ("worker", "bridge", "query", "verify", "migrate")


@pytest.fixture
def guarded(postgres: Postgres, valkey: Valkey, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings for servers that are there, and that want other passwords."""
    access = postgres.data / "pg_hba.conf"
    before = access.read_text()
    with contextlib.ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(postgres.url_of("postgres"), autocommit=True))
        admin.execute("create role sluice login password 'another'")
        stack.callback(lambda: admin.execute("drop role sluice"))
        access.write_text("local all sluice scram-sha-256\n" + before)
        stack.callback(lambda: (access.write_text(before), admin.execute("select pg_reload_conf()")))
        admin.execute("select pg_reload_conf()")
        to_postgres = stack.enter_context(proxy_to(str(postgres.socket_folder / ".s.PGSQL.5432")))
        to_redis = stack.enter_context(proxy_to(str(valkey.socket)))  # it knows no user `worker`
        broker = stack.enter_context(running(Broker, tmp_path, username="somebody", password="another"))
        places = (f"127.0.0.1:{port}" for port in (to_postgres.port, to_redis.port, broker.port))
        yield {**environment(*places), "MQTT_PROTOCOL": "3.1.1"}


def test_no_program_tells_a_secret_where_every_password_is_wrong(
    guarded: dict[str, str], tmp_path: Path
) -> None:
    runs = {name: run(name, tmp_path, guarded) for name in FEW}
    open_redis = {"REDIS_URL": guarded["REDIS_URL"].replace(f"worker:{secret('redis')}@", "")}
    runs["let in by Redis"] = run("let in", tmp_path, guarded | open_redis, PROGRAMS["bridge"])
    check(list(runs.values()))
    for name in ("worker", "query", "verify", "migrate"):
        assert "password authentication failed" in runs[name].said(), runs[name].said()
    assert "invalid username-password" in runs["verify"].said()
    assert "invalid username-password" in runs["bridge"].said()
    assert "mqtt_refused" in runs["let in by Redis"].said()


class Impostor:
    """A server with TLS, for PostgreSQL's protocol too, whose certificate nobody vouches for."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("openssl"):
            pytest.skip("needs the openssl command")
        new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=no -keyout key.pem -out c.pem"
        subprocess.run(new.split(), cwd=folder, check=True, capture_output=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "c.pem", folder / "key.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(5)
            with contextlib.suppress(OSError), connection:
                first = connection.recv(8, socket.MSG_PEEK)
                if not first:
                    return
                if first == b"\0\0\0\x08\x04\xd2\x16\x2f":  # SSLRequest
                    connection.recv(8)
                    connection.sendall(b"S")
                self._context.wrap_socket(connection, server_side=True).close()

    def close(self) -> None:
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listener.close()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(tmp_path)
    yield made
    made.close()


def test_no_program_tells_a_secret_where_every_certificate_is_wrong(
    impostor: Impostor, tmp_path: Path
) -> None:
    place = f"localhost:{impostor.port}"
    settings = environment(place, place, place, "?sslmode=verify-full&sslrootcert=system")
    settings["REDIS_URL"] = settings["REDIS_URL"].replace("redis:", "rediss:")
    settings["MQTT_URL"] = settings["MQTT_URL"].replace("mqtt:", "mqtts:")
    runs = {name: run(name, tmp_path, settings) for name in FEW}
    check(list(runs.values()))
    for name in FEW:
        assert "certificate" in runs[name].said(), runs[name].said()


CRASH = """
import os, sys, db_writer, main
def start(self):
    raise RuntimeError("a bug that quotes " + os.environ["DATABASE_URL"] + repr(self._session._url))
db_writer.DatabaseWriter.start = start
sys.exit(main.main([]))
"""


def test_a_bug_whose_message_quotes_a_secret_is_told_without_it(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{NOBODY}"
    crashed = run("crashed", tmp_path, environment(nowhere, nowhere, nowhere), ("-c", CRASH))
    check([crashed])
    assert "worker_crashed" in crashed.said()
    assert "RuntimeError" in crashed.said()


def test_standalone_takes_addresses_from_files_so_that_no_argument_shows_them(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{NOBODY}"
    settings = environment(nowhere, nowhere, nowhere)
    options = ["--no-demo", "--data", str(tmp_path / "data"), "--for", "1"]
    for name in ("REDIS_URL", "DATABASE_URL", "MQTT_URL"):
        (tmp_path / name).write_text(settings[name] + "\n")
        options += [f"--{name.lower().replace('_', '-')}", f"@{tmp_path / name}"]
    standalone = run("standalone", tmp_path, settings, ("-m", "standalone.run", *options))
    check([standalone])
    assert "--redis-url" in standalone.said()
    assert without_login(settings["MQTT_URL"]) == f"mqtt://{nowhere}"


# Values that no such setting takes, each with a secret in it.
REFUSED = {
    "database_url": (
        f"mysql://u:{secret('x')}@h/d",
        f"postgresql://u:p@{secret('x')}@h/d",
        f"postgresql://u:12/{secret('x')}@h/d",
        f"postgresql://u:{secret('x')}@h/d?nonsense=1",
        f"postgresql://h:{secret('x')}/d",
    ),
    "redis_url": (
        f"http://:{secret('x')}@h",
        f"redis://:{secret('x')}/y@h:1/0",
        f"redis://:12/{secret('x')}@h:6379/0",
        f"redis://h:{secret('x')}/0",
        f"redis://:{secret('x')}@h?db=x",
    ),
    "mqtt_url": (
        f"http://u:{secret('x')}@h",
        f"mqtt://u:12/{secret('x')}@h",
        f"mqtt://h:{secret('x')}",
        f"mqtt://u:{secret('x')}@h?x=1",
    ),
    "query_token": (f"{secret('x')} with blanks", f"{secret('x')}é"),
    "query_delete_token": (f"{secret('x')} with blanks",),
    "dashboard_token": (f"{secret('x')} with blanks",),
    "dashboard_password": (f"{HUSH}-x",),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, some in REFUSED.items() for value in some]
)
def test_a_value_of_a_secret_that_is_refused_is_not_told(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(value)
    monkeypatch.setenv("DATABASE_URL", "postgresql://")
    for variable, given in ((name.upper(), value), (f"{name.upper()}_FILE", str(file))):
        with monkeypatch.context() as environ:
            environ.delenv(name.upper(), raising=False)
            environ.setenv(variable, given)
            source = "" if variable == name.upper() else rf" \(from {variable}\)"
            sentence = f"^{name.upper()} is a value that is kept secret{source}; it takes"
            with pytest.raises(ConfigError, match=sentence) as told:
                config.load()
        assert HUSH not in str(told.value)
        assert told.value.__suppress_context__, "or a traceback would show what pydantic quotes"


def test_no_repr_of_settings_or_options_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REDIS_USERNAME", secret("redis-user"))
    monkeypatch.setenv("REDIS_PASSWORD", secret("redis-password"))
    settings, edge = config.load(), config.load_edge()
    monkeypatch.delenv("REDIS_URL")
    watched = config.load(
        redis_mode="sentinel",
        redis_sentinels="127.0.0.1:1",
        redis_sentinel_username=secret("sentinel-user"),
        redis_sentinel_password=secret("sentinel-password"),
    )
    kept = {
        name for one in (settings, watched) for name in SECRETS if HUSH in str(_plain(getattr(one, name)))
    }
    assert kept == set(SECRETS)
    publisher = wiring.publisher_of(settings)
    shown = [
        settings,
        edge,
        watched,
        watched.redis_servers(),
        wiring.reader_options(watched),
        wiring.limits(settings),
        wiring.reader_options(settings),
        wiring.writer_options(settings),
        wiring.flood_options(settings),
        wiring.mqtt_options(edge, "one"),
        wiring.bridge_options(edge),
        wiring.query_options(settings),
        wiring.dashboard_options(settings),
        publisher,
        vars(publisher)["_options"],
        redis_client.connect(settings.redis_address(), timeout_sec=1),
        settings.model_dump(),
        settings.model_dump_json(),
    ]
    for one in shown:
        assert HUSH not in repr(one), type(one)
        assert HUSH not in str(one), type(one)


def _plain(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None
