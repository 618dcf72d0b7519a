"""The command line and the end of a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs

import config
import main
import serving
import wiring
from main import DatabaseWriterService
from schema import EventKind
from tests.support import ROOT

URL = "postgresql://me:hunter2@127.0.0.1:1/none"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[None]:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    yield
    structlog.reset_defaults()


def test_a_bug_ends_the_worker_with_status_1_and_is_told_without_any_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(_self: DatabaseWriterService) -> None:
        raise ValueError("room 7, 21.5 degrees")

    monkeypatch.setattr(DatabaseWriterService, "run", run)
    monkeypatch.setattr(serving, "stop_on_signals", lambda *_: None)
    with capture_logs() as logs:
        assert serving.serve(DatabaseWriterService(config.load()), "worker", left="pending") == 1
    (told,) = logs
    assert (told["event"], told["error"], told["left"]) == ("worker_crashed", "ValueError", "pending")
    assert "test_main.py:" in told["where"][-1]
    assert "21.5" not in str(told)


def test_a_wrong_setting_ends_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "many")
    assert main.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sluice: BATCH_SIZE is 'many'; it takes ")
    assert error.count("\n") == 1


def test_an_unknown_command_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["nonsense"])
    assert ended.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_health_asks_the_port_and_needs_no_other_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEALTH_PORT", "1")
    monkeypatch.delenv("DATABASE_URL")
    assert main.main(("health",)) == 1
    assert capsys.readouterr().out.startswith("no answer from 127.0.0.1:1: ")
    assert main.main(("health", "--loud")) == 2


def test_each_event_stream_is_read_as_events_of_its_kind() -> None:
    settings = config.load()
    assert wiring.limits(settings).event_streams == (
        ("devices.threshold.created", EventKind.THRESHOLD_CREATED),
        ("devices.threshold.updated", EventKind.THRESHOLD_UPDATED),
        ("devices.threshold.deleted", EventKind.THRESHOLD_DELETED),
        ("devices.device.deleted", EventKind.DEVICE_DELETED),
        ("devices.device.bulk-deleted", EventKind.DEVICE_DELETED),
    )
    assert wiring.reader_options(settings).named_streams == settings.event_streams()
    assert wiring.limits(config.load(device_events=False)).event_streams == ()


def test_no_command_loads_what_only_migrations_need() -> None:
    """SQLAlchemy takes a third of the time of a start."""
    words = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "verify", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"db_writer", "ops.verify"} <= loaded
    assert not loaded & {"sqlalchemy", "alembic", "models"}
