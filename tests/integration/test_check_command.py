"""`python main.py check`: a line for each thing, and an exit status that says whose fault it is."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
import redis

import models
import schema_check
from redis_client import execute
from tests.broker import Broker
from tests.commands import Command
from tests.support import Database


def lines(run: Command) -> tuple[int, dict[str, tuple[bool | None, str]]]:
    done = run("check", "--json")
    assert done.errors == ""
    return done.status, {one["name"]: (one["ok"], one["sentence"]) for one in json.loads(done.told)}


def test_all_right_is_exit_0_and_leaves_nothing_behind(run: Command, client: redis.Redis) -> None:
    status, found = lines(run)
    assert status == 0, found
    assert {name for name, (ok, _) in found.items() if ok} == {
        "configuration",
        "redis",
        "policy",
        "permissions",
        "database",
        "schema",
        "grants",
    }
    assert found["mqtt"] == (None, "MQTT_URL is not set: no bridge runs, and no alert is published")
    assert client.dbsize() == 0
    text = run("check").told
    assert "ok    schema        sensor_readings: " in text
    assert "FAIL" not in text


def test_a_redis_that_evicts_is_exit_1(run: Command, client: redis.Redis) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        status, found = lines(run)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert (status, found["policy"][0]) == (1, False)


def test_commands_that_the_user_may_not_run_are_named(
    run: Command, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        client, "ACL", "SETUSER", "poor", "on", ">secret-word", "~mqtt_stream:*", "+@all", "-xautoclaim"
    )
    try:
        monkeypatch.setenv("REDIS_URL", redis_url.replace("unix://", "unix://poor:secret-word@"))
        monkeypatch.setenv("DEVICE_EVENTS", "false")
        status, found = lines(run)
    finally:
        execute(client, "ACL", "DELUSER", "poor")
    ok, sentence = found["permissions"]
    assert (status, ok) == (1, False)
    assert sentence.startswith("this user may not XAUTOCLAIM mqtt_stream:sluice-check-")
    assert "HINCRBY sluice:db_writer:" in sentence  # nor touch those keys
    assert "secret-word" not in sentence


def test_a_database_that_is_behind_or_poor_is_exit_1(
    run: Command, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema_check, "REVISIONS", (*models.REVISIONS, "9999_next"))
        status, found = lines(run)
    assert (status, found["schema"][0]) == (1, False)
    assert "run ./migrate.sh upgrade" in found["schema"][1]

    database.rows("create role sluice_poor login")
    try:
        database.rows("grant select on all tables in schema public to sluice_poor")
        as_poor = "options=-crole%3Dsluice_poor"
        monkeypatch.setenv("DATABASE_URL", f"{database.url}{'&' if '?' in database.url else '?'}{as_poor}")
        status, found = lines(run)
    finally:
        database.rows("drop owned by sluice_poor")
        database.rows("drop role sluice_poor")
    assert (status, found["grants"][0]) == (1, False)
    assert "the account sluice_poor lacks INSERT on sensor_readings" in found["grants"][1]


def test_the_direct_address_is_tried_too(
    run: Command, database: Database, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to lead where DATABASE_URL does: partitions are dropped and migrations run by way of it."""
    monkeypatch.setenv("DATABASE_DIRECT_URL", database.url)
    status, found = lines(run)
    assert (status, found["direct"][0]) == (0, True), found
    assert found["direct"][1].startswith("past any pooler, connected in ")

    monkeypatch.setenv("DATABASE_DIRECT_URL", empty_database)
    status, found = lines(run)
    assert (status, found["direct"][0], found["schema"][0]) == (1, False, True)
    assert "of another server, or to another database, than DATABASE_URL" in found["direct"][1]

    monkeypatch.setenv("DATABASE_DIRECT_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    status, found = lines(run)
    assert (status, found["direct"][0]) == (1, False)
    assert found["direct"][1].startswith("not usable: ")
    assert found["direct"][1].endswith("; check DATABASE_DIRECT_URL")
    assert "s3cret" not in found["direct"][1]

    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    monkeypatch.setenv("DATABASE_DIRECT_URL", database.url)
    status, found = lines(run)
    assert (status, found["database"][0], found["direct"][0]) == (1, False, True)


def test_servers_that_are_away_get_a_line_each_and_no_secret(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    monkeypatch.setenv("MQTT_URL", "mqtt://me:s3cret@127.0.0.1:1")
    status, found = lines(run)
    assert status == 1
    for name in ("redis", "database", "mqtt"):
        ok, sentence = found[name]
        assert ok is False
        assert "not usable" in sentence
        assert "s3cret" not in sentence


def test_settings_that_would_not_start_a_program_are_exit_2(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERY_HOST", "0.0.0.0")
    status, found = lines(run)
    assert (status, found["query"][0]) == (2, False)
    assert "QUERY_TOKEN" in found["query"][1]
    assert found["schema"][0] is True  # the rest is looked at all the same


def test_a_broker_is_tried_under_a_name_of_its_own(
    run: Command, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{broker.port}")
    monkeypatch.setenv("MQTT_PROTOCOL", "5" if broker.version_5 else "3.1.1")
    status, found = lines(run)
    assert (status, found["mqtt"][0]) == (0, True), found["mqtt"]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which somebody takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                pass

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for connection in taken:
            connection.close()


def test_something_that_is_no_broker_is_said(
    run: Command, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.checks._BROKER_SEC", 0.5)
    monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{silent}")
    status, found = lines(run)
    assert (status, found["mqtt"][0]) == (1, False)
    assert "is it an MQTT broker?" in found["mqtt"][1]
