"""Retention in Redis: what everybody has acknowledged goes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redis_client import execute
from redis_reader import RedisReader
from redis_scripts import Keys
from schema import Entry
from tests.integration.readers import FAILED, GROUP, Clock, Workshop, deliver, flat, outcome, read_all
from tests.support import books

STREAM = "mqtt_stream:d:t"
NOW_MS = 1_000_000_000
RETENTION_SEC = 1_000
OLD, NEW = NOW_MS - 1_000_001, NOW_MS - 1_000_000  # the last millisecond that goes, the first that stays


def add_at(client: redis.Redis, *entry_ids: str, stream: str = STREAM) -> None:
    for entry_id in entry_ids:
        client.xadd(stream, {"value": "1"}, id=entry_id)


def held(client: redis.Redis, stream: str = STREAM) -> list[str]:
    return [entry_id.decode() for entry_id, _ in execute(client, "XRANGE", stream, "-", "+")]


def trimmer(workshop: Workshop, consumer: str = "one", **options: Any) -> RedisReader:
    values: dict[str, Any] = {"stream_retention_sec": RETENTION_SEC, "clock": Clock()}
    return workshop.reader(consumer, wall_ms=lambda: NOW_MS, **(values | options))


def settle_all(reader: RedisReader, expected: int) -> list[Entry]:
    entries = flat(read_all(reader, expected, reads=10))
    assert len(entries) == expected
    reader.settle(outcome(entries))
    return entries


def test_acknowledged_entries_older_than_the_retention_are_trimmed(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_at(client, "5-1", f"{OLD}-0", f"{OLD}-7", f"{NEW}-0", f"{NOW_MS}-0")
    add_at(client, f"{OLD}-0", f"{NOW_MS}-0", stream="mqtt_stream:e:t")
    reader = trimmer(workshop)
    settle_all(reader, 7)
    reader.upkeep()
    assert held(client) == [f"{NEW}-0", f"{NOW_MS}-0"]
    assert held(client, "mqtt_stream:e:t") == [f"{NOW_MS}-0"]
    found = books(client)
    assert (found.added, found.read, found.stored, found.missing) == (7, 7, 7, 0)
    assert (found.trimmed, found.trimmed_unread, found.unread) == (0, 0, 0)


def test_the_books_stay_right_while_entries_come_and_go(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    reader = trimmer(workshop, clock=clock)
    for number in range(1, 6):
        add_at(client, f"{OLD}-{2 * number}", f"{OLD}-{2 * number + 1}")
        clock.now += 70.0
        settle_all(reader, 2)
        client.delete(Keys(GROUP).upkeep)
        reader.upkeep()
    assert held(client) == [f"{OLD}-11"], "the last delivered one stays"
    found = books(client)
    assert (found.added, found.read, found.stored, found.unread) == (10, 10, 10, 0)
    assert (found.missing, found.trimmed_unread, found.counted) == (0, 0, True)


def test_a_pending_entry_is_never_trimmed_nor_what_follows_it(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_at(client, "1-0", "2-0", "3-0", "4-0", "5-0")
    reader = trimmer(workshop)
    entries = reader.read()
    reader.settle(outcome([entry for entry in entries if entry.id != b"3-0"]))
    reader.upkeep()
    assert held(client) == ["3-0", "4-0", "5-0"]


@pytest.mark.parametrize(
    ("first", "pending"),
    [("5-9", "5-10"), ("999-0", "1000-0"), ("9-18446744073709551615", "10-0"), ("5-99", "5-100")],
)
def test_ids_are_compared_as_numbers(
    workshop: Workshop, client: redis.Redis, first: str, pending: str
) -> None:
    add_at(client, first, pending)
    reader = trimmer(workshop)
    reader.settle(outcome([entry for entry in reader.read() if entry.id == first.encode()]))
    reader.upkeep()
    assert held(client) == [pending]


def test_the_entry_at_the_edge_of_the_retention_is_compared_as_a_number(
    workshop: Workshop, client: redis.Redis
) -> None:
    """The oldest to keep has fewer digits than the oldest pending one."""
    add_at(client, "80000-0", "99999-0", "100000-0", "100001-0")
    reader = workshop.reader(clock=Clock(), wall_ms=lambda: 190_000, stream_retention_sec=100)
    entries = reader.read()
    reader.settle(outcome(entries[:3]))
    reader.upkeep()
    assert held(client) == ["99999-0", "100000-0", "100001-0"]


def test_an_unread_entry_is_never_trimmed(workshop: Workshop, client: redis.Redis) -> None:
    add_at(client, "1-0", "2-0")
    reader = trimmer(workshop)
    settle_all(reader, 2)
    add_at(client, "3-0", "4-0")
    reader.upkeep()
    assert held(client) == ["2-0", "3-0", "4-0"]
    assert len(settle_all(reader, 2)) == 2


@pytest.mark.parametrize("acknowledged", [True, False], ids=["read", "pending"])
def test_entries_that_another_group_still_needs_are_kept(
    workshop: Workshop, client: redis.Redis, acknowledged: bool
) -> None:
    """The other group has read two entries of six, and perhaps acknowledged them."""
    add_at(client, "1-0", "2-0", "3-0", "4-0", "5-0", "6-0")
    client.xgroup_create(STREAM, "archive", "0")
    execute(client, "XREADGROUP", "GROUP", "archive", "a", "COUNT", 3, "STREAMS", STREAM, ">")
    client.xack(STREAM, "archive", "1-0", "3-0", *(["2-0"] if acknowledged else []))
    reader = trimmer(workshop)
    settle_all(reader, 6)
    reader.upkeep()
    assert held(client)[0] == ("3-0" if acknowledged else "2-0")
    assert held(client)[-4:] == ["3-0", "4-0", "5-0", "6-0"]


def test_the_group_that_is_furthest_behind_is_found_by_number(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_at(client, "5-8", "5-9", "5-10", "5-11")
    client.xgroup_create(STREAM, "archive", "0")
    execute(client, "XREADGROUP", "GROUP", "archive", "a", "COUNT", 2, "STREAMS", STREAM, ">")
    client.xack(STREAM, "archive", "5-8")
    reader = trimmer(workshop)
    entries = reader.read()
    reader.settle(outcome(entries[:2]))
    reader.upkeep()
    assert held(client) == ["5-9", "5-10", "5-11"]


def test_nothing_is_trimmed_under_a_group_that_has_read_nothing(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_at(client, "1-0", "2-0", "3-0")
    client.xgroup_create(STREAM, "archive", "0")
    reader = trimmer(workshop)
    settle_all(reader, 3)
    reader.upkeep()
    assert held(client) == ["1-0", "2-0", "3-0"]


def test_a_stream_without_any_group_is_left_alone(workshop: Workshop, client: redis.Redis) -> None:
    add_at(client, "1-0", "2-0", "3-0")
    reader = trimmer(workshop)
    settle_all(reader, 3)
    client.xgroup_destroy(STREAM, GROUP)
    reader.upkeep()
    assert held(client) == ["1-0", "2-0", "3-0"]


def test_streams_that_are_gone_or_of_another_type_do_not_keep_the_others_from_being_trimmed(
    workshop: Workshop, client: redis.Redis
) -> None:
    for name in "abc":
        add_at(client, "1-0", "2-0", f"{NOW_MS}-0", stream=f"mqtt_stream:{name}:t")
    reader = trimmer(workshop)
    settle_all(reader, 9)
    client.delete("mqtt_stream:a:t", "mqtt_stream:b:t")
    client.set("mqtt_stream:b:t", "a string")
    reader.upkeep()
    assert held(client, "mqtt_stream:c:t") == [f"{NOW_MS}-0"]


def test_a_retention_of_zero_leaves_trimming_to_others(workshop: Workshop, client: redis.Redis) -> None:
    add_at(client, "1-0", "2-0", f"{NOW_MS}-0")
    clock = Clock()
    reader = trimmer(workshop, stream_retention_sec=0, clock=clock)
    settle_all(reader, 3)
    clock.now += 1_000.0
    reader.upkeep()
    assert held(client) == ["1-0", "2-0", f"{NOW_MS}-0"]


def test_a_retention_longer_than_time_itself_trims_nothing(workshop: Workshop, client: redis.Redis) -> None:
    add_at(client, "1-0", f"{NOW_MS}-0")
    reader = trimmer(workshop, stream_retention_sec=NOW_MS)
    settle_all(reader, 2)
    reader.upkeep()
    assert held(client) == ["1-0", f"{NOW_MS}-0"]


def test_only_one_worker_trims_at_a_time(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    first = trimmer(workshop, "first", clock=clock)
    first.upkeep()  # it is the one that trims now
    add_at(client, "1-0", f"{NOW_MS}-0")
    second = trimmer(workshop, "second", clock=clock)
    settle_all(second, 2)
    second.upkeep()
    assert held(client) == ["1-0", f"{NOW_MS}-0"]
    clock.now += 70.0
    assert first.read() == []  # finds the stream
    first.upkeep()
    assert held(client) == [f"{NOW_MS}-0"]


def test_another_worker_trims_once_the_one_that_did_is_gone(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    trimmer(workshop, "first", clock=clock).upkeep()
    add_at(client, "1-0", f"{NOW_MS}-0")
    second = trimmer(workshop, "second", clock=clock)
    settle_all(second, 2)
    assert 0 < client.pttl(Keys(GROUP).upkeep) <= 15_000
    client.delete(Keys(GROUP).upkeep)  # its time ran out
    second.upkeep()
    assert held(client) == [f"{NOW_MS}-0"]


def test_trimming_waits_for_its_turn(workshop: Workshop, client: redis.Redis) -> None:
    clock = Clock()
    reader = trimmer(workshop, clock=clock)
    reader.upkeep()
    add_at(client, "1-0", f"{NOW_MS}-0")
    clock.now += 59.0
    settle_all(reader, 2)
    reader.upkeep()
    assert len(held(client)) == 2
    clock.now += 2.0
    reader.upkeep()
    assert len(held(client)) == 1


def test_pending_entries_of_a_dead_consumer_keep_their_data_until_they_are_claimed(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_at(client, "1-0", "2-0", "3-0")
    deliver(client, "dead", [STREAM], count=2)
    clock = Clock()
    reader = trimmer(workshop, clock=clock, claim_min_idle_sec=0.0)
    settle_all(reader, 1)
    reader.upkeep()
    assert held(client) == ["1-0", "2-0", "3-0"]
    reader.settle(outcome(reader.recover()))
    clock.now += 70.0
    reader.upkeep()
    assert held(client) == ["3-0"]


def test_dead_letters_go_by_their_age_and_never_by_their_number(
    workshop: Workshop, client: redis.Redis
) -> None:
    """More than one command removes, and than a node of the stream holds (100 entries)."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(1, 10_251):
            pipe.xadd(FAILED, {"n": number}, id=f"{number}-0")
        for entry_id in (f"{OLD}-5", f"{NEW}-0", f"{NOW_MS}-0"):
            pipe.xadd(FAILED, {"n": 0}, id=entry_id)
        pipe.execute()
    kept = trimmer(workshop, stream_retention_sec=0)
    kept.upkeep()
    assert client.xlen(FAILED) == 10_253
    reader = trimmer(workshop, stream_retention_sec=0, dead_letter_retention_sec=RETENTION_SEC)
    for _ in range(4):
        reader.upkeep()
    assert held(client, FAILED) == [f"{NEW}-0", f"{NOW_MS}-0"]


def test_a_dead_letter_stream_of_another_type_holds_up_no_reading(
    workshop: Workshop, client: redis.Redis
) -> None:
    client.set(FAILED, "no stream")
    add_at(client, f"{NOW_MS}-0")
    reader = trimmer(workshop, dead_letter_retention_sec=RETENTION_SEC)
    reader.upkeep()
    settle_all(reader, 1)
