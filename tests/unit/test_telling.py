"""When a worker asks who listens, and what it sends, without a server."""

from __future__ import annotations

from typing import Any, cast

import psycopg
import pytest

import live
import live_sql
from database import BoundedConnection
from metrics import Stats
from schema import Reading
from telling import LOOK_SEC, SILENCE_SEC, Telling

STORED = [Reading("d", "s", 1, bytes(16), 1.0)]


class Server:
    """Stands in for a connection: answers whether anybody listens, and notes what is asked of it."""

    def __init__(self) -> None:
        self.wanted = True
        self.asked: list[str] = []
        self.said: list[str] = []

    def execute(self, statement: str, given: dict[str, list[str]]) -> Any:
        self.asked.append("look" if statement == live_sql.IS_WANTED else "tell")
        self.said = given.get("payloads", [])
        return self

    def fetchone(self) -> tuple[bool]:
        return (self.wanted,)


class Worker:
    def __init__(self) -> None:
        self.now = 1_000.0
        self.stats = Stats()
        self.server = Server()
        self.telling = Telling(self.stats, lambda: self.now)

    def store(self, stored: list[Reading], *, commit: bool = True) -> list[str]:
        """What the database was asked for."""
        self.server.asked = []
        self.telling.tell(cast("BoundedConnection", self.server), stored)
        if commit:
            self.telling.committed()
        return self.server.asked


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_it_looks_for_readers_once_a_second_however_many_batches_there_are(worker: Worker) -> None:
    assert worker.store(STORED) == ["look", "tell"]
    worker.now += LOOK_SEC / 2
    assert worker.store(STORED) == ["tell"]
    worker.now += LOOK_SEC / 2
    worker.server.wanted = False
    assert worker.store(STORED) == ["look"]
    assert worker.store(STORED) == []


def test_a_transaction_that_stores_nothing_asks_and_tells_nothing(worker: Worker) -> None:
    assert worker.store([]) == []


def test_what_was_stored_untold_is_made_known_once_somebody_listens(worker: Worker) -> None:
    news = live.payloads(STORED)
    worker.server.wanted = False
    worker.store(STORED)
    worker.server.wanted = True
    worker.now += LOOK_SEC
    worker.store(STORED, commit=False)
    worker.store(STORED)
    assert worker.server.said == [*news, live.MANY], "again, since nobody heard it before"
    worker.store(STORED)
    assert worker.server.said == news


def test_only_what_was_committed_is_counted(worker: Worker) -> None:
    worker.store(STORED, commit=False)
    assert worker.stats.notifications_sent == 0
    worker.store(STORED)
    assert worker.stats.notifications_sent == 1
    worker.store([])
    assert worker.stats.notifications_sent == 1


def test_a_full_queue_silences_it_for_a_minute(worker: Worker) -> None:
    worker.store(STORED, commit=False)
    assert worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded())
    assert worker.store(STORED) == []
    worker.now += SILENCE_SEC
    assert worker.store(STORED) == ["look", "tell"]


def test_it_takes_the_blame_only_for_what_it_has_sent(worker: Worker) -> None:
    """Else a row that makes this error would be tried for ever."""
    worker.server.wanted = False
    worker.store(STORED, commit=False)
    assert not worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded())
    worker.server.wanted = True
    worker.now += LOOK_SEC
    worker.store(STORED, commit=False)
    assert not worker.telling.to_blame(psycopg.errors.DiskFull())
    worker.store(STORED, commit=False)
    assert worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded())
    assert not worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded()), "that one was before it told"
    worker.store(STORED, commit=False)  # the next attempt, which tells nothing
    assert not worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded())


@pytest.mark.parametrize("committed", [True, False])
def test_what_was_sent_before_is_not_to_blame_for_a_row_that_is_refused_later(
    worker: Worker, *, committed: bool
) -> None:
    """COPY makes this error too, before anything is told: of a row that no index can hold."""
    worker.store(STORED, commit=committed)
    if not committed:
        assert not worker.telling.to_blame(psycopg.errors.AdminShutdown())
    assert not worker.telling.to_blame(psycopg.errors.ProgramLimitExceeded())
