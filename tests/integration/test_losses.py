"""What others deleted before anybody had read it: told once, by one worker, whatever was read since."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from losses import ROUND_SEC
from metrics import Stats
from redis_client import execute
from redis_reader import RedisReader
from schema import Fate
from tests.integration.readers import GROUP, LEDGER, Clock, Workshop, deliver, flat, outcome, read_all
from tests.support import add, books

STREAM = "mqtt_stream:d:t"


class Looking:
    """A reader, and what it tells as time passes."""

    def __init__(self, workshop: Workshop, consumer: str = "one", **options: Any) -> None:
        self.clock, self.stats = Clock(), Stats()
        values = {"batch_size": 1, "stream_retention_sec": 0} | options
        self.reader: RedisReader = workshop.reader(consumer, clock=self.clock, stats=self.stats, **values)

    def tells(self) -> list[int]:
        """The entries of each line about loss."""
        self.clock.now += ROUND_SEC
        with capture_logs() as logs:
            self.reader.upkeep()
        return [line["entries"] for line in logs if line["event"] == "unread_entries_trimmed"]

    def settle(self, count: int, fate: Fate = Fate.STORED) -> None:
        entries = flat(read_all(self.reader, count, reads=10))
        assert len(entries) == count
        self.reader.settle(outcome(entries, fate))


def numbered(count: int) -> list[dict[str, str]]:
    return [{"value": str(n)} for n in range(count)]


def trim(client: redis.Redis, before: bytes, stream: str = STREAM) -> None:
    """As a producer's MAXLEN does."""
    execute(client, "XTRIM", stream, "MINID", before)


@pytest.mark.parametrize("passed", [False, True], ids=["ahead", "passed"])
def test_loss_is_told_once_whether_the_group_has_passed_it_or_not(
    workshop: Workshop, client: redis.Redis, passed: bool
) -> None:
    ids = add(client, STREAM, numbered(10))
    looking = Looking(workshop)
    looking.settle(4)
    assert looking.tells() == []
    trim(client, ids[7])
    if passed:
        looking.settle(1)
    assert looking.tells() == [3]
    looking.settle(2 if passed else 3)
    assert looking.tells() == []
    more = add(client, STREAM, numbered(5))
    trim(client, more[2])
    looking.settle(3, Fate.DUPLICATE)
    assert looking.tells() == [2]
    assert looking.stats.messages_trimmed_unread == 5
    assert client.hget(LEDGER, f"trimmed_unread:{STREAM}") == b"5"
    found = books(client)
    assert (found.read, found.settled, found.trimmed_unread, found.missing) == (10, 10, 5, 0)


def test_another_worker_does_not_tell_it_again(workshop: Workshop, client: redis.Redis) -> None:
    ids = add(client, STREAM, numbered(10))
    one, two = Looking(workshop), Looking(workshop, "two")
    trim(client, ids[7])
    assert one.tells() == [7]
    assert two.tells() == [], "the other one has the lease"
    client.delete(f"sluice:{GROUP}:upkeep")
    assert two.tells() == [], "it is in the ledger"


def test_loss_in_many_streams_is_summed_and_streams_in_order_cost_nothing(
    workshop: Workshop, client: redis.Redis
) -> None:
    for number in range(120):
        ids = add(client, f"mqtt_stream:{number}:t", numbered(3))
        if number % 60 == 0:
            trim(client, ids[2], f"mqtt_stream:{number}:t")
            add(client, f"mqtt_stream:{number}:t", numbered(1))
    client.set("mqtt_stream:text", "no stream")
    looking = Looking(workshop)
    assert looking.tells() == [], "what was gone before the group was made was not its own"
    for number in (0, 60):
        execute(client, "XTRIM", f"mqtt_stream:{number}:t", "MAXLEN", 0)
    assert [count for _ in range(3) for count in looking.tells()] == [2, 2]


def test_what_was_deleted_after_it_was_delivered_is_no_such_loss(
    workshop: Workshop, client: redis.Redis
) -> None:
    """Settled, pending, or found gone when it was claimed: each is counted elsewhere."""
    add(client, STREAM, numbered(9))
    looking = Looking(workshop, claim_min_idle_sec=0.001)
    looking.settle(4)
    deliver(client, "gone", [STREAM], 3)
    execute(client, "XTRIM", STREAM, "MAXLEN", 2)
    assert looking.tells() == []
    while entries := looking.reader.recover():
        looking.reader.settle(outcome(entries))
    assert (books(client).trimmed, books(client).pending) == (3, 0)
    assert looking.tells() == []
    looking.settle(2)
    assert looking.tells() == []


def test_what_workers_trim_and_what_others_acknowledge_is_no_such_loss(
    workshop: Workshop, client: redis.Redis
) -> None:
    ids = add(client, STREAM, numbered(10))
    old = int(ids[-1].partition(b"-")[0]) + 1_001
    looking = Looking(workshop, stream_retention_sec=1)
    entries = flat(read_all(looking.reader, 10, reads=10))
    client.xack(STREAM, GROUP, *(entry.id for entry in entries[:3]))  # past the ledger
    looking.reader.settle(outcome(entries))
    trimming = workshop.reader("two", stream_retention_sec=1, wall_ms=lambda: old)
    trimming.upkeep()
    client.delete(f"sluice:{GROUP}:upkeep")
    assert client.xlen(STREAM) == 1
    assert looking.tells() == []
    assert books(client).missing == 3


def test_a_group_made_again_begins_new_books_of_loss_too(workshop: Workshop, client: redis.Redis) -> None:
    ids = add(client, STREAM, numbered(10))
    looking = Looking(workshop)
    trim(client, ids[7])
    assert looking.tells() == [7]
    client.xgroup_destroy(STREAM, GROUP)
    looking.settle(3)
    assert looking.tells() == []
    assert client.hget(LEDGER, "closed:trimmed_unread") == b"7"
    assert (books(client).read, books(client).trimmed_unread) == (3, 0)


def test_a_number_of_unread_entries_that_redis_does_not_know_waits_for_the_next_look(
    workshop: Workshop, client: redis.Redis
) -> None:
    ids = add(client, STREAM, numbered(10))
    looking = Looking(workshop)
    looking.settle(2)
    client.xdel(STREAM, ids[5])
    assert looking.tells() == []
    looking.settle(7)
    assert looking.tells() == [1]
