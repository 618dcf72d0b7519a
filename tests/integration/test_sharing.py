"""Streams shared out over the live workers of a group, in a real Redis."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from metrics import Stats
from redis_reader import RedisReader
from redis_scripts import Keys
from schema import Entry
from sharing import BEATS, slot_of, slots_of
from streams import LONGEST_TRUST
from tests.integration.readers import (
    GROUP,
    Clock,
    Workshop,
    deliver,
    flat,
    ids,
    make_stale,
    outcome,
    read_all,
    recover_all,
)
from tests.support import books, wait_until

ALIVE = Keys(GROUP).alive("mqtt_stream:*")
Made = Callable[..., RedisReader]


def names(count: int) -> list[str]:
    return [f"mqtt_stream:dev-{number}:t" for number in range(count)]


def fill(client: redis.Redis, streams: Sequence[str], value: str = "1") -> set[tuple[bytes, bytes]]:
    """One entry into each stream."""
    with client.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.xadd(stream, {"value": value})
        return {(stream.encode(), entry) for stream, entry in zip(streams, pipe.execute(), strict=True)}


def share(worker: str, workers: Sequence[str], streams: Sequence[str]) -> set[bytes]:
    """What should be the share of `worker`."""
    mine = slots_of(worker.encode(), [name.encode() for name in workers])
    return {stream.encode() for stream in streams if mine[slot_of(stream.encode())]}


class Crew:
    """Readers with clocks of their own, which take turns until everybody has heard of everybody."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.readers: dict[str, RedisReader] = {}
        self.clocks: dict[str, Clock] = {}

    def join(self, name: str, **options: Any) -> RedisReader:
        clock = self.clocks[name] = Clock()
        clock.now += 1e6 * len(self.clocks)  # no two processes have the same monotonic clock
        values = {"batch_size": 5_000} | options
        self.readers[name] = self._workshop.reader(name, clock=clock, **values)
        return self.readers[name]

    def beat(self, *workers: str) -> None:
        """The next sign of life of each of `workers`, or of all."""
        for name in workers or tuple(self.readers):
            self.clocks[name].now += 1.01
            self.readers[name].upkeep()

    def streams(self, name: str, client: redis.Redis, among: Sequence[str]) -> set[bytes]:
        """Which streams a worker reads: of an entry in each, those that it brings. Settles them."""
        fill(client, among)
        found = [entry for _ in range(6) for entry in self.readers[name].read()]
        self.readers[name].settle(outcome(found))
        return {entry.stream for entry in found}


@pytest.fixture
def crew(workshop: Workshop) -> Crew:
    return Crew(workshop)


def test_each_of_three_workers_reads_its_third_of_many_streams(crew: Crew, client: redis.Redis) -> None:
    streams = names(2_000)
    expected = fill(client, streams)
    workers = ["one", "two", "three"]
    for name in workers:
        crew.join(name)
    crew.beat()
    found = {name: [entry for _ in range(8) for entry in crew.readers[name].read()] for name in workers}
    assert sorted(ids(flat(found.values()))) == sorted(expected)
    for name in workers:
        assert {entry.stream for entry in found[name]} == share(name, workers, streams)
        assert 550 < len(found[name]) < 780


def test_up_to_a_number_of_streams_every_worker_reads_all(crew: Crew, client: redis.Redis) -> None:
    streams = names(64)
    fill(client, streams)
    for name in ("one", "two", "three"):
        crew.join(name)
    crew.beat()
    for name in crew.readers:
        assert crew.streams(name, client, streams) == {stream.encode() for stream in streams}


def test_so_does_everybody_where_there_are_few_streams_for_each(crew: Crew, client: redis.Redis) -> None:
    streams = names(70)
    fill(client, streams)
    workers = [f"worker-{number}" for number in range(9)]
    for name in workers:
        crew.join(name)
    crew.beat()
    assert len(crew.streams("worker-0", client, streams)) == 70
    crew.readers["worker-8"].close()
    crew.beat(*workers[:8])
    assert crew.streams("worker-0", client, streams) == share("worker-0", workers[:8], streams)


def test_a_worker_that_stops_gives_its_streams_back_at_once(crew: Crew, client: redis.Redis) -> None:
    streams = names(100)
    fill(client, streams)
    for name in ("one", "two"):
        crew.join(name, worker_timeout_sec=300.0)
    crew.clocks["one"].now += 300 / BEATS
    crew.readers["one"].upkeep()
    assert crew.streams("one", client, streams) == share("one", ["one", "two"], streams)
    crew.readers["two"].close()
    crew.clocks["one"].now += 300 / BEATS
    crew.readers["one"].upkeep()
    assert len(crew.streams("one", client, streams)) == 100


def test_the_streams_of_a_killed_worker_are_read_by_another_after_the_time_out(
    workshop: Workshop, client: redis.Redis
) -> None:
    streams = names(200)
    fill(client, streams)
    one = workshop.reader("one", worker_timeout_sec=1.0, batch_size=1_000)
    two = workshop.reader("two", worker_timeout_sec=1.0, batch_size=1_000)
    found: list[Entry] = []

    def work(*readers: RedisReader) -> bool:
        for reader in readers:
            reader.upkeep()
            entries = reader.read()
            reader.settle(outcome(entries))
            found.extend(entries)
        return len(found) >= expected

    expected = 200
    wait_until(lambda: work(one, two), 20)
    time_of_death = time.monotonic()
    fill(client, streams)  # `two` is dead from here on
    expected = 400
    wait_until(lambda: work(one), 20)
    assert time.monotonic() - time_of_death < 10
    assert max(Counter(ids(found)).values()) == 1
    total = books(client)
    assert (total.read, total.stored, total.pending) == (400, 400, 0)


def test_every_entry_is_delivered_once_while_workers_come_and_go(
    workshop: Workshop, client: redis.Redis
) -> None:
    streams = names(700)
    fill(client, streams)
    found: dict[str, list[Entry]] = {}
    stops = {name: threading.Event() for name in ("one", "two", "three", "four")}

    def work(name: str) -> None:
        reader = workshop.reader(name, worker_timeout_sec=1.0, batch_size=500, quiet_poll_sec=0.2)
        while not stops[name].is_set():
            entries = reader.recover() or reader.read()
            reader.settle(outcome(entries))
            found.setdefault(name, []).extend(entries)
            reader.upkeep()
        reader.close()

    def sees(count: int) -> None:
        wait_until(lambda: sum(map(len, list(found.values()))) >= count, 30, f"entry {count}")

    threads = {name: threading.Thread(target=work, args=(name,)) for name in stops}
    try:
        threads["one"].start()
        threads["two"].start()
        sees(700)
        threads["three"].start()
        fill(client, streams)
        sees(1_400)
        stops["one"].set()
        fill(client, streams)
        threads["four"].start()
        sees(2_100)
        stops["two"].set()
        fill(client, streams)
        sees(2_800)
        wait_until(lambda: client.hlen(ALIVE) == 2, 10)
        fill(client, streams)
        sees(3_500)
    finally:
        for stop in stops.values():
            stop.set()
        for thread in threads.values():
            if thread.ident:
                thread.join(20)
    everything = flat(found.values())
    assert max(Counter(ids(everything)).values()) == 1
    assert len(everything) == 3_500
    assert all(found.get(name) for name in stops)
    total = books(client)
    assert (total.read, total.stored, total.pending, total.missing) == (3_500, 3_500, 0, 0)
    assert client.hlen(ALIVE) == 0


def test_workers_find_each_other_again_after_a_flush(crew: Crew, client: redis.Redis) -> None:
    streams = names(100)
    fill(client, streams)
    workers = ["one", "two"]
    for name in workers:
        crew.join(name)
    crew.beat()
    client.flushall()
    fill(client, streams)
    crew.beat("one")
    assert client.hkeys(ALIVE) == [b"one"]
    crew.beat()
    crew.beat()
    assert crew.streams("one", client, streams) == share("one", workers, streams)
    assert crew.streams("two", client, streams) == share("two", workers, streams)


def test_a_sign_of_life_that_nobody_understands_counts_for_nothing(crew: Crew, client: redis.Redis) -> None:
    fill(client, names(100))
    client.hset(ALIVE, mapping={"x": "", "y": "soon", "z": "99999999999999 5", "old": "1000 "})
    crew.join("one")
    assert client.hkeys(ALIVE) == [b"one"]
    assert len(crew.streams("one", client, names(100))) == 100


def test_the_clocks_of_workers_do_not_matter(workshop: Workshop, client: redis.Redis) -> None:
    """Whether a worker lives is judged by Redis's clock alone."""
    streams = names(100)
    expected = fill(client, streams)
    early, late = Clock(), Clock()
    early.now, late.now = 5.0, 4e9
    one = workshop.reader("one", clock=early, wall_ms=lambda: 0, batch_size=500)
    two = workshop.reader("two", clock=late, wall_ms=lambda: 2**45, batch_size=500)
    early.now += 1.01
    one.upkeep()
    assert {entry.stream for _ in range(5) for entry in one.read()} == share("one", ["one", "two"], streams)
    assert len(flat(read_all(two, 100, reads=6))) == len(
        expected
        - {(stream, entry) for stream, entry in expected if stream in share("one", ["one", "two"], streams)}
    )


def test_workers_that_look_for_other_streams_share_nothing(crew: Crew, client: redis.Redis) -> None:
    fill(client, names(100))
    crew.join("one")
    crew.join("two", pattern="mqtt_stream:other*")
    crew.beat()
    assert len(crew.streams("one", client, names(100))) == 100


def test_named_streams_are_read_by_everybody(crew: Crew, client: redis.Redis) -> None:
    """A worker that has not been told of them does not read them, though they may fall to it."""
    streams = names(100)
    fill(client, streams)
    crew.join("one", named_streams=("events:a", "events:b"))
    crew.join("two")
    crew.beat()
    found = crew.streams("one", client, [*streams, "events:a", "events:b"])
    assert found >= {b"events:a", b"events:b"}
    assert found - {b"events:a", b"events:b"} == share("one", ["one", "two"], streams)


def test_an_entry_in_a_stream_that_was_quiet_for_long_is_seen_within_the_longest_time(
    crew: Crew, client: redis.Redis
) -> None:
    streams = names(3_000)
    fill(client, streams)
    reader = crew.join("one", quiet_poll_sec=2.0)
    clock = crew.clocks["one"]
    assert len(flat(read_all(reader, 3_000, reads=10))) == 3_000
    for _ in range(3):
        clock.now += 6.0
        assert [entry for _ in range(3) for entry in reader.read()] == []
    for stream in (streams[0], streams[1_700], streams[-1]):
        expected = fill(client, [stream])
        clock.now += 2.0
        assert set(ids(flat(read_all(reader, 1, reads=3)))) == expected


def test_a_stream_that_speaks_is_asked_at_every_turn(crew: Crew, client: redis.Redis) -> None:
    streams = names(3_000)
    fill(client, streams)
    reader = crew.join("one", quiet_poll_sec=60.0)
    clock = crew.clocks["one"]
    read_all(reader, 3_000, reads=10)
    for _ in range(20):
        clock.now += 6.0
        reader.read()
    fill(client, streams[:1])
    clock.now += 60.0
    assert len(flat(read_all(reader, 1, reads=3))) == 1
    for _ in range(5):
        clock.now += 0.001
        expected = fill(client, streams[:1])
        assert set(ids(reader.read())) == expected


def test_a_backlog_in_one_of_many_streams_is_read_in_full_batches(crew: Crew, client: redis.Redis) -> None:
    streams = names(1_500)
    fill(client, streams)
    reader = crew.join("one", batch_size=1_000)
    read_all(reader, 1_500, reads=20)
    for _ in range(40):
        fill(client, [streams[700]] * 100)
    crew.clocks["one"].now += 2.0
    assert [len(page) for page in read_all(reader, 4_000, reads=6)] == [1_000] * 4


def test_a_worker_has_caught_up_only_as_far_as_those_that_it_shares_with(
    crew: Crew, client: redis.Redis
) -> None:
    """Silence is told by one worker for all: what another has not read yet may be a reading."""
    streams = names(100)
    fill(client, streams)
    one, two = crew.join("one"), crew.join("two", batch_size=10)
    crew.beat()
    for _ in range(5):
        one.read()
    crew.beat("two", "one")
    assert one.caught_up_at == float("-inf"), "the other has read nothing so far"
    for _ in range(20):
        two.settle(outcome(two.read()))
    crew.beat("two", "one")
    one.read()
    at = one.caught_up_at
    assert crew.clocks["one"].now - 10 < at <= crew.clocks["one"].now
    fill(client, streams, value="backlog")
    for _ in range(3):
        crew.clocks["one"].now += 0.2
        one.read()
    assert one.caught_up_at == at, "the other has said nothing since"
    two.close()
    crew.beat("one")
    assert one.caught_up_at == at, "its streams are another's now, who has yet to read them"
    for _ in range(4):
        one.read()
        crew.beat("one")
    one.read()
    assert one.caught_up_at == crew.clocks["one"].now


def test_what_a_dead_worker_left_pending_is_claimed_by_whoever_has_the_stream_now(
    crew: Crew, client: redis.Redis
) -> None:
    streams = names(1_100)
    expected = fill(client, streams)
    for start in range(0, 1_100, 100):
        deliver(client, "dead", streams[start : start + 100])
    for stream in streams:
        make_stale(client, stream)
    for name in ("one", "two"):
        crew.join(name)
    crew.beat()
    claimed = {name: flat(recover_all(reader)) for name, reader in crew.readers.items()}
    assert sorted(ids(flat(claimed.values()))) == sorted(expected)
    for name, entries in claimed.items():
        assert {entry.stream for entry in entries} == share(name, ["one", "two"], streams)


def test_own_pending_entries_come_back_whoever_has_the_stream_now(crew: Crew, client: redis.Redis) -> None:
    streams = names(100)
    expected = fill(client, streams)
    deliver(client, "one", streams)
    crew.join("one")
    crew.join("two")
    crew.beat()
    assert sorted(ids(flat(recover_all(crew.readers["one"])))) == sorted(expected)


def searches(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"])


def test_no_search_is_made_while_redis_holds_as_many_keys_as_before(
    crew: Crew, client: redis.Redis
) -> None:
    fill(client, names(3))
    reader = crew.join("one", discovery_interval_sec=2.0)
    reader.upkeep()
    read_all(reader, 3, reads=5)
    crew.clocks["one"].now += 2.1
    reader.read()
    before = searches(client)
    for _ in range(5):
        crew.clocks["one"].now += 2.1
        assert reader.read() == []
    assert searches(client) == before
    expected = fill(client, ["mqtt_stream:new:t"])
    crew.clocks["one"].now += 2.1
    assert set(ids(flat(read_all(reader, 1, reads=3)))) == expected


def test_a_stream_that_came_as_another_key_went_is_found_some_searches_later(
    crew: Crew, client: redis.Redis
) -> None:
    fill(client, names(3))
    client.set("other", "1")
    reader = crew.join("one", discovery_interval_sec=2.0)
    read_all(reader, 3, reads=5)
    for _ in range(2):
        crew.clocks["one"].now += 2.1
        reader.read()
    client.delete("other")
    expected = fill(client, ["mqtt_stream:new:t"])
    found: list[tuple[bytes, bytes]] = []
    for _ in range(LONGEST_TRUST + 1):
        crew.clocks["one"].now += 2.1
        found += ids(reader.read())
    assert set(found) == expected


def test_a_stream_that_went_and_came_back_between_two_searches_is_found_by_the_next(
    crew: Crew, client: redis.Redis
) -> None:
    streams = names(3)
    fill(client, streams)
    reader = crew.join("one", discovery_interval_sec=2.0)
    for _ in range(3):
        crew.clocks["one"].now += 2.1
        reader.read()
    client.delete(streams[0])
    for _ in range(3):
        reader.read()  # finds it gone
    expected = fill(client, streams[:1])
    assert reader.read() == []
    crew.clocks["one"].now += 2.1
    assert set(ids(flat(read_all(reader, 1, reads=2)))) == expected


def test_trimming_many_streams_lets_new_entries_come_between(
    workshop: Workshop, client: redis.Redis
) -> None:
    streams = names(1_100)
    for stream in streams:
        for entry_id in ("5-1", "6-1"):  # the newest stays
            client.xadd(stream, {"value": "1"}, id=entry_id)
    clock = Clock()
    stats = Stats()
    reader = workshop.reader(
        clock=clock, stats=stats, batch_size=5_000, stream_retention_sec=10, wall_ms=lambda: 10**9
    )
    reader.settle(outcome(flat(read_all(reader, 2_200, reads=10))))

    def left() -> int:
        return sum(client.xlen(stream) for stream in streams)

    slow = Clock.__call__

    def passing(self: Clock) -> float:
        self.now += 0.03  # every look at the clock finds it later: each part takes long
        return slow(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "__call__", passing)
        reader.upkeep()
        assert 1_100 < left() < 2_200
        for _ in range(3):
            reader.upkeep()
    assert left() == 1_100
