"""Consumers of workers that left, and books of streams that are gone: removed, and never anything else."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from leftovers import FIRST_SEC, ROUND_SEC
from ops.ledger import read_ledger
from redis_client import execute
from redis_reader import RedisReader
from schema import Fate
from tests.integration.readers import (
    FAILED,
    GROUP,
    LEDGER,
    Clock,
    Workshop,
    deliver,
    flat,
    outcome,
    pending,
    read_all,
)
from tests.support import add, books, wait_until

STREAMS = [f"mqtt_stream:d{number}:t" for number in range(60)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has asked for nothing for some milliseconds has left."""
    monkeypatch.setattr("leftovers.LEFT_SEC", 0.02)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(workshop: Workshop, client: redis.Redis, clock: Clock) -> RedisReader:
    """It has stored what there was in each of the streams."""
    for stream in STREAMS:
        add(client, stream, [{"value": "1"}])
    made = workshop.reader("one", clock=clock)
    made.settle(outcome(flat(read_all(made, len(STREAMS), reads=20))))
    return made


def tidy(worker: RedisReader, clock: Clock) -> list[MutableMapping[str, Any]]:
    """The next round to its end; what it logged."""
    clock.now += ROUND_SEC
    with capture_logs() as logs:
        for _ in range(20):
            worker.upkeep()
            clock.now += FIRST_SEC
    return [line for line in logs if str(line["event"]).startswith("leftovers")]


def idle(client: redis.Redis) -> None:
    """Wait until everybody has asked for nothing for so long that he has left."""

    def shortest() -> int:
        return min(int(one["idle"]) for stream in STREAMS for one in client.xinfo_consumers(stream, GROUP))

    wait_until(lambda: shortest() > 20, what="consumers that have left")


def consumers(client: redis.Redis, stream: str) -> set[str]:
    return {one["name"].decode() for one in client.xinfo_consumers(stream, GROUP)}


def test_names_of_workers_that_left_do_not_pile_up(
    worker: RedisReader, client: redis.Redis, clock: Clock
) -> None:
    for start in range(5):
        deliver(client, f"host-{start}", STREAMS)
    assert len(consumers(client, STREAMS[-1])) == 6
    idle(client)
    (line,) = tidy(worker, clock)
    assert line["consumers"] >= 5 * len(STREAMS)
    assert not set.union(*(consumers(client, stream) for stream in STREAMS)) - {"one"}
    add(client, STREAMS[0], [{"value": "2"}])  # to whoever was removed itself: it reads on
    worker.settle(outcome(flat(read_all(worker, 1, reads=20))))
    assert (books(client).stored, books(client).missing) == (len(STREAMS) + 1, 0)


def test_a_consumer_with_pending_entries_stays_with_them(
    worker: RedisReader, client: redis.Redis, clock: Clock
) -> None:
    add(client, STREAMS[0], [{"value": "2"}])
    deliver(client, "dead", STREAMS)
    idle(client)
    tidy(worker, clock)
    assert [owner for _, owner, _, _ in pending(client, STREAMS[0])] == [b"dead"]
    assert "dead" not in consumers(client, STREAMS[1])


def test_who_has_asked_lately_stays(
    worker: RedisReader, client: redis.Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftovers.LEFT_SEC", 86_400.0)
    deliver(client, "two", STREAMS)
    assert tidy(worker, clock) == []
    assert consumers(client, STREAMS[0]) == {"one", "two"}


def test_the_books_of_streams_that_are_gone_are_closed_and_their_sums_kept(
    worker: RedisReader, client: redis.Redis, clock: Clock
) -> None:
    bad = [f"mqtt_stream:e{number}:t" for number in range(20)]
    for stream in bad:
        add(client, stream, [{"value": "nan"}, {"value": "nan"}])
    clock.now += 1
    worker.settle(outcome(flat(read_all(worker, 2 * len(bad), reads=40)), Fate.DEAD_LETTERED))
    client.hset(LEDGER, f"dropped:{bad[0]}", 1)
    client.hset(LEDGER, f"trimmed_unread:{bad[0]}", 3)
    client.delete(*bad, *STREAMS[10:])
    clock.now += 1
    worker.read()  # it finds that they are gone
    (line,) = tidy(worker, clock)
    assert line["books"] == len(bad) + len(STREAMS) - 10
    assert client.hgetall(LEDGER) == {
        b"closed:stored": b"50",
        b"closed:dead_lettered": b"40",
        b"closed:trimmed_unread": b"3",
        **{f"stored:{stream}".encode(): b"1" for stream in STREAMS[:10]},
    }
    closed = read_ledger(client, GROUP, "mqtt_stream:*", FAILED).closed
    assert (closed["stored"], closed["dead_lettered"]) == (50, 40)


def test_a_stream_that_is_there_keeps_its_books_though_nobody_reads_it_here(
    worker: RedisReader, client: redis.Redis, clock: Clock
) -> None:
    """A worker with another pattern has the same ledger."""
    client.xadd("elsewhere:d:t", {"value": "1"})
    client.hset(LEDGER, "stored:elsewhere:d:t", 7)
    tidy(worker, clock)
    assert client.hget(LEDGER, "stored:elsewhere:d:t") == b"7"


def test_one_worker_looks_for_all(workshop: Workshop, worker: RedisReader, client: redis.Redis) -> None:
    theirs = Clock()
    two = workshop.reader("two", clock=theirs)
    execute(client, "SET", f"sluice:{GROUP}:upkeep", "somebody else's", "PX", 60_000)
    deliver(client, "gone", STREAMS)
    idle(client)
    assert tidy(two, theirs) == []
    assert "gone" in consumers(client, STREAMS[0])


def test_an_account_without_the_rights_says_so_once_and_goes_on(
    workshop: Workshop, client: redis.Redis, redis_url: str
) -> None:
    execute(client, "ACL", "SETUSER", "old", "on", ">secret", "~*", "+@all", "-xinfo|consumers")
    add(client, STREAMS[0], [{"value": "1"}])
    clock = Clock()
    worker = workshop.reader("one", url=redis_url.replace("unix://", "unix://old:secret@"), clock=clock)
    assert [line["event"] for line in tidy(worker, clock)] == ["leftovers_stay"]
    assert tidy(worker, clock) == []
    assert len(flat(read_all(worker, 1, reads=20))) == 1
    execute(client, "ACL", "DELUSER", "old")
