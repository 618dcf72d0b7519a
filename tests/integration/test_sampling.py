"""How far behind a group is: exact where Redis knows, else told as unknown, and never twice."""

from __future__ import annotations

from time import monotonic

import redis

from redis_client import execute
from redis_scripts import Keys
from sampling import AT_ONCE, Backlog, Sampler
from sharing import Sharing
from tests.support import add

GROUP = "db_writer"


def looked(client: redis.Redis, streams: list[bytes], sharing: Sharing | None = None) -> Backlog:
    """A whole round over the part of one worker."""
    sampler = Sampler(
        client,
        Keys(GROUP),
        sharing or sharing_of(client, "one"),
        group=GROUP,
        dead_letter_stream="mqtt_stream:failed",
        clock=monotonic,
    )
    for _ in range(1 + len(streams) // AT_ONCE):
        sampler.step(streams)
    assert sampler.latest is not None
    return sampler.latest


def sharing_of(client: redis.Redis, name: str) -> Sharing:
    return Sharing(client, "sluice:alive", name, timeout_sec=60, least=64, clock=monotonic)


def made(client: redis.Redis, stream: str, entries: int, read: int = 0) -> list[bytes]:
    """A stream with entries, of which the group has read and settled some."""
    ids = add(client, stream, [{"value": str(n)} for n in range(entries)])
    execute(client, "XGROUP", "CREATE", stream, GROUP, "0", "ENTRIESREAD", 0)
    if read:
        execute(client, "XREADGROUP", "GROUP", GROUP, "c", "COUNT", read, "STREAMS", stream, ">")
    return ids


def test_unread_and_pending_entries_are_counted_over_all_streams(client: redis.Redis) -> None:
    made(client, "s:1", 10, read=4)
    made(client, "s:2", 5)
    add(client, "s:3", [{"value": "1"}])  # no worker has found it yet
    add(client, "mqtt_stream:failed", [{"error": "x"}] * 3)
    found = looked(client, [b"s:1", b"s:2", b"s:3", b"s:gone"])
    assert (found.unread, found.pending, found.unknown, found.trimmed_unread) == (12, 4, 0, 0)
    assert (found.streams, found.dead_letters) == (4, 3)
    assert 0 <= found.oldest_sec < 60


def test_the_age_is_that_of_the_oldest_entry_that_is_unread(client: redis.Redis) -> None:
    seconds, _ = client.time()
    made(client, "s:1", 3, read=3)
    assert looked(client, [b"s:1"]).oldest_sec == 0
    execute(client, "XADD", "s:2", f"{(int(seconds) - 500) * 1000}-0", "value", "1")
    execute(client, "XADD", "s:2", "*", "value", "2")
    assert 499 <= looked(client, [b"s:1", b"s:2"]).oldest_sec < 600


def test_entries_trimmed_before_they_were_read_are_lost_and_no_lag(client: redis.Redis) -> None:
    made(client, "s:1", 10, read=2)
    execute(client, "XTRIM", "s:1", "MAXLEN", "5")
    found = looked(client, [b"s:1"])
    assert (found.unread, found.trimmed_unread, found.unknown) == (5, 3, 0)
    execute(client, "XREADGROUP", "GROUP", GROUP, "c", "STREAMS", "s:1", ">")
    found = looked(client, [b"s:1"])
    assert (found.unread, found.oldest_sec) == (0, 0)


def test_a_lag_that_redis_does_not_know_is_told_as_unknown(client: redis.Redis) -> None:
    ids = made(client, "s:1", 10, read=2)
    execute(client, "XDEL", "s:1", ids[5])
    info = execute(client, "XINFO GROUPS", "s:1")[0]
    assert dict(zip(info[::2], info[1::2], strict=True))[b"lag"] is None
    found = looked(client, [b"s:1"])
    assert (found.unknown, found.unread, found.trimmed_unread) == (1, 0, 0)
    assert found.oldest_sec >= 0
    execute(client, "XREADGROUP", "GROUP", GROUP, "c", "STREAMS", "s:1", ">")
    found = looked(client, [b"s:1"])
    assert (found.unknown, found.unread) == (0, 0)


def test_what_is_no_stream_any_more_stops_nothing(client: redis.Redis) -> None:
    client.set("s:1", "text")
    client.set("mqtt_stream:failed", "text")
    found = looked(client, [b"s:1"])
    assert (found.unknown, found.dead_letters) == (1, None)


def test_the_parts_of_two_workers_add_up_however_few_streams_there_are(client: redis.Redis) -> None:
    streams = [f"s:{n}".encode() for n in range(30)]
    for stream in streams:
        made(client, stream.decode(), 2)
    add(client, "mqtt_stream:failed", [{"error": "x"}])
    one, two = sharing_of(client, "one"), sharing_of(client, "two")
    one.beat(0)
    two.beat(0)
    one.beat(0)
    assert one.share_of(streams) == streams  # both read all
    parts = [looked(client, streams, sharing) for sharing in (one, two)]
    assert [part.unread > 0 for part in parts] == [True, True]
    assert sum(part.unread for part in parts) == 60
    assert sum(part.streams for part in parts) == 30
    assert [part.dead_letters for part in parts].count(None) == 1


def test_a_round_over_many_streams_is_made_of_short_looks(client: redis.Redis) -> None:
    streams = [f"s:{n}".encode() for n in range(3 * AT_ONCE)]
    with client.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.xadd(stream, {"value": "1"})
        pipe.execute()
    sampler = Sampler(
        client,
        Keys(GROUP),
        sharing_of(client, "one"),
        group=GROUP,
        dead_letter_stream="failed",
        clock=monotonic,
    )
    began = monotonic()
    sampler.step(streams)
    took = monotonic() - began
    assert sampler.latest is None
    assert sampler.due_at > monotonic() + 50 * took  # a hundredth of the time
    sampler.step(streams)
    sampler.step(streams)
    assert sampler.latest is not None
    assert sampler.latest.unread == 3 * AT_ONCE
    assert sampler.due_at >= began + 5
