"""Settings of the dashboard: who may look is decided before it listens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import config
import main
import wiring
from config import ConfigError, Settings

URL = "postgresql://me:hunter2@127.0.0.1:1/none"
PASSWORD = "correct horse battery"
TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", URL)


def refusal(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        wiring.dashboard_options(config.load())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "sluice.example"])
def test_listening_for_others_needs_a_password_or_a_token(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    message = refusal(monkeypatch, DASHBOARD_HOST=host)
    assert message.startswith(f"DASHBOARD_HOST is {host!r}")
    assert "set DASHBOARD_PASSWORD or DASHBOARD_TOKEN" in message
    monkeypatch.setenv("DASHBOARD_TOKEN", TOKEN)
    assert wiring.dashboard_options(config.load()).token == TOKEN
    monkeypatch.delenv("DASHBOARD_TOKEN")
    monkeypatch.setenv("DASHBOARD_PASSWORD", PASSWORD)
    assert wiring.dashboard_options(config.load()).password == PASSWORD


def test_a_proxy_before_it_needs_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, DASHBOARD_ALLOWED_HOSTS="sluice.example")
    assert message.startswith("DASHBOARD_ALLOWED_HOSTS is 'sluice.example'")
    monkeypatch.setenv("DASHBOARD_PASSWORD", PASSWORD)
    assert wiring.dashboard_options(config.load()).allowed_hosts == ("sluice.example",)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_nothing_is_needed(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DASHBOARD_HOST", host)
    assert wiring.dashboard_options(config.load()).open


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, secret in (("DASHBOARD_PASSWORD", PASSWORD), ("DASHBOARD_TOKEN", TOKEN)):
        (tmp_path / name).write_text(f"{secret}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    options = wiring.dashboard_options(config.load())
    assert (options.password, options.token) == (PASSWORD, TOKEN)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"DASHBOARD_PORT": "0"}, "DASHBOARD_PORT is '0'; it takes"),
        ({"DASHBOARD_CLIENTS": "0"}, "DASHBOARD_CLIENTS is '0'; it takes"),
        ({"DASHBOARD_TIMEOUT_SEC": "inf"}, "DASHBOARD_TIMEOUT_SEC is 'inf'; it takes"),
        ({"DASHBOARD_CERTIFICATE": "/nowhere.pem"}, "DASHBOARD_CERTIFICATE is '/nowhere.pem'; it takes"),
        ({"DASHBOARD_CERTIFICATE": "."}, "set DASHBOARD_KEY too"),
        ({"DASHBOARD_KEY": "."}, "set DASHBOARD_CERTIFICATE too"),
        ({"DASHBOARD_PASSWORD": "short"}, "DASHBOARD_PASSWORD is a value that is kept secret; it takes at"),
        ({"DASHBOARD_TOKEN": "short"}, "DASHBOARD_TOKEN is a value that is kept secret; it takes at"),
        ({"DASHBOARD_ALLOWED_HOSTS": "http://x/"}, "it takes names such as sluice.example"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[str, str], words: str
) -> None:
    (tmp_path / "file.pem").write_text("")
    given = {name: str(tmp_path / "file.pem") if value == "." else value for name, value in values.items()}
    message = refusal(monkeypatch, **given)
    assert words in message
    assert "short" not in message


def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("dashboard.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.main(["dashboard"]) == 2
    error = capsys.readouterr().err
    assert "the package uvicorn is missing" in error
    assert "pip install --require-hashes -r requirements/dashboard.txt" in error
    assert error.count("\n") == 1
