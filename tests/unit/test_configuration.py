"""`python main.py config` and the reference: values, where they come from, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from config import Settings
from ops import configuration
from ops.settings_shown import SECTIONS, value_text
from setting_sources import SECRETS
from tests.commands import Command, commands

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db.example:5433/iot?sslpassword=hunter3")
    return commands(None, capsys, monkeypatch)


def told(run: Command, *words: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(run("config", "--json", *words).told)}


def test_every_setting_is_told_with_value_origin_and_meaning(
    run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BATCH_SIZE=77\nMAX_DELIVERIES=9\nLOG_LEVEL=\n")
    (tmp_path / "password").write_text("hunter4\n")
    monkeypatch.setenv("BATCH_SIZE", "78")
    monkeypatch.setenv("redis_password_file".upper(), str(tmp_path / "password"))
    found = told(run)
    assert set(found) == {name.upper() for name in Settings.model_fields}
    assert (found["BATCH_SIZE"]["value"], found["BATCH_SIZE"]["origin"]) == ("78", "environment")
    assert (found["MAX_DELIVERIES"]["value"], found["MAX_DELIVERIES"]["origin"]) == (
        "9",
        str(tmp_path / ".env"),
    )
    assert (found["REDIS_PASSWORD"]["value"], found["REDIS_PASSWORD"]["origin"]) == (
        "***",
        "REDIS_PASSWORD_FILE",
    )
    assert (found["LOG_LEVEL"]["value"], found["LOG_LEVEL"]["origin"]) == ("info", "default")
    assert found["DATABASE_URL"]["value"] == "postgresql://***@db.example:5433/iot"
    assert found["QUIET_POLL_SEC"]["takes"] == "number from 0.05 to 60"
    assert set(told(run, "--changed")) == {"BATCH_SIZE", "MAX_DELIVERIES", "REDIS_PASSWORD", "DATABASE_URL"}


def test_no_form_shows_a_secret(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "rediss://user:hunter5@r.example:6380/1?ssl_cert_reqs=none")
    monkeypatch.setenv("MQTT_URL", "mqtt://b.example")
    monkeypatch.setenv("MQTT_USERNAME", "hunter6")
    monkeypatch.setenv("QUERY_TOKEN", "hunter7-hunter7-hunter7")
    for form in ((), ("--json",), ("--changed",)):
        done = run("config", *form)
        assert (done.status, done.errors) == (0, "")
        assert "hunter" not in done.told
        assert "rediss://***@r.example:6380/1?***" in done.told


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pa?ss@host/0", "redis://***"),
        ("redis://:p@ss@host/0", "redis://***@host/0"),
        ("unix:///run/redis.sock?db=1&password=x", "unix:///run/redis.sock?***"),
        ("postgresql://u:p@/db?host=/run/pg", "postgresql://***@/run/pg/db"),
        ("a-token-of-sixteen", "***"),
    ],
)
def test_of_an_address_only_where_it_leads_is_shown(secret: str, shown: str) -> None:
    assert value_text("redis_url", SecretStr(secret)) == shown


def test_a_misspelled_name_in_a_dotenv_is_told(run: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BATCHSIZE=77\n")
    done = run("config", "--changed")
    assert done.status == 0
    assert f"sluice: BATCHSIZE in {tmp_path / '.env'} is no setting" in done.errors


def test_a_wrong_setting_is_exit_2_in_one_line(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "many")
    for command in ("config", "check"):
        done = run(command)
        assert done.status == 2
        assert done.errors.startswith("sluice: BATCH_SIZE is 'many'; it takes")


def test_the_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == configuration.reference(), "settings have changed: run make reference"


def test_the_reference_has_every_setting_once_and_every_section() -> None:
    text = configuration.reference()
    assert set(SECTIONS) <= set(Settings.model_fields)
    for name in Settings.model_fields:
        assert text.count(f"\n| `{name.upper()}` |") == 1
    assert all(f"`{name.upper()}`" in text for name in SECRETS)
