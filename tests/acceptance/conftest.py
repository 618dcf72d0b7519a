"""Servers of a test's own, to be stopped and killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import config
from ops import migrate
from standalone.servers import Postgres, Valkey
from tests.support import Database, started


@pytest.fixture
def own_valkey(server_folder: Path, tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that loses nothing it acknowledged, however it ends."""
    server = Valkey(server_folder / f"valkey-{tmp_path.name[-20:]}", ["--appendfsync", "always"])
    with started(server):
        yield server


@pytest.fixture
def own_postgres(server_folder: Path, tmp_path: Path) -> Iterator[Postgres]:
    server = Postgres(server_folder / f"postgres-{tmp_path.name[-20:]}")
    with started(server):
        yield server


@pytest.fixture
def own_database(own_postgres: Postgres) -> Database:
    migrate.upgrade(config.load(database_url=own_postgres.url))
    return Database(own_postgres.url, timescale=False)
