"""Entries that were delivered before: own ones, those of dead consumers, trimmed ones, and poison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

import pytest
import redis

from metrics import Stats
from redis_client import execute
from redis_reader import READ_BYTES
from redis_scripts import Keys
from schema import Entry
from standalone.servers import Valkey
from tests.faults import Proxy, proxy_to
from tests.integration.readers import (
    GROUP,
    Clock,
    Workshop,
    deliver,
    flat,
    ids,
    make_stale,
    numbered,
    outcome,
    pending,
    read_all,
    recover_all,
)
from tests.support import add, books, dead_letters, wait_until

STREAM = "mqtt_stream:d:t"


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    with proxy_to(str(valkey.socket)) as made:
        yield made


def test_own_pending_entries_of_all_streams_come_first_page_by_page(
    workshop: Workshop, client: redis.Redis
) -> None:
    before = workshop.reader(batch_size=500)
    streams = [f"mqtt_stream:{number}:t" for number in range(6)]
    expected = [
        (name.encode(), entry_id) for name in streams for entry_id in add(client, name, numbered(130))
    ]
    assert len(flat(read_all(before, 780, reads=20))) == 780
    add(client, streams[0], numbered(7))
    again = workshop.reader(batch_size=100)
    pages = recover_all(again)
    assert sorted(ids(flat(pages))) == sorted(expected), "each once, and nothing new among them"
    assert max(map(len, pages)) <= 100
    assert {entry.deliveries for entry in flat(pages)} == {2}
    assert flat(pages)[0].fields[0] == b"value"
    assert len(flat(read_all(again, 7, reads=3))) == 7
    assert (books(client).stored, books(client).pending) == (780, 7)


def test_own_pending_entries_come_once_even_with_more_streams_than_one_command_takes(
    workshop: Workshop, client: redis.Redis
) -> None:
    streams = [f"mqtt_stream:{number:03}:t" for number in range(130)]
    for stream in streams:
        add(client, stream, numbered(2))
    deliver(client, "one", streams)
    reader = workshop.reader(batch_size=50)
    assert len(set(ids(flat(recover_all(reader))))) == 260
    assert reader.recover() == []


def test_heavy_pending_entries_make_the_next_pages_smaller(workshop: Workshop, client: redis.Redis) -> None:
    for _ in range(4):
        add(client, STREAM, [{"value": b"x" * 256 * 1024}] * 50)
    deliver(client, "one", [STREAM])
    pages = recover_all(workshop.reader(batch_size=100))
    first, *later = [sum(len(part) for entry in page for part in entry.fields) for page in pages]
    assert first > 2 * READ_BYTES, "the first page cannot know"
    assert max(later) <= 2 * READ_BYTES
    assert len(flat(pages)) == 200


def test_entries_of_another_consumer_are_not_own(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(5))
    deliver(client, "two", [STREAM])
    assert workshop.reader("one").recover() == []
    assert {owner for _, owner, _, _ in pending(client, STREAM)} == {b"two"}


def test_stale_entries_are_claimed_to_the_end_in_one_sweep(workshop: Workshop, client: redis.Redis) -> None:
    streams = [STREAM, "mqtt_stream:e:t", "mqtt_stream:f:t"]
    expected = [
        (name.encode(), entry_id) for name in streams for entry_id in add(client, name, numbered(120))
    ]
    deliver(client, "dead", streams)
    for stream in streams:
        make_stale(client, stream)
    stats = Stats()
    reader = workshop.reader(
        "alive", batch_size=50, clock=Clock(), stats=stats
    )  # no second sweep falls due
    pages = recover_all(reader)
    assert sorted(ids(flat(pages))) == sorted(expected)
    assert max(map(len, pages)) <= 50
    assert {entry.deliveries for entry in flat(pages)} == {2}
    assert (stats.messages_claimed, stats.messages_written) == (360, 360)
    found = books(client)
    assert (found.stored, found.pending, found.missing) == (360, 0, 0)


def test_entries_not_pending_long_enough_are_left_to_their_consumer(
    workshop: Workshop, client: redis.Redis
) -> None:
    stale = add(client, STREAM, numbered(4))
    deliver(client, "dead", [STREAM])
    make_stale(client, STREAM, seconds=61)
    fresh = add(client, STREAM, numbered(3))
    deliver(client, "slow", [STREAM])
    reader = workshop.reader("alive", claim_min_idle_sec=60.0, clock=Clock())
    assert [entry.id for entry in flat(recover_all(reader))] == stale
    assert [(entry_id, owner) for entry_id, owner, _, _ in pending(client, STREAM)] == [
        (entry_id, b"slow") for entry_id in fresh
    ]


def test_sweeps_are_repeated_while_the_worker_runs(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    reader = workshop.reader("alive", claim_min_idle_sec=60.0, clock=clock)
    add(client, STREAM, numbered(3))
    assert reader.recover() == []
    deliver(client, "dead", [STREAM])
    clock.now += 3.0
    assert reader.read() == []  # finds the stream
    make_stale(client, STREAM)
    assert reader.recover() == [], "the next sweep is not due"
    clock.now += 30.0
    assert len(flat(recover_all(reader))) == 3


def test_idle_time_is_judged_by_redis(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    add(client, STREAM, numbered(3))
    deliver(client, "dead", [STREAM])
    reader = workshop.reader("alive", claim_min_idle_sec=0.1, clock=clock)

    found: list[Entry] = []

    def claimed() -> bool:
        clock.now += 1.0
        found.extend(reader.recover())
        return bool(found)

    wait_until(claimed, 10)
    assert len(found) == 3


def test_a_slow_worker_that_comes_back_after_its_entries_were_claimed_does_no_harm(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(10))
    slow = workshop.reader("slow")
    in_hand = slow.read()
    make_stale(client, STREAM)
    quick = workshop.reader("quick")
    assert len(flat(recover_all(quick))) == 10
    slow.settle(outcome(in_hand))
    assert slow.recover() == []
    found = books(client)
    assert (found.read, found.stored, found.missing) == (10, 10, 0)


def test_entries_stranded_by_a_lost_reply_come_back_without_waiting(
    workshop: Workshop, client: redis.Redis, proxy: Proxy
) -> None:
    entry_ids = add(client, STREAM, [{"value": "stranded"}] * 5)
    stats = Stats()
    reader = workshop.reader(
        url=f"redis://127.0.0.1:{proxy.port}/0", claim_min_idle_sec=3_600.0, stats=stats
    )
    assert reader.recover() == []
    proxy.cut_reply_when = lambda piece: proxy.cuts == 0 and b"stranded" in piece
    assert reader.read() == []
    assert (proxy.cuts, stats.errors) == (1, 1)
    pages = recover_all(reader)
    assert [entry.id for entry in flat(pages)] == entry_ids
    assert {entry.deliveries for entry in flat(pages)} == {2}
    assert (books(client).stored, books(client).pending) == (5, 0)


def test_entries_stranded_by_a_lost_reply_to_a_claim_come_back_without_waiting(
    workshop: Workshop, client: redis.Redis, proxy: Proxy
) -> None:
    entry_ids = add(client, STREAM, [{"value": "stranded"}] * 5)
    deliver(client, "dead", [STREAM])
    make_stale(client, STREAM)
    reader = workshop.reader(url=f"redis://127.0.0.1:{proxy.port}/0", claim_min_idle_sec=3_600.0)
    proxy.cut_reply_when = lambda piece: proxy.cuts == 0 and b"stranded" in piece
    assert [entry.id for entry in flat(recover_all(reader))] == entry_ids
    assert proxy.cuts == 1


def test_stranded_entries_come_back_although_another_stream_is_gone(
    workshop: Workshop, client: redis.Redis, proxy: Proxy
) -> None:
    """One missing group fails the read of all streams: the others' entries must not wait for that."""
    stranded = add(client, STREAM, [{"value": "stranded"}] * 5)
    add(client, "mqtt_stream:gone:t", numbered(1))
    reader = workshop.reader(
        url=f"redis://127.0.0.1:{proxy.port}/0", claim_min_idle_sec=3_600.0, clock=Clock()
    )
    assert reader.recover() == []
    proxy.cut_reply_when = lambda piece: proxy.cuts == 0 and b"stranded" in piece
    assert reader.read() == []
    client.delete("mqtt_stream:gone:t")
    assert [entry.id for entry in flat(recover_all(reader))] == stranded


def test_own_pending_entries_whose_data_was_trimmed_count_as_trimmed(
    workshop: Workshop, client: redis.Redis
) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    add(client, "mqtt_stream:all:t", numbered(3))
    deliver(client, "one", [STREAM, "mqtt_stream:all:t"])
    client.xtrim(STREAM, minid=entry_ids[6].decode(), approximate=False)
    client.xtrim("mqtt_stream:all:t", maxlen=0, approximate=False)
    stats = Stats()
    reader = workshop.reader(stats=stats)
    assert [entry.id for entry in flat(recover_all(reader))] == entry_ids[6:]
    found = books(client)
    assert (found.stored, found.trimmed, found.pending, found.missing) == (4, 9, 0, 0)
    assert stats.messages_trimmed == 9
    assert dead_letters(client) == []


def test_claimed_entries_whose_data_was_trimmed_count_as_trimmed(
    workshop: Workshop, client: redis.Redis
) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    deliver(client, "dead", [STREAM])
    make_stale(client, STREAM)
    client.xtrim(STREAM, minid=entry_ids[6].decode(), approximate=False)
    stats = Stats()
    reader = workshop.reader("alive", stats=stats, batch_size=3)
    assert [entry.id for entry in flat(recover_all(reader))] == entry_ids[6:]
    found = books(client)
    assert (found.stored, found.trimmed, found.pending, found.missing) == (4, 6, 0, 0)
    assert stats.messages_trimmed == 6
    assert dead_letters(client) == []


def test_a_stream_that_is_gone_does_not_end_a_sweep(workshop: Workshop, client: redis.Redis) -> None:
    streams = [f"mqtt_stream:{name}:t" for name in "abc"]
    for stream in streams:
        add(client, stream, numbered(3))
    deliver(client, "dead", streams)
    for stream in streams:
        make_stale(client, stream)
    reader = workshop.reader("alive", clock=Clock(), batch_size=3)
    assert len(reader.recover()) == 3
    client.delete(streams[1])
    assert {entry.stream for entry in reader.recover()} == {streams[2].encode()}


class Crashed(Exception):
    """The worker's process came down over an entry."""


def work(
    workshop: Workshop, bad: set[bytes], *, max_deliveries: int, batch_size: int = 100
) -> list[Sequence[Entry]]:
    """A worker's life up to its crash over a bad entry, or until nothing is left. What it had in hand."""
    reader = workshop.reader(max_deliveries=max_deliveries, batch_size=batch_size)
    hands: list[Sequence[Entry]] = []
    idle = 0
    while idle < 3:
        entries = reader.recover() or reader.read()
        if not entries:
            idle += 1
            continue
        hands.append(entries)
        if any(entry.fields[1] in bad for entry in entries):
            return hands
        reader.settle(outcome(entries))
    return [*hands, []]


def lives_of(
    workshop: Workshop, bad: set[bytes], *, max_deliveries: int, batch_size: int = 100
) -> list[list[Sequence[Entry]]]:
    """Start a worker again after each crash until one lives to see nothing left to do."""
    lives: list[list[Sequence[Entry]]] = []
    for number in count():
        assert number < 40, "the poison is never isolated"
        lives.append(work(workshop, bad, max_deliveries=max_deliveries, batch_size=batch_size))
        if lives[-1][-1] == []:
            break
    return lives


def test_an_entry_that_brings_the_worker_down_again_and_again_ends_as_poison(
    workshop: Workshop, client: redis.Redis
) -> None:
    entry_ids = add(client, STREAM, numbered(10))
    lives = lives_of(workshop, {b"5"}, max_deliveries=3)
    crashes = [life[-1] for life in lives[:-1]]
    assert [len(entries) for entries in crashes] == [10, 10, 10, 1, 1], "the last tries are alone"
    deliveries = [
        next(entry.deliveries for entry in entries if entry.fields[1] == b"5") for entries in crashes
    ]
    assert deliveries == [1, 2, 3, 4, 5]
    (letter,) = dead_letters(client)
    said = dict(zip(letter[::2], letter[1::2], strict=True))
    assert said[b"error"].startswith(b"poison: delivered 6 times")
    assert (said[b"original_id"], said[b"value"]) == (entry_ids[5], b"5")
    found = books(client)
    assert (found.stored, found.dead_lettered, found.pending, found.missing) == (9, 1, 0, 0)
    assert client.hgetall(Keys(GROUP).alone) == {}


def test_two_poisonous_entries_do_not_take_their_neighbours_with_them(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(6))
    add(client, "mqtt_stream:e:t", [{"value": "more"}] * 6)
    lives_of(workshop, {b"2", b"4"}, max_deliveries=2, batch_size=4)
    assert len(dead_letters(client)) == 2
    found = books(client)
    assert (found.stored, found.dead_lettered, found.pending, found.missing) == (10, 2, 0, 0)


def test_new_entries_are_read_while_a_poisonous_one_is_being_tried(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(1))
    for _ in range(3):
        deliver_own(client)
    add(client, STREAM, [{"value": "new"}] * 4)
    reader = workshop.reader(max_deliveries=2)
    (suspect,) = reader.recover()
    assert suspect.deliveries == 4
    reader.settle(outcome([suspect]))
    assert reader.recover() == []
    assert len(reader.read()) == 4


def deliver_own(client: redis.Redis) -> None:
    """One delivery more of everything in the stream to consumer `one`."""
    if not deliver(client, "one", [STREAM]):
        execute(client, "XREADGROUP", "GROUP", GROUP, "one", "STREAMS", STREAM, "0")


def test_an_outage_excuses_the_entry_that_was_tried_alone(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(1))
    for _ in range(4):
        deliver_own(client)
    for attempt in range(6):
        reader = workshop.reader(max_deliveries=2)
        (suspect,) = reader.recover()
        assert suspect.deliveries == 5 + attempt
        reader.during_outage()  # the writer met an outage; then the process was stopped in it
    assert dead_letters(client) == []
    (suspect,) = (reader := workshop.reader(max_deliveries=2)).recover()
    reader.settle(outcome([suspect]))
    found = books(client)
    assert (found.stored, found.dead_lettered, found.pending) == (1, 0, 0)


def test_without_an_excuse_the_same_entry_is_poison(workshop: Workshop, client: redis.Redis) -> None:
    """The counterpart of the test above, so that it cannot pass for nothing."""
    add(client, STREAM, numbered(1))
    for _ in range(4):
        deliver_own(client)
    for _ in range(2):
        assert len(workshop.reader(max_deliveries=2).recover()) == 1
    assert workshop.reader(max_deliveries=2).recover() == []
    assert len(dead_letters(client)) == 1


def test_poison_is_recognised_whichever_consumer_it_brings_down(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(3))
    hands: list[Sequence[Entry]] = []
    for number in range(8):
        reader = workshop.reader(f"worker-{number}", max_deliveries=2, claim_min_idle_sec=60.0)
        while entries := reader.recover() or reader.read():
            hands.append(entries)
            if any(entry.fields[1] == b"1" for entry in entries):
                break
            reader.settle(outcome(entries))
        make_stale(client, STREAM)
    assert [len(entries) for entries in hands if any(entry.fields[1] == b"1" for entry in entries)] == [
        3,
        3,
        1,
        1,
    ]
    found = books(client)
    assert (found.stored, found.dead_lettered, found.pending, found.missing) == (2, 1, 0, 0)


def test_a_suspect_is_tried_alone_although_redis_is_out_of_memory(
    workshop: Workshop, client: redis.Redis
) -> None:
    """Getting rid of entries is what makes room again: it must not wait for room."""
    add(client, STREAM, numbered(1))
    for _ in range(4):
        deliver_own(client)
    stats = Stats()
    reader = workshop.reader(max_deliveries=2, stats=stats)
    client.config_set("maxmemory", 1)
    try:
        workshop.stop.set()  # a call that cannot get through gives up after a second
        (suspect,) = reader.recover()
        reader.settle(outcome([suspect]))
    finally:
        client.config_set("maxmemory", 0)
    assert stats.errors == 0
    assert books(client).stored == 1


def test_an_entry_in_hand_is_not_taken_for_another_version_of_itself(
    workshop: Workshop, client: redis.Redis
) -> None:
    """A worker that recovers what it settled in vain gets exactly what is still pending."""
    add(client, STREAM, numbered(10))
    deliver(client, "one", [STREAM])
    reader = workshop.reader(batch_size=4)
    first = reader.recover()
    reader.settle(replace(outcome(first), settled=outcome(first).settled[:2]))
    reader.settle(outcome(flat(recover_all(reader))))
    assert len(pending(client, STREAM)) == 2
    assert len(flat(recover_all(workshop.reader()))) == 2
    assert books(client).stored == 10


def test_no_more_suspects_are_held_than_a_batch_holds(client: redis.Redis, workshop: Workshop) -> None:
    add(client, "mqtt_stream:d:t", [{"value": str(n)} for n in range(500)])
    deliver(client, "dead", ["mqtt_stream:d:t"])
    every = [entry_id for entry_id, *_ in pending(client, "mqtt_stream:d:t")]
    execute(
        client, "XCLAIM", "mqtt_stream:d:t", GROUP, "dead", 0, *every, "IDLE", 3_600_000, "RETRYCOUNT", 99
    )
    reader = workshop.reader("one", batch_size=50)
    assert len(reader.recover()) == 1
    assert len(reader._recovery._suspects) <= 100


def test_a_sweep_is_not_planned_anew_while_the_last_one_goes_on(
    client: redis.Redis, workshop: Workshop
) -> None:
    streams = [f"mqtt_stream:d{n}:t" for n in range(20)]
    for stream in streams:
        add(client, stream, [{"value": "1"}])
    deliver(client, "dead", streams)
    for stream in streams:
        make_stale(client, stream)
    clock = Clock()
    reader = workshop.reader("one", clock=clock, batch_size=1)
    for _ in range(10):
        reader.settle(outcome(reader.recover()))
        clock.now += 3_600
        assert len(reader._recovery._sweep) <= len(streams)
