"""Duties in a real database: one holder at a time, through crashes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

import duties
from tests.support import Database
from tests.writing import together


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.url, autocommit=True) as found:
        yield found


def expire(connection: psycopg.Connection) -> None:
    connection.execute("update duties set held_until = now() - interval '1 ms'")


def test_a_duty_belongs_to_one_holder_until_its_lease_runs_out(connection: psycopg.Connection) -> None:
    assert duties.take(connection, "sweep", "one", 30)
    assert not duties.take(connection, "sweep", "two", 30)
    assert duties.take(connection, "sweep", "one", 30)
    expire(connection)
    assert duties.take(connection, "sweep", "two", 30)
    assert not duties.take(connection, "sweep", "one", 30)


def test_duties_of_different_names_do_not_touch_each_other(connection: psycopg.Connection) -> None:
    assert duties.take(connection, "sweep", "one", 30)
    assert duties.take(connection, "publish", "two", 30)


def test_a_duty_given_back_is_free_at_once_and_only_its_holder_gives_it_back(
    connection: psycopg.Connection,
) -> None:
    assert duties.take(connection, "sweep", "one", 30)
    duties.give_back(connection, "sweep", "two")
    assert not duties.take(connection, "sweep", "two", 30)
    duties.give_back(connection, "sweep", "one")
    assert duties.take(connection, "sweep", "two", 30)


def test_what_is_remembered_of_a_duty_stays_when_it_changes_hands(connection: psycopg.Connection) -> None:
    assert duties.take(connection, "sweep", "one", 30)
    connection.execute("update duties set done_until = '2026-01-02Z'")
    duties.give_back(connection, "sweep", "one")
    assert duties.take(connection, "sweep", "two", 30)
    row = connection.execute("select done_until is not null from duties").fetchone()
    assert row == (True,)


def test_of_many_that_reach_for_a_free_duty_one_gets_it(database: Database) -> None:
    def reach(holder: str) -> bool:
        with psycopg.connect(database.url) as connection:
            return duties.take(connection, "sweep", holder, 30)

    taken = together([lambda name=f"h{number}": reach(name) for number in range(8)])  # type: ignore[misc]
    assert sorted(taken) == [False] * 7 + [True]


def test_a_holder_asks_again_when_half_of_its_lease_is_over(connection: psycopg.Connection) -> None:
    one = duties.Held("sweep", "one", 30)
    assert not one.surely(100)
    assert one.take(connection, 100)
    assert one.surely(114.9)
    assert not one.surely(115)
    expire(connection)
    assert duties.take(connection, "sweep", "two", 30)
    assert not one.take(connection, 115)
    assert not one.surely(115)


def test_a_holder_gives_back_what_it_has_taken_and_nothing_else(connection: psycopg.Connection) -> None:
    one, other_life = (duties.Held("sweep", "one", 30) for _ in range(2))
    assert one.take(connection, 0)
    other_life.give_back(connection)
    assert not duties.take(connection, "sweep", "two", 30)
    one.give_back(connection)
    assert duties.take(connection, "sweep", "two", 30)
