"""`python main.py verify`: in order, not in order, and with servers away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

import models
import schema_check
from config import Settings
from main import DatabaseWriterService
from ops import verify
from redis_scripts import Keys
from tests.commands import commands
from tests.support import ROOT, Database, add, everything_settled, in_thread, settings_for, wait_until

AWAY = "postgresql://sluice:s3cret-word@127.0.0.1:1/none"
REDIS_AWAY = "redis://:s3cret-word@127.0.0.1:1/0"


@pytest.fixture
def settings(database: Database, redis_url: str) -> Settings:
    return settings_for(database, redis_url, consumer_name="worker-1")


@contextmanager
def working(settings: Settings) -> Iterator[None]:
    """A worker that runs meanwhile."""
    service = DatabaseWriterService(settings)
    with in_thread(service) as errors:
        wait_until(lambda: errors or service.health_check()["running"])
        yield


@pytest.fixture
def settled(settings: Settings, client: redis.Redis) -> None:
    """Five entries read: three stored, one duplicate, one dead-lettered. The worker has gone."""
    stored = [{"value": str(n), "mid": str(n)} for n in range(3)]
    again = {"timestamp": "1700000000", "mid": "1", "value": "1"}
    add(client, "mqtt_stream:d:t", [*stored[:2], again, again, {"value": "undefined"}])
    with working(settings):
        wait_until(lambda: everything_settled(client, 5))


def report(settings: Settings, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = verify.main(settings, as_json=True)
    return status, json.loads(capsys.readouterr().out)


def checks(found: dict[str, Any]) -> dict[str, tuple[bool | None, str]]:
    return {check["name"]: (check["ok"], check["sentence"]) for check in found["checks"]}


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python main.py verify` as a user types it."""
    ours = {name.upper() for name in Settings.model_fields}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "verify", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.usefixtures("settled")
def test_in_order_is_exit_0_and_told_number_by_number(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert verify.main(settings, as_json=False) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    for name, count in [
        ("added", "5"),
        ("read", "5"),
        ("stored", "3"),
        ("duplicate", "1"),
        ("pending", "0"),
    ]:
        assert [name, count] in lines, text
    assert any(line[:2] == ["dead-lettered", "1"] for line in lines), text
    assert "ok    ledger     all 5 entries read are accounted for" in text
    assert "FAIL" not in text


@pytest.mark.usefixtures("settled")
def test_the_json_report_is_one_object_with_the_same_numbers(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = report(settings, capsys)
    assert status == 0
    entries = found["entries"]
    assert {name: entries[name] for name in ("added", "read", "stored", "duplicate", "dead_lettered")} == {
        "added": 5,
        "read": 5,
        "stored": 3,
        "duplicate": 1,
        "dead_lettered": 1,
    }
    assert (entries["missing"], entries["pending"], found["dead_letters"]) == (0, 0, 1)
    assert {"ledger", "redis", "workers", "schema", "newest"} <= set(checks(found))


@pytest.mark.usefixtures("settled")
def test_as_a_process_it_exits_0_and_says_the_same(
    settings: Settings, database: Database, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = process(REDIS_URL=redis_url, **database.environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok    ledger     all 5 entries read are accounted for" in done.stdout
    again = process("--json", REDIS_URL=redis_url, **database.environment())
    assert again.returncode == 0
    assert json.loads(again.stdout)["entries"]["read"] == 5


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("by", [1, -1])
def test_a_ledger_that_is_off_is_exit_1_and_names_the_stream(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str], by: int
) -> None:
    key = Keys("db_writer").ledger
    assert client.hincrby(key, "stored:mqtt_stream:d:t", by) == 3 + by
    status, found = report(settings, capsys)
    ok, sentence = checks(found)["ledger"]
    assert (status, ok) == (1, False)
    assert f"mqtt_stream:d:t {-by:+}" in sentence
    assert found["entries"]["missing"] == -by


@pytest.mark.usefixtures("settled")
def test_two_streams_that_are_off_by_opposite_numbers_do_not_cancel_out(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    add(client, "mqtt_stream:e:t", [{"value": "1"}])
    with working(settings):
        wait_until(lambda: everything_settled(client, 6))
    client.hincrby(Keys("db_writer").ledger, "stored:mqtt_stream:d:t", 1)
    client.hincrby(Keys("db_writer").ledger, "stored:mqtt_stream:e:t", -1)
    status, found = report(settings, capsys)
    ok, sentence = checks(found)["ledger"]
    assert (status, ok) == (1, False), sentence
    assert "mqtt_stream:d:t -1" in sentence
    assert "mqtt_stream:e:t +1" in sentence


@pytest.mark.usefixtures("settled")
def test_entries_that_wait_without_a_worker_are_exit_1_and_with_one_they_are_read(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checks(report(settings, capsys)[1])["workers"] == (None, "none alive, 0 entries wait")
    add(client, "mqtt_stream:d:t", [{"value": "1"}, {"value": "2"}])
    status, found = report(settings, capsys)
    assert (status, checks(found)["workers"]) == (1, (False, "none alive, 2 entries wait"))
    with working(settings):
        wait_until(lambda: everything_settled(client, 7))
        status, found = report(settings, capsys)
        assert (status, checks(found)["workers"]) == (0, (True, "1 alive: worker-1"))


def test_streams_that_no_worker_has_found_yet_wait_too(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    add(client, "mqtt_stream:new:t", [{"value": "1"}])
    status, found = report(settings, capsys)
    assert (status, checks(found)["workers"]) == (1, (False, "none alive, 1 entries wait"))
    assert (found["entries"]["unread"], found["entries"]["read"]) == (1, 0)


def test_entries_trimmed_before_they_were_read_are_exit_1(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    with working(settings):
        wait_until(lambda: everything_settled(client, 1))
    add(client, "mqtt_stream:d:t", [{"value": str(n)} for n in range(5)])
    client.xtrim("mqtt_stream:d:t", maxlen=1, approximate=False)
    status, found = report(settings, capsys)
    ok, sentence = checks(found)["trimmed"]
    assert (status, ok) == (1, False)
    assert "4 unread entries were deleted" in sentence


def test_a_schema_that_is_behind_is_exit_1(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "REVISIONS", (*models.REVISIONS, "9999_next"))
    status, found = report(settings, capsys)
    ok, sentence = checks(found)["schema"]
    assert (status, ok) == (1, False)
    assert "need 9999_next; run ./migrate.sh upgrade" in sentence


def test_a_database_without_schema_is_exit_1(
    empty_database: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(Database(empty_database, timescale=False), redis_url)
    status, found = report(settings, capsys)
    ok, sentence = checks(found)["schema"]
    assert (status, ok) == (1, False)
    assert "found no revision" in sentence


def test_a_redis_that_evicts_is_exit_1(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        status, found = report(settings, capsys)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert (status, checks(found)["redis"][0]) == (1, False)


def test_the_age_of_the_newest_reading_is_told(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checks(report(settings, capsys)[1])["newest"][1] == "no reading measured in the last two days"
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    with working(settings):
        wait_until(lambda: everything_settled(client, 1))
    sentence = checks(report(settings, capsys)[1])["newest"][1]
    assert sentence.startswith("measured ")
    assert int(sentence.split()[1]) < 60


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_servers_that_are_away_get_a_line_each_and_exit_1_without_a_secret(form: tuple[str, ...]) -> None:
    done = process(*form, DATABASE_URL=AWAY, REDIS_URL=REDIS_AWAY)
    assert (done.returncode, done.stderr) == (1, "")
    assert "s3cret-word" not in done.stdout
    if form:
        found = checks(json.loads(done.stdout))
        assert (found["redis"][0], found["database"][0]) == (False, False)
    else:
        lines = done.stdout.splitlines()
        assert len(lines) == 2, done.stdout
        assert lines[0].startswith("FAIL  redis      not usable: ")
        assert lines[1].startswith("FAIL  database   not usable: ")


def test_the_other_server_is_checked_while_one_is_away(
    database: Database, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = report(settings_for(database, REDIS_AWAY), capsys)
    assert status == 1
    assert (checks(found)["redis"][0], checks(found)["schema"][0]) == (False, True)
    away = Database(AWAY, timescale=False)
    status, found = report(settings_for(away, redis_url), capsys)
    assert status == 1
    assert (checks(found)["redis"][0], checks(found)["database"][0]) == (True, False)


def test_no_secret_is_in_a_report_in_order(
    settings: Settings,
    database: Database,
    redis_url: str,
    client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The embedded servers take any password: what is in the address must not come out again."""
    separator = "&" if "?" in database.url else "?"
    url = f"{database.url}{separator}password=s3cret-word"
    client.config_set("requirepass", "s3cret-word")
    with_password = redis_url.replace("unix://", "unix://:s3cret-word@")
    try:
        run = commands(database, capsys, monkeypatch)
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("REDIS_URL", with_password)
        for form in ((), ("--json",)):
            done = run("verify", *form)
            assert "s3cret-word" not in done.told + done.errors
            assert done.status == 0, done
        monkeypatch.setenv("REDIS_URL", redis_url.replace("unix://", "unix://:wr0ng@"))
        wrong = run("verify")
        assert wrong.status == 1
        assert "wr0ng" not in wrong.told + wrong.errors
    finally:
        with redis.Redis.from_url(with_password) as admin:
            admin.config_set("requirepass", "")


def test_a_reader_that_has_seen_enough_meets_no_traceback() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "verify"],
        env={**os.environ, "REDIS_URL": REDIS_AWAY, "DATABASE_URL": AWAY},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(theirs)
    assert done.stderr == ""
