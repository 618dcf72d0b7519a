"""Reading the next batch while one is written: nothing lost, nothing twice, whatever breaks in between."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis
from structlog.testing import capture_logs

from metrics import Stats
from redis_reader import RedisReader
from schema import Entry, Fate
from standalone.servers import Valkey
from tests.faults import proxy_to
from tests.integration.readers import GROUP, Clock, Workshop, ids, outcome
from tests.support import add, books, wait_until

STREAMS = [f"mqtt_stream:d{number}:t" for number in range(5)]
OPTIONS: dict[str, Any] = {"batch_size": 50, "discovery_interval_sec": 60.0}


def fill(client: redis.Redis, entries: int) -> None:
    """As many entries in each stream."""
    for stream in STREAMS:
        add(client, stream, [{"value": str(number)} for number in range(entries)])


def drain(
    reader: RedisReader,
    wanted: int,
    between: Callable[[str], None] = lambda _: None,
    fate: Fate = Fate.STORED,
) -> list[Entry]:
    """What a worker's loop does, until `wanted` different entries were settled; all that it got."""
    found: list[Entry] = []
    for _ in range(1_000):
        entries: Sequence[Entry] = reader.recover() or reader.read()
        if entries:
            reader.read_ahead()
            between("ahead")
            found += entries
            reader.settle(outcome(entries, fate))
            between("settled")
        reader.upkeep()
        if len(set(ids(found))) >= wanted and not reader.has_more:
            break
    reader.finish()
    return found


def killed(client: redis.Redis, reader_name: str) -> None:
    """Cut every connection of a reader, as a network does that forgets them."""
    for connection in client.client_list():
        if connection["name"] == reader_name:
            client.client_kill_filter(_id=connection["id"])


def check(client: redis.Redis, entries: int, fate: str = "stored") -> None:
    found = books(client)
    assert (found.read, getattr(found, fate), found.pending, found.missing) == (entries, entries, 0, 0)


def test_a_backlog_is_read_ahead_and_each_entry_settled_once(
    workshop: Workshop, client: redis.Redis
) -> None:
    fill(client, 200)
    stats = Stats()
    reader = workshop.reader(stats=stats, **OPTIONS)
    ahead = 0

    def count(step: str) -> None:
        nonlocal ahead
        ahead += step == "ahead" and reader.has_more

    found = drain(reader, 1_000, count)
    assert ahead > 5
    assert len(ids(found)) == len(set(ids(found))) == 1_000
    assert (stats.messages_read, stats.messages_written) == (1_000, 1_000)
    check(client, 1_000)


def test_each_stream_keeps_its_order(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 100)
    add(client, STREAMS[0], [{"value": str(number)} for number in range(400)])
    found = drain(workshop.reader(**OPTIONS), 900)
    for stream in STREAMS:
        mine = [entry.id for entry in found if entry.stream == stream.encode()]
        assert mine == sorted(mine, key=lambda entry_id: tuple(map(int, entry_id.split(b"-"))))


def test_a_stream_with_a_backlog_among_quiet_ones_gets_their_share(
    workshop: Workshop, client: redis.Redis
) -> None:
    fill(client, 1)
    add(client, STREAMS[0], [{"value": str(number)} for number in range(1_000)])
    reader = workshop.reader(**OPTIONS)
    sizes: list[int] = []
    while entries := reader.read():
        reader.read_ahead()
        sizes.append(len(entries))
        reader.settle(outcome(entries))
    assert sum(sizes) == 1_005
    assert len(sizes) < 60, "a batch of 50 is filled by the one stream that has more"


def test_nothing_is_read_ahead_without_a_backlog(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 1)
    reader = workshop.reader(**OPTIONS)
    entries = reader.read()
    reader.read_ahead()
    assert len(entries) == 5
    assert not reader.has_more


def test_nothing_is_read_ahead_at_a_stop(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    assert reader.recover() == []
    entries = reader.read()
    workshop.stop.set()
    reader.read_ahead()
    assert not reader.has_more
    reader.settle(outcome(entries))
    assert books(client).pending == 0


def test_what_was_read_ahead_at_a_stop_is_finished(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    assert reader.recover() == []
    first = reader.read()
    reader.read_ahead()
    assert reader.has_more
    workshop.stop.set()
    reader.settle(outcome(first))
    reader.settle(outcome(reader.read()))
    reader.finish()
    assert not reader.has_more
    assert books(client).pending == 0


def test_stale_entries_of_others_are_claimed_under_a_backlog(
    workshop: Workshop, client: redis.Redis
) -> None:
    fill(client, 20)
    clock = Clock()
    dead = workshop.reader("dead", clock=clock, **OPTIONS)
    stranded = dead.read()
    fill(client, 400)
    reader = workshop.reader("alive", clock=clock, claim_min_idle_sec=0.0, **OPTIONS)

    def pass_time(_: str) -> None:
        clock.now += 0.05

    found = drain(reader, 2_100, pass_time)
    place = max(ids(found).index(one) for one in ids(stranded))
    assert place < 1_500, "not only once the backlog is gone"
    check(client, 2_100)


def test_connections_cut_at_any_moment_lose_nothing(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    rng = random.Random(5)

    def cut(_: str) -> None:
        if rng.random() < 0.3:
            killed(client, "one")

    drain(reader, 1_000, cut)
    check(client, 1_000)


def test_lost_replies_lose_nothing(valkey: Valkey, client: redis.Redis) -> None:
    fill(client, 200)
    rng = random.Random(7)
    with proxy_to(str(valkey.socket)) as proxy:
        workshop = Workshop(f"redis://127.0.0.1:{proxy.port}/0")
        reader = workshop.reader(**OPTIONS)
        proxy.cut_reply_when = lambda _: rng.random() < 0.1
        drain(reader, 1_000)
        proxy.cut_reply_when = lambda _: False
        assert proxy.cuts > 5
        workshop.close()
    check(client, 1_000)


def test_scripts_flushed_under_way_settle_once(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    drain(reader, 1_000, lambda _: [client.script_flush()].clear())
    check(client, 1_000)


def test_a_redis_that_takes_no_writes_for_a_while_loses_nothing(
    workshop: Workshop, client: redis.Redis
) -> None:
    """As after a failover, for whoever is still connected to the old master."""
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    steps = 0

    def demote(step: str) -> None:
        nonlocal steps
        steps += 1
        if steps in (5, 12, 20):
            client.slaveof("127.0.0.1", 1)
            threading.Timer(0.2, client.slaveof).start()

    drain(reader, 1_000, demote)
    wait_until(lambda: client.info("replication")["role"] == "master")
    check(client, 1_000)


def test_a_group_that_goes_under_way_is_made_again(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    left = [3]

    def destroy(step: str) -> None:
        if step == "settled" and left[0]:
            left[0] -= 1
            client.xgroup_destroy(STREAMS[1], GROUP)

    drain(reader, 1_000, destroy)
    while entries := reader.recover() or reader.read():
        reader.settle(outcome(entries))
    assert books(client).pending == 0
    assert books(client).missing == 0


def test_dead_letters_under_a_backlog_are_added_once(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 100)
    reader = workshop.reader(**OPTIONS)
    drain(
        reader, 500, lambda step: killed(client, "one") if step == "settled" else None, Fate.DEAD_LETTERED
    )
    check(client, 500, "dead_lettered")
    assert client.xlen("mqtt_stream:failed") == 500


def test_a_stream_that_had_more_than_was_read_ahead_is_not_called_caught_up(
    workshop: Workshop, client: redis.Redis
) -> None:
    """One stream fills its share while the batch as a whole stays below the budget."""
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    while not reader.has_more:
        reader.settle(outcome(reader.recover() or reader.read()))
        reader.read_ahead()
    before = reader.caught_up_at
    add(client, STREAMS[0], [{"value": "1"}] * 500)
    for _ in range(100):
        entries = reader.recover() or reader.read()
        reader.read_ahead()
        reader.settle(outcome(entries))
        left = books(client).unread
        assert not left or reader.caught_up_at == before, f"{left} entries are unread"
        if not left and not reader.has_more:
            break
    reader.finish()
    assert list(reader.recover() or reader.read()) == []
    assert reader.caught_up_at > before


def test_a_server_that_hung_up_while_nothing_was_due_is_no_outage(
    workshop: Workshop, client: redis.Redis
) -> None:
    """As with `timeout` in redis.conf, or a firewall that forgets idle connections."""
    fill(client, 200)
    reader = workshop.reader(**OPTIONS)
    drain(reader, 1_000)
    killed(client, "one")
    fill(client, 200)
    with capture_logs() as logs:
        drain(reader, 1_000)
    assert not [log for log in logs if log["event"] == "outage_began"]
    check(client, 2_000)
