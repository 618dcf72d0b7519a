"""What many of these tests begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.commands import Command, commands
from tests.integration.readers import Workshop
from tests.support import Database


@pytest.fixture
def workshop(redis_url: str) -> Iterator[Workshop]:
    made = Workshop(redis_url)
    yield made
    made.close()


@pytest.fixture
def run(
    database: Database, redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Takes the words of a command line, which both servers are behind."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return commands(database, capsys, monkeypatch)
