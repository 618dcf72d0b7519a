"""What a process tells of itself: HTTP within bounds, systemd, and which waiting counts as getting on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import metrics
from config import ConfigError
from counting import Histogram, Laps, Stage
from health import probe
from health.exposition import CONTENT_TYPE, Exposition
from health.notify import Notifier
from health.server import MOST_AT_ONCE, MOST_BYTES, HealthServer, pages_of
from health.vitals import Teller
from metrics import METRICS, BridgeStats, Kind, Stats
from progress import Progress, Slowest
from readiness import Readiness
from retry import Patience, StopFlag
from sampling import Backlog
from signs import OK, Signs
from tests.support import ROOT
from worker_signs import WorkerSigns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """Signs whose every part a test can set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.progress = Progress(self.clock)
        self.started = True
        self.stopping = False
        self.checks: dict[str, str] = {"redis": OK, "database": OK, "schema": OK}
        self.reloaded = 0
        self.stats = Stats()
        self.backlog: Backlog | None = None
        self.shown = WorkerSigns(
            self.stats,
            started=lambda: self.started,
            backlog=lambda: self.backlog,
            connected=lambda: True,
            publishing=lambda: None,
            clock=self.clock,
        )
        self.signs = Signs(
            progress=self.progress,
            stuck_after_sec=90.0,
            started=lambda: self.started,
            stopping=lambda: self.stopping,
            checks=lambda: self.checks,
            samples=self.shown.samples,
            status=self.shown.status,
            reload=self._reload,
        )

    def _reload(self) -> None:
        self.reloaded += 1


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def port(world: World) -> Iterator[int]:
    render = Exposition("worker", world.signs).render
    server = HealthServer("127.0.0.1", 0, pages_of(world.signs, render, CONTENT_TYPE))
    server.start()
    yield server.port
    server.close()


def ask(port: int, request: str) -> tuple[int, str]:
    """The status and the body of the answer to these bytes; (0, "") where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                answer += part
    if not answer:
        return 0, ""
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def get(port: int, path: str) -> tuple[int, str]:
    return ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")


# HTTP


def test_a_loop_that_has_not_got_on_is_not_live(world: World, port: int) -> None:
    assert get(port, "/livez")[0] == 200
    world.clock.now += 90.5
    status, body = get(port, "/livez")
    assert status == 503
    assert json.loads(body) == {"live": False, "progress_age_sec": 90.5, "stuck_after_sec": 90.0}


def test_a_server_that_is_away_is_named_and_does_not_make_it_less_live(world: World, port: int) -> None:
    assert get(port, "/readyz")[0] == 200
    world.checks = {"redis": "ConnectionError", "database": OK, "schema": OK}
    status, body = get(port, "/readyz")
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "started": True,
        "redis": "ConnectionError",
        "database": "ok",
        "schema": "ok",
    }
    assert get(port, "/livez")[0] == 200


def test_what_has_not_started_is_not_ready(world: World, port: int) -> None:
    world.started = False
    assert get(port, "/readyz")[0] == 503


def test_other_addresses_and_methods_are_refused(port: int) -> None:
    status, body = get(port, "/")
    assert (status, body) == (404, "there are /livez /readyz /metrics\n")
    assert ask(port, "POST /livez HTTP/1.1\r\n\r\n")[0] == 501
    assert ask(port, "HEAD /livez HTTP/1.1\r\n\r\n") == (200, "")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01\r\n\r\n")  # TLS
        assert b"Bad request" in connection.recv(1000)
    assert get(port, "/livez")[0] == 200


def test_a_request_beyond_all_bounds_is_cut_off(port: int) -> None:
    status, _ = ask(port, f"GET /livez HTTP/1.1\r\nX: {'x' * 3 * MOST_BYTES}")
    assert status in (0, 200, 400, 431)
    assert get(port, "/livez")[0] == 200


def test_slow_callers_keep_no_place_from_a_probe(port: int) -> None:
    with contextlib.ExitStack() as open_ones:
        slow = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(2 * MOST_AT_ONCE)
        ]
        for one in slow:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                one.sendall(b"GET /livez")
        for _ in range(3):
            assert get(port, "/livez")[0] == 200
        for one in slow:
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(100) == b""  # closed by the server, without an answer


def test_a_port_that_is_taken_is_refused_by_name(world: World, port: int) -> None:
    with pytest.raises(ConfigError, match=f"HEALTH_PORT are 127.0.0.1:{port}, where this process cannot"):
        HealthServer("127.0.0.1", port, {}).start()


# Readiness


def test_servers_are_asked_once_a_second_however_many_probes_come() -> None:
    asked = []
    clock = Clock()

    def check() -> dict[str, str]:
        asked.append(clock.now)
        return {"redis": OK}

    readiness = Readiness([check], clock)
    threads = [threading.Thread(target=readiness.look) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 0.9
    readiness.look()
    assert len(asked) == 1
    clock.now += 0.2
    assert readiness.look() == {"redis": OK}
    assert len(asked) == 2


# Progress


class Away(Exception):
    pass


class Fast(StopFlag):
    """Waits in no time, by a clock that it moves."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(30, clock)
        self._now = clock

    def pause(self, seconds: float) -> None:
        self._now.now += seconds
        self.progress.made()


def test_waiting_for_a_server_that_is_away_is_progress_however_long_it_takes() -> None:
    clock = Clock()
    stop, stats = Fast(clock), Stats()
    ages: list[float] = []

    def attempt() -> int:
        ages.append(stop.progress.age_sec)
        clock.now += 5  # a time-out
        if len(ages) < 500:
            raise Away
        return 1

    Patience("redis", (Away,), stop, stats).call(attempt)
    assert clock.now > 2_000
    assert max(ages) < 10
    assert stats.retries == {("redis", "Away"): 499}
    assert stats.away == {"redis": 0}


def test_an_attempt_that_does_not_end_is_no_progress() -> None:
    clock = Clock()
    stop = Fast(clock)

    def attempt() -> float:
        clock.now += 100
        return stop.progress.age_sec

    assert Patience("redis", (Away,), stop, Stats()).call(attempt) == 100


def test_of_several_loops_the_slowest_counts() -> None:
    clock = Clock()
    one, other = Progress(clock), Progress(clock)
    clock.now += 7
    one.made()
    assert Slowest(one, other).age_sec == 7


# Metrics


def test_every_metric_of_a_worker_and_a_bridge_is_told_in_its_kind(world: World) -> None:
    stats = world.stats
    stats.failed("redis", "ConnectionError")
    stats.lettered("not_a_number")
    stats.messages_written = 5
    stats.commit_sec.observe(0.003)
    stats.commit_sec.observe(99)
    world.backlog = Backlog(
        streams=3, pending=2, unread=7, unknown=1, trimmed_unread=4, oldest_sec=1.5, dead_letters=1, at=99.0
    )
    text = Exposition("worker", world.signs).render().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert told["sluice_entries_settled_total", "stored"] == 5
    assert told["sluice_retries_total", "ConnectionError", "redis"] == 1
    assert told["sluice_outage", "redis"] == 1
    assert told["sluice_dead_letters_total", "not_a_number"] == 1
    assert told["sluice_commit_duration_seconds_bucket", "0.0025"] == 0
    assert told["sluice_commit_duration_seconds_bucket", "0.005"] == 1
    assert told["sluice_commit_duration_seconds_bucket", "+Inf"] == 2
    assert told["sluice_commit_duration_seconds_count",] == 2
    assert told["sluice_commit_duration_seconds_sum",] == pytest.approx(99.003)
    assert (told["sluice_lag_entries",], told["sluice_lag_seconds",]) == (7, 1.5)
    assert (told["sluice_lag_unknown_streams",], told["sluice_trimmed_unread_entries",]) == (1, 4)
    assert told["sluice_sample_age_seconds",] == 1
    assert "process_cpu_seconds" in families
    for sample in metrics.of_bridge(BridgeStats()):
        assert sample[0] in METRICS


def test_lag_that_nobody_has_looked_at_is_not_told_as_0(world: World) -> None:
    assert "sluice_lag" not in Exposition("worker", world.signs).render().decode().replace("HELP", "")


def test_metrics_have_names_of_their_own_base_units_and_bounded_labels() -> None:
    names = [metric.shown for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.help
        assert not metric.name.endswith(("_total", "_ms", "_minutes", "_count", "_sum", "_bucket"))
        assert (metric.kind is Kind.HISTOGRAM) <= metric.name.endswith(("_seconds", "_entries"))
        assert not {"device", "device_id", "sensor_type", "stream", "topic"} & {*metric.labels}
    assert all(metric.help and metric.name.startswith("sluice_") for metric in METRICS)


def test_a_value_at_a_bound_counts_below_it() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 7.5)


def test_the_stages_of_a_batch_are_timed_apart() -> None:
    clock = Clock()
    laps = Laps(clock)
    laps.begin()
    for seconds, stage in ((3, Stage.READ), (1, Stage.PARSE), (2, Stage.WRITE)):
        clock.now += seconds
        took = laps.done(stage)
    assert took == 3  # without waiting for entries
    assert [laps.seconds[stage].total for stage in Stage] == [3, 1, 2, 0]


# systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """What NOTIFY_SOCKET is to say, and a function that answers what has come since the last time."""
    abstract = f"sluice-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{abstract}" if request.param == "abstract" else str(tmp_path / "notify"))
        heard.setblocking(False)

        def take() -> list[str]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found += heard.recv(4096).decode().split("\n")
            return found

        yield f"@{abstract}" if request.param == "abstract" else str(tmp_path / "notify"), take


def test_systemd_is_told_of_a_life_from_start_to_end(world: World, systemd: Any) -> None:
    address, heard = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"})
    teller = Teller(world.signs, notifier, 30, world.clock)
    world.started = False
    teller.tick()
    assert heard() == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=starts"]
    world.started = True
    teller.tick()
    assert heard()[0] == "READY=1"
    teller.reload_asked = True
    teller.tick()
    reloading, moment, ready = heard()
    assert (reloading, moment.partition("=")[0], ready) == ("RELOADING=1", "MONOTONIC_USEC", "READY=1")
    assert world.reloaded == 1
    world.stopping = True
    teller.tick()
    assert heard() == ["STOPPING=1", "STATUS=finishes what is in hand", "EXTEND_TIMEOUT_USEC=35000000"]
    teller.close()
    assert heard() == []


def test_the_watchdog_is_fed_in_a_long_outage_and_not_by_a_stuck_loop(world: World, systemd: Any) -> None:
    address, heard = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    teller = Teller(world.signs, notifier, 30, world.clock)
    world.stats.failed("postgresql", "OperationalError")
    for _ in range(100):
        world.clock.now += 10
        world.progress.made()  # as every wait does
        teller.tick()
        found = heard()
        assert "WATCHDOG=1" in found
    assert "STATUS=waits for postgresql; nothing is lost" in found
    world.stats.recovered("postgresql")
    world.clock.now += 91
    for _ in range(5):
        world.clock.now += 10
        teller.tick()
        found = heard()
        assert "WATCHDOG=1" not in found
        assert found[0].startswith("STATUS=STUCK: no progress for 1")


def test_a_watchdog_that_is_meant_for_another_process_is_none() -> None:
    given = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000"}
    assert Notifier(given).watchdog_sec == 1
    assert Notifier({**given, "WATCHDOG_PID": "1"}).watchdog_sec == 0
    assert not Notifier({}).wanted


def test_a_systemd_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")


# The probe


def test_the_probe_says_in_one_line_how_it_is(
    world: World, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEALTH_PORT", str(port))
    assert probe.main([]) == 0
    assert capsys.readouterr().out == "live True, progress_age_sec 0.0, stuck_after_sec 90.0\n"
    world.checks = {"redis": "ConnectionError"}
    assert probe.main([]) == 0
    assert probe.main(["--ready"]) == 1
    assert "redis ConnectionError" in capsys.readouterr().out


def test_the_probe_reads_the_port_where_settings_are(
    port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEALTH_PORT", raising=False)
    assert probe.main([]) == 2
    assert capsys.readouterr().err.startswith("sluice: HEALTH_PORT is not set; it takes ")
    (tmp_path / ".env").write_text(f"HEALTH_HOST=0.0.0.0\nHEALTH_PORT={port}\n")
    assert probe.main([]) == 0
    monkeypatch.setenv("HEALTH_PORT", "1")
    assert probe.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("no answer from 127.0.0.1:1: ")


def test_the_probe_loads_next_to_nothing(port: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "health"],
        env={"HEALTH_PORT": str(port)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout[:10]) == (0, "live True,")
    for package in ("pydantic", "redis", "psycopg", "structlog", "asyncio"):
        assert f"| {package}\n" not in done.stderr.replace("  ", "")
        assert f" {package}\n" not in done.stderr
