"""The naive worker, and the check that scenarios end with, are worth something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forge import Forge, daemons
from tests.scenarios import NaiveFell, Stage
from tests.support import Database, wait_until


@pytest.fixture
def naive(forge: Forge, database: Database, redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    with daemons(forge, tmp_path) as start:
        yield Stage(start, database, redis_url, naive=True)


def test_the_naive_worker_accounts_for_everything_where_nothing_happens(naive: Stage) -> None:
    naive.naive_patience_sec = 3.0
    naive.worker("one")
    with naive.source() as source:
        wait_until(lambda: source.acknowledged > 2000)
    with pytest.raises(pytest.fail.Exception, match="survives"):
        naive.accounted(source.acknowledged)
    naive.close()


def test_the_check_sees_what_is_lost_and_what_is_doubled(naive: Stage) -> None:
    naive.database.rows("""
        insert into sensor_readings (timestamp, device_id, sensor_type, value, message_id)
        select now(), 'd', 't', n, gen_random_uuid() from unnest(array[0, 1, 1, 3]) as n
    """)
    with pytest.raises(NaiveFell):
        naive.accounted(4)
    assert naive.report == [{"naive_lost": 1, "naive_doubled": 1}]
    naive.close()
