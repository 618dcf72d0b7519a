"""New entries: which streams are read, how much one read brings, and what is mended on the way."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest
import redis

from metrics import Stats
from redis_client import execute
from redis_reader import READ_BYTES
from standalone.servers import Valkey
from tests.faults import proxy_to
from tests.integration.readers import (
    FAILED,
    GROUP,
    Clock,
    Workshop,
    flat,
    ids,
    numbered,
    outcome,
    read_all,
)
from tests.support import add, books, wait_until


def test_the_dead_letter_stream_and_keys_of_other_types_are_left_out(
    workshop: Workshop, client: redis.Redis
) -> None:
    (wanted,) = add(client, "mqtt_stream:d:t", numbered(1))
    add(client, FAILED, numbered(3))
    add(client, "other:d:t", numbered(3))
    client.set("mqtt_stream:a:string", "x")
    client.hset("mqtt_stream:a:hash", "value", "1")
    client.rpush("mqtt_stream:a:list", "x")
    reader = workshop.reader()
    found = flat(reader.read() for _ in range(5))
    assert ids(found) == [(b"mqtt_stream:d:t", wanted)]
    assert found[0].fields == [b"value", b"0"]
    assert execute(client, "XINFO GROUPS", FAILED) == []
    assert execute(client, "XINFO GROUPS", "other:d:t") == []


def test_a_new_stream_is_found_once_the_next_search_is_due(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    reader = workshop.reader(clock=clock, discovery_interval_sec=2.0)
    assert reader.read() == []
    (entry_id,) = add(client, "mqtt_stream:new:t", numbered(1))
    clock.now += 1.9
    assert reader.read() == []
    clock.now += 0.2
    assert ids(reader.read()) == [(b"mqtt_stream:new:t", entry_id)]


def test_a_stream_with_a_history_is_read_from_its_first_entry(
    workshop: Workshop, client: redis.Redis
) -> None:
    entry_ids = add(client, "mqtt_stream:d:t", numbered(30))
    assert [entry.id for entry in workshop.reader().read()] == entry_ids


@pytest.mark.parametrize("streams", [1, 2, 3, 7, 33, 64, 99, 100, 101, 130, 250])
def test_one_read_never_exceeds_the_budget_and_nothing_is_left_out(
    workshop: Workshop, client: redis.Redis, streams: int
) -> None:
    expected: list[tuple[bytes, bytes]] = []
    for number in range(streams):
        stream = f"mqtt_stream:{number}:t"
        backlog = 1_200 // streams if number % 3 else 2
        expected += [(stream.encode(), entry_id) for entry_id in add(client, stream, numbered(backlog))]
    pages = read_all(workshop.reader(batch_size=100), len(expected), reads=200)
    assert max(map(len, pages)) <= 100
    assert sorted(ids(flat(pages))) == sorted(expected)


def test_a_read_from_a_single_busy_stream_is_full(workshop: Workshop, client: redis.Redis) -> None:
    """What the quiet streams leave of their share, the busy one gets."""
    for number in range(9):
        add(client, f"mqtt_stream:quiet{number}:t", numbered(1))
    add(client, "mqtt_stream:busy:t", numbered(1_000))
    assert len(workshop.reader(batch_size=100).read()) == 100


def test_a_quiet_stream_is_not_starved_by_a_busy_one(workshop: Workshop, client: redis.Redis) -> None:
    add(client, "mqtt_stream:a:busy", numbered(5_000))
    add(client, "mqtt_stream:b:quiet", numbered(1))
    reader = workshop.reader(batch_size=100)
    assert b"mqtt_stream:b:quiet" in {entry.stream for entry in reader.read()}
    for number in range(5):
        add(client, "mqtt_stream:b:quiet", [{"value": str(number)}])
        entries = reader.read()
        assert b"mqtt_stream:b:quiet" in {entry.stream for entry in entries}, number
        assert len(entries) > 50, "the busy stream goes on meanwhile"


def test_every_stream_has_its_turn_when_there_are_more_than_one_read_can_take(
    workshop: Workshop, client: redis.Redis
) -> None:
    for number in range(350):
        add(client, f"mqtt_stream:{number:03}:t", numbered(10))
    reader = workshop.reader(batch_size=100, discovery_interval_sec=60.0)
    turns = Counter(entry.stream for _ in range(7) for entry in reader.read())
    assert len(turns) == 350
    assert max(turns.values()) <= 3


def test_more_than_500_streams_are_polled_in_chunks_without_blocking(
    workshop: Workshop, client: redis.Redis, valkey: Valkey
) -> None:
    streams = [f"mqtt_stream:{number:04}:t" for number in range(1_203)]
    with client.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.xadd(stream, {"value": "1"})
        pipe.execute()
    sent: list[bytes] = []

    def overhear(piece: bytes) -> bool:
        sent.append(piece)
        return False

    with proxy_to(str(valkey.socket)) as proxy:
        proxy.cut_when = overhear
        reader = workshop.reader(
            url=f"redis://127.0.0.1:{proxy.port}/0", discovery_interval_sec=60.0, batch_size=5_000
        )
        pages = read_all(reader, 1_203, reads=40)
        assert {entry.stream.decode() for entry in flat(pages)} == set(streams)
        assert reader.read() == []
        (late,) = add(client, streams[-1], [{"value": "late"}])
        assert ids(flat(read_all(reader, 1, reads=14))) == [(streams[-1].encode(), late)]
    commands = b"".join(sent)
    words = [int(count) for count in re.findall(rb"\*(\d+)\r\n\$10\r\nXREADGROUP\r\n", commands)]
    assert words
    assert max(words) <= 7 + 2 * 500, "a command names at most 500 streams"
    assert b"\r\nBLOCK\r\n" not in commands


def test_a_quiet_worker_with_few_streams_blocks_instead_of_polling(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, "mqtt_stream:d:t", numbered(1))
    reader = workshop.reader(block_sec=20.0, discovery_interval_sec=60.0)
    assert len(reader.read()) == 1
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(reader.read())))
    thread.start()
    try:
        wait_until(lambda: client.info("clients")["blocked_clients"] == 1, 10)
    finally:
        add(client, "mqtt_stream:d:t", numbered(1))
        thread.join(10)
    assert found == [1]


def test_heavy_entries_make_reads_smaller_and_light_ones_let_them_grow_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    heavy = {"value": b"x" * 256 * 1024}
    for _ in range(4):
        add(client, "mqtt_stream:d:t", [heavy] * 50)
    reader = workshop.reader(batch_size=100)
    pages = read_all(reader, 200, reads=50)
    first, *later = [sum(len(part) for entry in page for part in entry.fields) for page in pages]
    assert first > 2 * READ_BYTES, "the first read cannot know"
    assert max(later) <= 2 * READ_BYTES
    assert sorted(later)[len(later) // 2] <= 1.1 * READ_BYTES, "reads double only to find out"
    add(client, "mqtt_stream:d:t", numbered(1_000))
    sizes = [len(page) for page in read_all(reader, 1_000, reads=30)]
    assert sum(sizes) == 1_000
    assert max(sizes) == 100


def test_entries_with_many_readings_make_reads_smaller(workshop: Workshop, client: redis.Redis) -> None:
    """BATCH_SIZE is in readings: entries of fifty readings each must come fewer at a time."""
    add(client, "mqtt_stream:d:t", numbered(2_000))
    reader = workshop.reader(batch_size=500)
    for _ in range(8):
        entries = reader.read()
        answer = outcome(entries)
        reader.settle(
            type(answer)(answer.settled, readings_stored=50 * len(entries)),
        )
    assert 5 <= len(reader.read()) <= 12


@pytest.mark.parametrize("streams", [1, 3])
def test_a_batch_size_of_one_reads_one_entry_at_a_time(
    workshop: Workshop, client: redis.Redis, streams: int
) -> None:
    for number in range(streams):
        add(client, f"mqtt_stream:{number}:t", numbered(5))
    pages = read_all(workshop.reader(batch_size=1), 5 * streams, reads=100)
    assert [len(page) for page in pages] == [1] * (5 * streams)
    assert len(set(ids(flat(pages)))) == 5 * streams
    assert len({entry.stream for entry in flat(pages[:streams])}) == streams, "each stream in its turn"


def test_a_destroyed_group_is_made_again_from_the_first_entry(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()  # it stands still: no search for streams comes to the rescue
    old = add(client, "mqtt_stream:a:t", numbered(20))
    add(client, "mqtt_stream:b:t", numbered(3))
    reader = workshop.reader(clock=clock)
    reader.settle(outcome(flat(read_all(reader, 23, reads=10))))
    client.xgroup_destroy("mqtt_stream:a:t", GROUP)
    new = add(client, "mqtt_stream:a:t", numbered(5))
    also = add(client, "mqtt_stream:b:t", numbered(1))
    found = flat(read_all(reader, 26, reads=5))
    assert [entry.id for entry in found if entry.stream == b"mqtt_stream:a:t"] == old + new
    assert [entry.id for entry in found if entry.stream == b"mqtt_stream:b:t"] == also


def test_a_group_destroyed_under_a_blocked_read_is_made_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    (entry_id,) = add(client, "mqtt_stream:d:t", numbered(1))
    reader = workshop.reader(block_sec=20.0, discovery_interval_sec=60.0)
    reader.settle(outcome(reader.read()))
    found: list[tuple[bytes, bytes]] = []
    thread = threading.Thread(target=lambda: found.extend(ids(flat(read_all(reader, 1, reads=3)))))
    thread.start()
    try:
        wait_until(lambda: client.info("clients")["blocked_clients"] == 1, 10)
    finally:
        client.xgroup_destroy("mqtt_stream:d:t", GROUP)
        thread.join(10)
    assert found == [(b"mqtt_stream:d:t", entry_id)]


def test_reading_goes_on_after_a_flush(workshop: Workshop, client: redis.Redis) -> None:
    for name in "abc":
        add(client, f"mqtt_stream:{name}:t", numbered(10))
    reader = workshop.reader(clock=Clock())
    reader.settle(outcome(flat(read_all(reader, 30, reads=10))))
    client.flushall()
    (entry_id,) = add(client, "mqtt_stream:b:t", numbered(1))
    found = flat(read_all(reader, 1, reads=4))
    assert ids(found) == [(b"mqtt_stream:b:t", entry_id)]
    reader.settle(outcome(found))
    assert (books(client).read, books(client).stored, books(client).missing) == (1, 1, 0)


def test_a_stream_made_again_with_the_same_entry_ids_is_read_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, "mqtt_stream:other:t", numbered(1))
    for number in (1, 2, 3):
        client.xadd("mqtt_stream:d:t", {"value": "old"}, id=f"{number}-0")
    reader = workshop.reader(clock=Clock())
    reader.settle(outcome(flat(read_all(reader, 4, reads=10))))
    client.delete("mqtt_stream:d:t")
    for number in (1, 2):
        client.xadd("mqtt_stream:d:t", {"value": "new"}, id=f"{number}-0")
    found = flat(read_all(reader, 2, reads=4))
    assert [(entry.id, entry.fields[1]) for entry in found] == [(b"1-0", b"new"), (b"2-0", b"new")]


def test_a_key_that_becomes_another_type_is_left_alone_until_it_is_a_stream_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    for name in ("changing", "steady"):
        add(client, f"mqtt_stream:{name}:t", numbered(1))
    reader = workshop.reader(clock=clock, discovery_interval_sec=2.0)
    reader.settle(outcome(flat(read_all(reader, 2, reads=10))))
    client.delete("mqtt_stream:changing:t")
    client.set("mqtt_stream:changing:t", "a string")
    (steady,) = add(client, "mqtt_stream:steady:t", numbered(1))
    assert ids(flat(read_all(reader, 1, reads=4))) == [(b"mqtt_stream:steady:t", steady)]
    client.delete("mqtt_stream:changing:t")
    (back,) = add(client, "mqtt_stream:changing:t", numbered(1))
    clock.now += 2.1
    assert ids(flat(read_all(reader, 1, reads=4))) == [(b"mqtt_stream:changing:t", back)]


def test_a_new_stream_waits_until_redis_takes_writes_again(workshop: Workshop, client: redis.Redis) -> None:
    """NOREPLICAS as the answer to a pipeline, which words its errors in its own way."""
    stats = Stats()
    reader = workshop.reader(stats=stats)
    add(client, "mqtt_stream:d:t", numbered(1))
    client.config_set("min-replicas-to-write", 1)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(flat(read_all(reader, 1, reads=100)))))
    thread.start()
    try:
        wait_until(lambda: stats.errors >= 2 or not thread.is_alive(), 10)
        assert thread.is_alive()
    finally:
        client.config_set("min-replicas-to-write", 0)
        thread.join(20)
    assert found == [1]


def test_a_stop_ends_an_idle_read_at_once(workshop: Workshop, client: redis.Redis) -> None:
    reader = workshop.reader(block_sec=20.0, discovery_interval_sec=60.0)
    thread = threading.Thread(target=reader.read)
    thread.start()
    workshop.stop.set()
    thread.join(15)
    assert not thread.is_alive()


def test_a_reader_is_caught_up_from_its_first_read_on_and_as_far_as_it_has_asked(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    add(client, "mqtt_stream:d:t", [{"value": "1"}] * 15)
    reader = workshop.reader(clock=clock, batch_size=10, block_sec=0.02, discovery_interval_sec=3600)
    assert reader.caught_up_at == -inf
    assert len(reader.read()) == 10
    assert reader.caught_up_at == -inf
    began = clock.now
    assert len(reader.read()) == 5
    assert reader.caught_up_at == began
    clock.now += 5
    assert reader.read() == []
    assert reader.caught_up_at == began + 5
    execute_command: Callable[..., Any] = redis.Redis.execute_command
    clock.now += 5

    def answered_late(*arguments: Any, **options: Any) -> Any:
        reply = execute_command(*arguments, **options)
        clock.now += 60  # as if this process had been stopped after the server answered
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.Redis, "execute_command", answered_late)
        assert reader.read() == []
    assert began + 10 <= reader.caught_up_at <= began + 10.1


def add_at_once(client: redis.Redis, stream: str, entries: Sequence[dict[str, str]]) -> list[bytes]:
    """In one MULTI, so that a blocked reader wakes up to all of them."""
    with client.pipeline(transaction=True) as pipe:
        for fields in entries:
            pipe.xadd(stream, dict(fields))  # type: ignore[arg-type]
        return pipe.execute()


def test_a_blocked_read_that_came_back_full_says_nothing_of_what_is_left(
    workshop: Workshop, client: redis.Redis
) -> None:
    for name in ("a", "b"):
        add(client, f"mqtt_stream:{name}:t", [{"value": "1"}])
    reader = workshop.reader(batch_size=10, block_sec=5, discovery_interval_sec=3600)
    assert len(reader.read()) == 2
    assert reader.read(until=time.monotonic()) == []  # so that the next one blocks at once
    before = reader.caught_up_at
    added: list[list[bytes]] = []
    fields = [{"value": "1"}] * 8  # five is the share of a stream
    adding = threading.Timer(0.2, lambda: added.append(add_at_once(client, "mqtt_stream:a:t", fields)))
    adding.start()
    found = reader.read()
    adding.join()
    assert (len(added[0]), len(found)) == (8, 5)
    assert reader.caught_up_at == before
    assert len(reader.read()) == 3
    assert reader.caught_up_at > before
