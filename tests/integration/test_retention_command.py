"""`python main.py retention` on plain PostgreSQL, as a user types it, and beside a running worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

import config
import main
from tests.rollups import LEVELS, agree, is_rolled, roll, rows_of
from tests.support import Daemon, Database, add, everything_settled, wait_until
from tests.writing import YESTERDAY_US, batch_of, reading, rig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Status, output and errors of the command, with these settings in the environment."""

    def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as changed:
            for name, value in {**plain_database.environment(), **environment}.items():
                changed.setenv(name, value)
            try:
                status = main.main(["retention", *arguments])
            except SystemExit as ended:
                status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def days(run: Run, **environment: str) -> dict[str, int]:
    status, out, _ = run("--json", **environment)
    assert status == 0
    return {one["level"]: one["days"] for one in json.loads(out)}


def test_it_shows_what_is_kept_how_long(run: Run, plain_database: Database) -> None:
    with rig(plain_database) as one:
        one.writer.start()
        one.writer.write(batch_of([reading(n, timestamp_us=YESTERDAY_US + n) for n in range(10)]))
        roll(one)
    status, out, _ = run(RETENTION_DAYS="12")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    day = datetime.fromtimestamp(YESTERDAY_US / 1e6, UTC).strftime("%Y-%m-%d")
    assert lines[1][:6] == ["raw", "sensor_readings", "12", "days", "(RETENTION_DAYS)", day]
    assert lines[2][:6] == ["minute", "readings_minute", "for", "ever", day, "00:00:00Z"]
    assert [line[0] for line in lines[1:]] == ["raw", *LEVELS]
    assert all(line[-1] == "KiB" for line in lines[1:])


def test_what_is_set_counts_from_then_on(run: Run) -> None:
    status, out, _ = run("--raw", "30", "--minute", "60", "--hour", "90", "--day", "0")
    assert status == 0
    assert "raw is now kept 30 days, before for ever" in out
    assert days(run) == {"raw": 30, "minute": 60, "hour": 90, "day": 0}
    assert days(run, RETENTION_DAYS="7") == {"raw": 30, "minute": 60, "hour": 90, "day": 0}
    assert run("--raw", "0", "--hour", "0")[0] == 0
    assert days(run, RETENTION_DAYS="7")["raw"] == 0


def test_a_dry_run_changes_nothing(run: Run) -> None:
    status, out, _ = run("--raw", "30", "--dry-run")
    assert status == 0
    assert "raw would be kept 30 days, before for ever" in out
    (raw,) = [line for line in out.splitlines() if line.startswith("raw ") and "readings" in line]
    assert "RETENTION_DAYS" not in raw, "that is what counts as long as nothing is set"
    assert days(run)["raw"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--raw", "x"), "argument --raw: is 'x'; it takes 0, for ever, or 1 to 36500 days"),
        (("--raw", "-1"), "argument --raw: is -1; it takes 0, for ever, or 1 to 36500 days"),
        (("--minute", "1"), "argument --minute: is 1; it takes 0, for ever, or 2 to 36500 days"),
        (("--day", "99999999"), "argument --day: is 99999999; it takes 0, for ever, or 30 to 36500"),
    ],
)
def test_what_is_no_number_of_days_is_told(run: Run, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("--raw", "30", "--hour", "20"), {}, "hour would be kept 20 days and raw 30 days; hour must be"),
        (("--hour", "90"), {}, "hour would be kept 90 days and raw for ever; hour must be"),
        (("--hour", "20"), {"RETENTION_DAYS": "30"}, "hour would be kept 20 days and raw 30 days"),
        (("--raw", "9", "--minute", "9", "--hour", "90", "--day", "60"), {}, "day would be kept 60 days"),
        (("--raw", "9"), {"RETENTION_DAYS": "30"}, "RETENTION_DAYS is 30, which contradicts --raw 9"),
    ],
)
def test_contradictions_are_refused_in_one_line_and_change_nothing(
    run: Run, arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    status, _, err = run(*arguments, **environment)
    assert status == 1
    assert err.startswith(f"sluice: {said}")
    assert len(err.splitlines()) == 1
    assert days(run) == {"raw": 0, "minute": 0, "hour": 0, "day": 0}


def test_old_rollups_are_dropped_and_what_is_coarser_stays(run: Run, plain_database: Database) -> None:
    old_us = YESTERDAY_US - 400 * 86_400_000_000
    with rig(plain_database) as one:
        one.writer.start()
        one.writer.write(batch_of([reading(n, timestamp_us=old_us + n) for n in range(10)]))
        one.writer.write(batch_of([reading(n, timestamp_us=YESTERDAY_US + n) for n in range(10)]))
        roll(one)
        assert agree(plain_database)
        assert run("--raw", "30", "--minute", "60", "--hour", "100")[0] == 0
        one.hurry(61.0)
        one.writer.upkeep()  # readings
        one.hurry(61.0)
        one.writer.upkeep()  # what was summed up of them
        assert plain_database.count() == 10
        counts = {level: len(rows_of(plain_database, level)) for level in LEVELS}
        assert counts == {"minute": 10, "hour": 10, "day": 20}


def test_a_running_worker_rolls_and_heeds_what_is_set(
    plain_database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon], run: Run
) -> None:
    worker = daemon(plain_database, redis_url)
    worker.wait_for("worker_started")
    now = datetime.now(UTC)
    entries: list[dict[Any, Any]] = [
        {"value": str(n), "timestamp": (now - timedelta(days=3, minutes=n)).isoformat()} for n in range(300)
    ]
    add(client, "mqtt_stream:kitchen:temperature", entries)
    wait_until(lambda: everything_settled(client, 300))
    wait_until(lambda: is_rolled(plain_database), 60.0)
    add(client, "mqtt_stream:kitchen:temperature", [{**one, "value": "7"} for one in entries[::9]])
    wait_until(lambda: plain_database.count() == 334)
    wait_until(lambda: agree(plain_database), 60.0)
    assert run("--raw", "2")[0] == 0
    before = rows_of(plain_database, "minute")
    wait_until(lambda: plain_database.count() == 0, 90.0, "dropping what is older than two days")
    assert rows_of(plain_database, "minute") == before
    assert worker.terminate() == 0


def test_a_setting_that_is_overruled_is_told_once(plain_database: Database, run: Run) -> None:
    assert run("--raw", "30")[0] == 0
    with capture_logs() as logs, rig(plain_database, retention_days=5) as one:
        one.writer.start()
        for _ in range(3):
            one.hurry(61.0)
            one.writer.upkeep()
    told = [log for log in logs if log["event"] == "retention_days_ignored"]
    assert [(log["setting"], log["in_force"]) for log in told] == [(5, 30)]


def test_tables_of_these_names_are_not_taken_for_readings() -> None:
    with pytest.raises(config.ConfigError, match="TABLE_NAME is 'readings_hour'"):
        config.load(database_url="postgresql:///none", table_name="readings_hour")
