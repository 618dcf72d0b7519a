"""The books: that they add up while entries are in every state, and that they show what went wrong."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

import redis_client
from ops.ledger import Books, Ledger, read_ledger
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
    numbered,
    outcome,
    read_all,
)
from tests.support import add, wait_until

STREAM = "mqtt_stream:d:t"


def ledger(client: redis.Redis) -> Ledger:
    return read_ledger(client, GROUP, "mqtt_stream:*", FAILED)


def total(client: redis.Redis) -> Books:
    return ledger(client).total


def settle(reader: RedisReader, count: int, fate: Fate = Fate.STORED) -> None:
    """Read and settle exactly so many, of one stream."""
    entries = flat(read_all(reader, count, reads=count + 1000))  # empty ones until the stream is found
    assert len(entries) == count
    reader.settle(outcome(entries, fate))


def one_at_a_time(workshop: Workshop, **options: Any) -> RedisReader:
    """A reader whose reads bring one entry each, so that a test decides how many are read."""
    return workshop.reader(batch_size=1, **options)


def group_is_made(workshop: Workshop) -> None:
    """Some worker looks for streams, as each does every few seconds."""
    workshop.reader("another")


def test_the_books_add_up_while_entries_are_in_every_state(workshop: Workshop, client: redis.Redis) -> None:
    reader = one_at_a_time(workshop)
    add(client, STREAM, numbered(20))
    settle(reader, 4)
    settle(reader, 3, Fate.DUPLICATE)
    settle(reader, 2, Fate.DEAD_LETTERED)
    settle(reader, 1, Fate.SKIPPED)
    assert len(flat(read_all(reader, 5, reads=9))) == 5
    found = total(client)
    assert found == Books(
        added=20, read=15, unread=5, stored=4, duplicate=3, dead_lettered=2, skipped=1, pending=5
    )
    assert (found.settled, found.missing, found.counted) == (10, 0, True)
    assert (ledger(client).dead_letters, ledger(client).off) == (2, [])


def test_streams_are_kept_apart_and_summed(workshop: Workshop, client: redis.Redis) -> None:
    for number in range(450):
        add(client, f"mqtt_stream:{number}:t", numbered(2))
    reader = workshop.reader(batch_size=1_000)
    reader.settle(outcome(flat(read_all(reader, 900, reads=10))))
    found = ledger(client)
    assert len(found.streams) == 450
    assert found.streams[b"mqtt_stream:7:t"] == Books(added=2, read=2, stored=2)
    assert found.total == Books(added=900, read=900, stored=900)


def test_a_stream_without_the_group_counts_as_unread(client: redis.Redis) -> None:
    add(client, STREAM, numbered(4))
    add(client, FAILED, numbered(2))
    client.xgroup_create(STREAM, "another group", "$")
    found = ledger(client)
    assert found.streams == {STREAM.encode(): Books(added=4, unread=4, grouped=False)}
    assert found.dead_letters == 2


def test_an_empty_redis_has_empty_books(client: redis.Redis) -> None:
    assert ledger(client) == Ledger({}, {fate.value: 0 for fate in Fate}, 0)


def test_entries_trimmed_unread_are_found(workshop: Workshop, client: redis.Redis) -> None:
    """As a producer's MAXLEN does when no worker keeps up."""
    reader = one_at_a_time(workshop)
    entry_ids = add(client, STREAM, numbered(10))
    settle(reader, 4)
    client.xtrim(STREAM, minid=entry_ids[7].decode(), approximate=False)
    found = total(client)
    assert (found.added, found.read, found.unread, found.trimmed_unread) == (10, 4, 3, 3)
    assert (found.stored, found.missing) == (4, 0)


def test_entries_trimmed_unread_never_go_unnoticed_later(workshop: Workshop, client: redis.Redis) -> None:
    """Once the group reads on, Redis counts them as read: they are told all the same."""
    reader = one_at_a_time(workshop)
    entry_ids = add(client, STREAM, numbered(10))
    settle(reader, 4)
    client.xtrim(STREAM, minid=entry_ids[7].decode(), approximate=False)
    for left in (3, 2, 1):
        found = total(client)
        assert (found.unread, found.trimmed_unread, found.missing) == (left, 3, 0)
        assert found.read == found.settled == 7 - left
        settle(reader, 1)
    add(client, STREAM, numbered(5))
    settle(reader, 5)
    expected = Books(added=15, read=12, stored=12, trimmed_unread=3, passed=3)
    assert total(client) == expected


def test_what_is_missing_beyond_what_others_deleted_is_not_put_down_to_them(
    workshop: Workshop, client: redis.Redis
) -> None:
    """Nobody can tell whether what others deleted had been read before. It explains so many, no more."""
    reader = one_at_a_time(workshop)
    entry_ids = add(client, STREAM, numbered(10))
    settle(reader, 4)
    client.xtrim(STREAM, minid=entry_ids[2].decode(), approximate=False)
    for entry in flat(read_all(reader, 3, reads=3)):
        client.xack(STREAM, GROUP, entry.id)  # past the ledger
    settle(reader, 3)
    expected = Books(added=10, read=8, stored=7, trimmed_unread=2, passed=2)
    assert total(client) == expected
    assert (expected.missing, ledger(client).off) == (1, [(STREAM.encode(), expected)])


def test_what_workers_trim_explains_nothing_that_is_missing(
    workshop: Workshop, client: redis.Redis
) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    old = int(entry_ids[-1].partition(b"-")[0]) + 1_001
    reader = workshop.reader(stream_retention_sec=1, wall_ms=lambda: old)
    entries = flat(read_all(reader, 10, reads=10))
    client.xack(STREAM, GROUP, *(entry.id for entry in entries[:3]))  # past the ledger
    reader.settle(outcome(entries))
    reader.upkeep()
    assert client.xlen(STREAM) == 1, "the last delivered one stays"
    found = total(client)
    assert (found.read, found.stored, found.trimmed_unread, found.missing) == (10, 7, 0, 3)


def test_a_stream_trimmed_before_the_group_existed_adds_up(workshop: Workshop, client: redis.Redis) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    client.xtrim(STREAM, minid=entry_ids[6].decode(), approximate=False)
    reader = one_at_a_time(workshop)
    assert total(client) == Books(added=10, unread=4)
    for read in (1, 2, 3, 4):
        settle(reader, 1)
        assert total(client) == Books(added=10, read=read, unread=4 - read, stored=read)
    add(client, STREAM, numbered(2))
    settle(reader, 2)
    assert total(client) == Books(added=12, read=6, stored=6)


def test_a_stream_emptied_before_the_group_existed_adds_up(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(10))
    client.xtrim(STREAM, maxlen=0, approximate=False)
    reader = one_at_a_time(workshop)
    assert total(client) == Books(added=10)
    add(client, STREAM, numbered(3))
    settle(reader, 3)
    assert total(client) == Books(added=13, read=3, stored=3)


def test_trimming_what_was_acknowledged_leaves_the_books_as_they_are(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(10))
    reader = one_at_a_time(workshop)
    settle(reader, 6)
    before = total(client)
    client.xtrim(STREAM, maxlen=4, approximate=False)
    assert total(client) == before
    settle(reader, 4)
    client.xtrim(STREAM, maxlen=0, approximate=False)
    assert total(client) == Books(added=10, read=10, stored=10)


def test_a_group_made_again_starts_new_books_and_closes_the_old(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    add(client, STREAM, numbered(6))
    reader = one_at_a_time(workshop, clock=clock)
    settle(reader, 4)
    settle(reader, 1, Fate.DEAD_LETTERED)
    client.xgroup_destroy(STREAM, GROUP)
    group_is_made(workshop)
    assert total(client) == Books(added=6, unread=6)
    settle(reader, 6, Fate.DUPLICATE)
    assert total(client) == Books(added=6, read=6, duplicate=6)
    client.xgroup_destroy(STREAM, GROUP)
    group_is_made(workshop)
    settle(reader, 2)
    assert len(reader.read()) == 1
    found = ledger(client)
    assert found.total == Books(added=6, read=3, unread=3, stored=2, pending=1)
    assert found.closed == {"stored": 4, "duplicate": 6, "dead_lettered": 1, "skipped": 0, "trimmed": 0}


def test_a_group_made_again_on_a_trimmed_stream_adds_up(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(8))
    reader = one_at_a_time(workshop, clock=Clock())
    settle(reader, 8)
    client.xtrim(STREAM, maxlen=3, approximate=False)
    client.xgroup_destroy(STREAM, GROUP)
    group_is_made(workshop)
    settle(reader, 3, Fate.DUPLICATE)
    assert total(client) == Books(added=8, read=3, duplicate=3)


def test_a_stream_made_again_starts_new_books(workshop: Workshop, client: redis.Redis) -> None:
    entry_ids = add(client, STREAM, numbered(5))
    client.xtrim(STREAM, minid=entry_ids[2].decode(), approximate=False)
    reader = one_at_a_time(workshop, clock=Clock())
    settle(reader, 3)
    client.delete(STREAM)
    add(client, STREAM, numbered(2))
    group_is_made(workshop)
    settle(reader, 2)
    found = ledger(client)
    assert found.total == Books(added=2, read=2, stored=2)
    assert found.closed["stored"] == 3


def test_a_count_that_redis_lost_is_derived(workshop: Workshop, client: redis.Redis) -> None:
    """As after a restart from an append-only file, or XGROUP SETID."""
    add(client, STREAM, numbered(10))
    reader = one_at_a_time(workshop)
    settle(reader, 3)
    assert len(reader.read()) == 1
    client.xgroup_setid(STREAM, GROUP, last_delivered(client))
    found = total(client)
    expected = Books(added=10, read=4, unread=6, stored=3, pending=1, counted=False)
    assert found == expected
    assert found.missing == 0
    settle(reader, 2)
    assert total(client) == Books(added=10, read=6, unread=4, stored=5, pending=1, counted=False)


def test_a_count_that_redis_lost_is_derived_also_where_the_group_came_after_a_trim(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(10))
    client.xtrim(STREAM, maxlen=6, approximate=False)
    reader = one_at_a_time(workshop)
    settle(reader, 2)
    client.xgroup_setid(STREAM, GROUP, last_delivered(client))
    assert total(client) == Books(added=10, read=2, unread=4, stored=2, counted=False)


def last_delivered(client: redis.Redis, stream: str = STREAM) -> str:
    (group,) = execute(client, "XINFO GROUPS", stream)
    found = dict(zip(group[::2], group[1::2], strict=True))[b"last-delivered-id"]
    assert isinstance(found, bytes)
    return found.decode()


def test_a_deleted_entry_that_was_settled_changes_nothing(workshop: Workshop, client: redis.Redis) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    reader = one_at_a_time(workshop)
    settle(reader, 4)
    client.xdel(STREAM, entry_ids[1], entry_ids[3])
    for read in (5, 6, 7, 8, 9, 10):
        settle(reader, 1)
        found = total(client)
        assert (found.read, found.unread, found.stored, found.missing) == (read, 10 - read, read, 0)


def test_a_deleted_entry_that_was_pending_is_still_pending(workshop: Workshop, client: redis.Redis) -> None:
    """Until a worker meets it: then it is trimmed."""
    (entry_id, *_) = add(client, STREAM, numbered(2))
    reader = one_at_a_time(workshop)
    assert reader.recover() == []
    assert len(flat(read_all(reader, 2, reads=3))) == 2
    client.xdel(STREAM, entry_id)
    found = total(client)
    assert (found.read, found.pending, found.missing) == (2, 2, 0)
    again = one_at_a_time(workshop)
    again.settle(outcome(again.recover()))
    assert again.recover() == []
    found = total(client)
    assert (found.read, found.stored, found.trimmed, found.pending, found.missing) == (2, 1, 1, 0, 0)


@pytest.mark.parametrize("which", [4, 6, 9], ids=["next", "middle", "last"])
def test_an_entry_deleted_unread_never_goes_unnoticed(
    workshop: Workshop, client: redis.Redis, which: int
) -> None:
    """Redis has no lag to tell then."""
    entry_ids = add(client, STREAM, numbered(10))
    reader = one_at_a_time(workshop)
    settle(reader, 4)
    client.xdel(STREAM, entry_ids[which])
    for left in range(5, 0, -1):
        found = total(client)
        assert (found.unread, found.trimmed_unread, found.missing) == (left, 1, 0)
        settle(reader, 1)
    add(client, STREAM, numbered(2))
    settle(reader, 2)
    found = total(client)
    assert (found.stored, found.unread) == (11, 0)
    assert (found.trimmed_unread, found.missing) == (1, 0)


def test_a_lost_count_shows_as_missing(workshop: Workshop, client: redis.Redis) -> None:
    for name in "abc":
        add(client, f"mqtt_stream:{name}:t", numbered(3))
    reader = workshop.reader()
    reader.settle(outcome(flat(read_all(reader, 9, reads=5))))
    assert total(client).missing == 0
    client.hincrby(LEDGER, "stored:mqtt_stream:b:t", -2)
    found = ledger(client)
    assert found.total.missing == 2
    assert [stream for stream, _ in found.off] == [b"mqtt_stream:b:t"]


def test_an_entry_acknowledged_past_the_ledger_shows_as_missing(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(3))
    entries = workshop.reader().read()
    client.xack(STREAM, GROUP, entries[0].id)
    assert total(client).missing == 1


def test_an_entry_counted_twice_shows_although_another_stream_has_lost_one(
    workshop: Workshop, client: redis.Redis
) -> None:
    """Two wrongs must not make the sum right."""
    for name in "ab":
        add(client, f"mqtt_stream:{name}:t", numbered(3))
    reader = workshop.reader()
    reader.settle(outcome(flat(read_all(reader, 6, reads=5))))
    client.hincrby(LEDGER, "stored:mqtt_stream:a:t", 1)
    client.hincrby(LEDGER, "stored:mqtt_stream:b:t", -1)
    assert [books.missing for _, books in ledger(client).off] == [-1, 1]


class Adding(redis.Redis):
    """A client before whose XRANGE somebody else adds entries: producers do not stop for the books."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "XRANGE":
            super().execute_command("XADD", STREAM, "*", "value", "late")  # type: ignore[no-untyped-call]
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def test_entries_added_while_the_books_are_read_do_not_upset_them(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(6))
    reader = one_at_a_time(workshop)
    settle(reader, 2)
    client.xgroup_setid(STREAM, GROUP, last_delivered(client))  # so that what was read is derived
    with Adding(connection_pool=client.connection_pool) as adding:
        for command, callback in client.response_callbacks.items():
            adding.set_response_callback(command, callback)
        found = read_ledger(adding, GROUP, "mqtt_stream:*", FAILED).total
    assert client.xlen(STREAM) == 7
    assert found == Books(added=6, read=2, unread=4, stored=2, counted=False)


def test_the_books_hold_at_every_moment_of_a_busy_worker(workshop: Workshop, client: redis.Redis) -> None:
    """Reading the books beside a worker never shows an entry as lost or counted twice."""
    for number in range(5):
        add(client, f"mqtt_stream:{number}:t", numbered(600))
    reader = workshop.reader(batch_size=20)
    done = threading.Event()

    def work() -> None:
        for number in range(1_000):
            entries = reader.read()
            if not entries:
                break
            reader.settle(outcome(entries, list(Fate)[number % 4]))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    looks = 0
    with redis_client.connect(workshop.url, timeout_sec=30) as other:

        def holds() -> bool:
            nonlocal looks
            looks += 1
            found = ledger(other)
            assert found.off == []
            assert found.total.read + found.total.unread == found.total.added == 3_000
            return done.is_set()

        try:
            wait_until(holds, 20)
        finally:
            thread.join(20)
    assert looks > 2
    assert (total(client).settled, total(client).missing) == (3_000, 0)


def test_a_backlog_longer_than_a_page_is_counted_whole(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipe:
        for _ in range(21_000):
            pipe.xadd(STREAM, {"v": "1"})
        pipe.execute()
    client.xgroup_create(STREAM, GROUP, "0")
    deliver(client, "one", [STREAM], count=500)
    found = total(client)
    assert (found.unread, found.read, found.pending, found.missing) == (20_500, 500, 500, 0)
