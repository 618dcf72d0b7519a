"""Settings of the query service: who may call is decided before it listens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import config
import main
import wiring
from config import ConfigError, Settings
from query.options import is_loopback

URL = "postgresql://me:hunter2@127.0.0.1:1/none"
TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", URL)


@pytest.fixture
def pem(tmp_path: Path) -> str:
    (tmp_path / "file.pem").write_text("")
    return str(tmp_path / "file.pem")


def refusal(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        wiring.query_options(config.load())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "sluice.example"])
def test_listening_for_others_needs_a_token_or_an_authority(
    monkeypatch: pytest.MonkeyPatch, host: str, pem: str
) -> None:
    message = refusal(monkeypatch, QUERY_HOST=host, QUERY_DELETE_TOKEN=TOKEN[::-1])
    assert message.startswith(f"QUERY_HOST is {host!r}")
    assert "set QUERY_TOKEN, or QUERY_CERTIFICATE, QUERY_KEY and QUERY_CLIENT_CA" in message
    files = dict.fromkeys(("QUERY_CERTIFICATE", "QUERY_KEY"), pem)
    assert refusal(monkeypatch, **files).startswith("QUERY_HOST is")
    monkeypatch.setenv("QUERY_CLIENT_CA", pem)
    assert wiring.query_options(config.load()).host == host
    for name in ("QUERY_CLIENT_CA", "QUERY_CERTIFICATE", "QUERY_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUERY_TOKEN", TOKEN)
    assert wiring.query_options(config.load()).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_loopback_nothing_is_needed(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("QUERY_HOST", host)
    assert wiring.query_options(config.load()).host == host


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "::ffff:192.0.2.7", "localhost.a", "127.0.0.1.a"])
def test_what_is_not_certainly_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_worker_does_not_mind_where_the_query_service_would_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUERY_HOST", "0.0.0.0")
    assert config.load().query_host == "0.0.0.0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"QUERY_PORT": "0"}, "QUERY_PORT is '0'; it takes"),
        ({"QUERY_WORKERS": "0"}, "QUERY_WORKERS is '0'; it takes"),
        ({"QUERY_STREAMS": "many"}, "QUERY_STREAMS is 'many'; it takes"),
        ({"QUERY_TIMEOUT_SEC": "inf"}, "QUERY_TIMEOUT_SEC is 'inf'; it takes"),
        ({"QUERY_CERTIFICATE": "/nowhere.pem"}, "QUERY_CERTIFICATE is '/nowhere.pem'; it takes the path"),
        ({"QUERY_CERTIFICATE": "."}, "set QUERY_KEY too"),
        ({"QUERY_KEY": "."}, "set QUERY_CERTIFICATE too"),
        ({"QUERY_CLIENT_CA": "."}, "QUERY_CLIENT_CA is set without TLS"),
        (
            {"QUERY_TOKEN": TOKEN, "QUERY_DELETE_TOKEN": TOKEN},
            "QUERY_DELETE_TOKEN takes a token of its own",
        ),
        ({"QUERY_TOKEN": "short"}, "QUERY_TOKEN is a value that is kept secret; it takes at least 16"),
        ({"QUERY_TOKEN": "with a space in it"}, "QUERY_TOKEN is a value that is kept secret"),
        (
            {"QUERY_DELETE_TOKEN": "\u00fc" * 20},
            "QUERY_DELETE_TOKEN is a value",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, pem: str, values: dict[str, str], words: str
) -> None:
    message = refusal(
        monkeypatch, **{name: pem if value == "." else value for name, value in values.items()}
    )
    assert words in message
    assert "short" not in message
    assert TOKEN not in message


def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "query"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    assert main.main(["query"]) == 2
    error = capsys.readouterr().err
    assert "the package grpc is missing" in error
    assert "pip install --require-hashes -r requirements/query.txt" in error
    assert error.count("\n") == 1
