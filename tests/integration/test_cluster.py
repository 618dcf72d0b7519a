"""A Redis Cluster of three real nodes: reading, settling and dead letters across slots."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

import redis_client
from cluster_keys import ClusterKeys, keys_of
from cluster_settlement import AFTER_MS, ClusterSettler
from dashboard.options import PipelineOptions
from dashboard.pipeline import Gauge
from leftovers import FIRST_SEC
from losses import ROUND_SEC
from main import DatabaseWriterService
from metrics import BridgeStats, Stats
from ops.replay import Replayer, record_of
from redis_client import execute
from redis_cluster import SLOTS, ClusterClient, slot_of
from redis_reader import RedisReader
from retry import StopFlag
from schema import Entry, Fate, Settled
from stream_writer import StreamWriter
from tests.commands import Command, Done, commands
from tests.integration.readers import (
    FAILED,
    GROUP,
    Clock,
    Workshop,
    flat,
    make_stale,
    outcome,
    pending,
    read_all,
    recover_all,
)
from tests.setups import Cluster, clustered, settings_of
from tests.support import (
    Database,
    add,
    books,
    dead_letters,
    everything_settled,
    run_until,
    settings_for,
    wait_until,
)

S = TypeVar("S", bound=ClusterSettler)
STREAMS = [f"mqtt_stream:dev-{number}:t" for number in range(12)]


@pytest.fixture(scope="module")
def shared(server_folder: Path) -> Iterator[Cluster]:
    with clustered(server_folder / "masters", replicas=False) as found:
        yield found


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """Three masters, empty."""
    with redis_client.connect(shared.servers, timeout_sec=10) as client:
        client.flushall()
    return shared


@pytest.fixture
def client(cluster: Cluster) -> Iterator[redis.Redis]:
    with redis_client.connect(cluster.servers, timeout_sec=10) as found:
        yield found


@pytest.fixture
def workshop(cluster: Cluster) -> Iterator[Workshop]:
    made = Workshop(cluster.servers)
    yield made
    made.close()


def fill(client: redis.Redis, each: int) -> int:
    for stream in STREAMS:
        add(client, stream, [{"value": str(number)} for number in range(each)])
    return each * len(STREAMS)


def keys_like(client: redis.Redis, part: str) -> list[bytes]:
    return list(client.scan_iter(match=f"*{part}*"))


@pytest.mark.parametrize(
    "stream", ["mqtt_stream:d:t", "mqtt_stream:{shard}:7", "a}b{", "{}:x", "{", "x{y}{z}", "ö{ü}"]
)
def test_the_ledger_of_a_stream_is_in_its_slot(cluster: Cluster, stream: str) -> None:
    ledger = ClusterKeys("g{1}").ledger_of(stream.encode())
    by_the_server = [cluster.masters[0].ask("CLUSTER", "KEYSLOT", key) for key in (stream, ledger)]
    assert by_the_server == [slot_of(stream)] * 2


def test_streams_on_all_nodes_are_read_within_the_budget_and_the_books_add_up(
    workshop: Workshop, client: redis.Redis, cluster: Cluster
) -> None:
    count = fill(client, 30)
    assert len({cluster.owner(slot_of(stream)).name for stream in STREAMS}) == 3
    reader = workshop.reader(batch_size=100)
    found = read_all(reader, count, reads=20)
    assert sum(map(len, found)) == count
    assert max(map(len, found)) <= 100 + len(STREAMS)
    for entries in found:
        reader.settle(outcome(entries))
    total = books(client)
    assert (total.read, total.stored, total.pending, total.missing) == (count, count, 0, 0)


def test_a_read_waits_for_an_entry_on_any_node(workshop: Workshop, client: redis.Redis) -> None:
    fill(client, 1)
    reader = workshop.reader(block_sec=20.0)
    reader.settle(outcome(flat(read_all(reader, len(STREAMS), reads=5))))
    later = threading.Timer(0.3, lambda: client.xadd(STREAMS[3], {"value": "late"}))
    later.start()
    began = time.monotonic()
    (entry,) = read_all(reader, 1, reads=3)[0]
    assert entry.fields == [b"value", b"late"]
    assert time.monotonic() - began < 10
    later.join()


def test_a_stale_entry_of_a_worker_that_is_gone_is_claimed(workshop: Workshop, client: redis.Redis) -> None:
    count = fill(client, 2)
    assert sum(map(len, read_all(workshop.reader("gone"), count, reads=10))) == count
    for stream in STREAMS:
        make_stale(client, stream)
    assert len(flat(recover_all(workshop.reader("alive")))) == count
    assert books(client).stored == count


def test_the_worker_finds_its_streams_again_after_everything_was_flushed(
    workshop: Workshop, client: redis.Redis
) -> None:
    fill(client, 1)
    reader = workshop.reader()
    reader.settle(outcome(flat(read_all(reader, len(STREAMS), reads=5))))
    client.flushall()
    count = fill(client, 3)
    assert sum(map(len, read_all(reader, count, reads=50))) == count


def read_one(workshop: Workshop, client: redis.Redis, **options: Any) -> tuple[RedisReader, list[Entry]]:
    client.xadd(STREAMS[0], {"value": "nan"})
    reader = workshop.reader(**options)
    return reader, flat(read_all(reader, 1, reads=5))


def note_of(client: redis.Redis) -> int:
    """For how many ms the only note stays."""
    (note,) = keys_like(client, ":letter:")
    return int(client.pttl(note))


def test_a_dead_letter_goes_to_its_own_slot_and_its_note_ends_by_itself(
    workshop: Workshop, client: redis.Redis
) -> None:
    assert slot_of(FAILED) != slot_of(STREAMS[0])
    reader, entries = read_one(workshop, client)
    reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    (letter,) = dead_letters(client)
    assert letter[:4] == [b"original_stream", STREAMS[0].encode(), b"original_id", entries[0].id]
    total = books(client)
    assert (total.dead_lettered, total.pending, total.missing) == (1, 0, 0)
    assert 0 < note_of(client) <= AFTER_MS


def test_a_dead_letter_too_wide_for_a_script_goes_the_same_way(
    workshop: Workshop, client: redis.Redis
) -> None:
    fields = [part for number in range(3000) for part in (b"name%d" % number, b"%d" % number)]
    execute(client, "XADD", STREAMS[0], "*", *fields)
    reader = workshop.reader()
    entries = flat(read_all(reader, 1, reads=5))
    reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    (letter,) = dead_letters(client)
    assert letter[-len(fields) :] == fields
    assert books(client).dead_lettered == 1
    assert 0 < note_of(client) <= AFTER_MS


class Crashing(ClusterSettler):
    """Ends between the dead letter and the acknowledgement."""

    def _run(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        raise KeyboardInterrupt


def settler(client: redis.Redis, kind: type[S] = ClusterSettler) -> S:  # type: ignore[assignment]
    return kind(client, keys_of(client, GROUP), GROUP, FAILED, Stats(), lambda: 0)


def dead(entries: Sequence[Entry]) -> list[Settled]:
    return list(outcome(entries, Fate.DEAD_LETTERED).settled)


@pytest.mark.parametrize("fields", [1, 3000])
def test_a_crash_between_letter_and_acknowledgement_makes_no_second_letter(
    workshop: Workshop, client: redis.Redis, fields: int
) -> None:
    execute(client, "XADD", STREAMS[0], "*", *[b"x"] * 2 * fields)
    entries = flat(read_all(workshop.reader(), 1, reads=5))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            settler(client, Crashing).settle(dead(entries))
        assert (len(dead_letters(client)), books(client).pending) == (1, 1)
        assert note_of(client) > AFTER_MS
    settler(client).settle(dead(entries))
    assert len(dead_letters(client)) == 1
    assert (books(client).dead_lettered, books(client).pending) == (1, 0)
    assert 0 < note_of(client) <= AFTER_MS


def test_what_somebody_else_has_settled_gets_no_letter(workshop: Workshop, client: redis.Redis) -> None:
    _, entries = read_one(workshop, client)
    settler(client).settle(outcome(entries).settled)
    settler(client).settle(dead(entries))
    assert (dead_letters(client), books(client).stored, books(client).dead_lettered) == ([], 1, 0)


class Overtaken(ClusterSettler):
    """Somebody else settles the entry between this one's look and its letter, or after it."""

    other: Sequence[Settled] = ()

    def _run(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.other:
            settler(self._client).settle(self.other)
            self.other = ()
        return super()._run(script, calls)


def test_a_letter_is_taken_back_when_somebody_else_has_stored_the_entry_meanwhile(
    workshop: Workshop, client: redis.Redis
) -> None:
    _, entries = read_one(workshop, client)
    overtaken = settler(client, Overtaken)
    overtaken.other = outcome(entries).settled
    overtaken.settle(dead(entries))
    assert (dead_letters(client), books(client).stored, books(client).dead_lettered) == ([], 1, 0)
    assert keys_like(client, ":letter:") == []


def test_a_letter_stays_when_somebody_else_relies_on_it(workshop: Workshop, client: redis.Redis) -> None:
    _, entries = read_one(workshop, client)
    overtaken = settler(client, Overtaken)
    overtaken.other = dead(entries)
    overtaken.settle(dead(entries))
    assert (len(dead_letters(client)), books(client).dead_lettered) == (1, 1)


def test_an_entry_with_an_id_that_was_used_before_has_a_letter_of_its_own(
    workshop: Workshop, client: redis.Redis
) -> None:
    for value, ends in (("first", pytest.raises(KeyboardInterrupt)), ("second", contextlib.nullcontext())):
        client.delete(STREAMS[0])
        client.xadd(STREAMS[0], {"value": value}, id="5-1")
        entries = flat(read_all(workshop.reader(), 1, reads=5))
        with ends:
            settler(client, Crashing if value == "first" else ClusterSettler).settle(dead(entries))
    assert [letter[-1] for letter in dead_letters(client)] == [b"first", b"second"]


def test_a_read_follows_a_slot_that_is_moving_and_one_that_has_moved(
    workshop: Workshop, client: redis.Redis, cluster: Cluster
) -> None:
    count = fill(client, 1)
    reader = workshop.reader()
    reader.settle(outcome(flat(read_all(reader, count, reads=5))))
    slot, seen = slot_of(STREAMS[0]), 0

    def add_and_read() -> None:
        nonlocal seen
        client.xadd(STREAMS[0], {"value": "moving"})
        entries = flat(read_all(reader, 1, reads=5))
        reader.settle(outcome(entries))
        seen += len(entries)

    cluster.move(slot, pause=lambda: client.xadd(STREAMS[0], {"value": "moving"}))
    entries = flat(read_all(reader, 2, reads=5))
    assert len(entries) == 2  # the stream and its ledger were moved one by one
    reader.settle(outcome(entries))
    add_and_read()
    assert seen == 1
    assert pending(client, STREAMS[0]) == []
    assert (books(client).stored, books(client).missing) == (count + 3, 0)


def test_a_slot_that_nobody_serves_is_an_outage(cluster: Cluster) -> None:
    with redis_client.connect(cluster.servers, timeout_sec=10) as client:
        assert isinstance(client, ClusterClient)
        client.ping()
        client._masters[:] = [None] * SLOTS
        with pytest.raises(redis.exceptions.ClusterDownError) as caught:
            client.hdel("x", "y")
        assert redis_client.is_world(caught.value)


def test_a_bridge_adds_to_streams_on_all_nodes(client: redis.Redis) -> None:
    writer = StreamWriter(client, StopFlag(timeout_sec=1.0), BridgeStats(), maxlen=100)
    entries = [(stream.encode(), [b"value", b"1"]) for stream in STREAMS for _ in range(3)]
    writer.add(entries)
    assert [client.xlen(stream) for stream in STREAMS] == [3] * len(STREAMS)
    assert writer.note_filters("b", ["a/#"]) == frozenset()
    assert writer.note_filters("b", ["b/#"]) == {"a/#"}


def test_who_takes_a_node_for_a_single_server_is_told_so(cluster: Cluster) -> None:
    other = cluster.masters[0] is cluster.owner(slot_of(STREAMS[0]))
    with (
        redis_client.connect(cluster.masters[1 if other else 0].tcp_url, timeout_sec=10) as client,
        pytest.raises(redis.ResponseError, match="set REDIS_MODE=cluster") as caught,
    ):
        client.xadd(STREAMS[0], {"value": "1"})
    assert not redis_client.is_world(caught.value)


def test_the_dashboard_sees_the_whole_cluster(
    workshop: Workshop, client: redis.Redis, cluster: Cluster
) -> None:
    count = fill(client, 2)
    workshop.reader("one")
    workshop.reader("two")
    options = PipelineOptions(
        redis=cluster.servers, group=GROUP, pattern="mqtt_stream:*", dead_letter_stream=FAILED
    )
    gauge = Gauge(options)
    seen = gauge.look()
    gauge.close()
    assert (seen.reachable, seen.lag, seen.streams) == (True, count, len(STREAMS))
    assert [worker.name for worker in seen.workers] == ["one", "two"]


def test_acknowledged_entries_are_trimmed_on_all_nodes(workshop: Workshop, client: redis.Redis) -> None:
    count = fill(client, 2)
    reader = workshop.reader(stream_retention_sec=1, wall_ms=lambda: time.time_ns() // 1_000_000 + 60_000)
    reader.settle(outcome(flat(read_all(reader, count, reads=9))))
    left = [1] * len(STREAMS)  # the last one delivered

    def trimmed() -> bool:
        reader.upkeep()  # for 0.05 s at a time: slow nodes take more than one
        return [client.xlen(stream) for stream in STREAMS] == left

    wait_until(trimmed, what="every stream trimmed")


def test_what_was_deleted_unread_is_told_of_all_nodes(workshop: Workshop, client: redis.Redis) -> None:
    count = fill(client, 3)
    clock, stats = Clock(), Stats()
    reader = workshop.reader(clock=clock, stats=stats, stream_retention_sec=0)
    for stream in STREAMS:
        execute(client, "XTRIM", stream, "MAXLEN", 1)
    reader.settle(outcome(flat(read_all(reader, len(STREAMS), reads=9))))
    for _ in range(2 * len(STREAMS)):
        clock.now += ROUND_SEC
        reader.upkeep()
    assert stats.messages_trimmed_unread == 2 * len(STREAMS)
    total = books(client)
    assert (total.added, total.read, total.trimmed_unread) == (count, len(STREAMS), 2 * len(STREAMS))
    assert (total.passed, total.missing) == (2 * len(STREAMS), 0)


def test_consumers_that_left_and_books_of_gone_streams_are_removed_on_all_nodes(
    workshop: Workshop, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftovers.LEFT_SEC", -1.0)
    fill(client, 1)
    clock = Clock()
    reader = workshop.reader()
    reader.settle(outcome(flat(read_all(reader, len(STREAMS), reads=9))))
    for stream in STREAMS[::2]:
        client.delete(stream)
    for stream in STREAMS[1::2]:
        execute(client, "XGROUP CREATECONSUMER", stream, GROUP, "gone")
    another = workshop.reader("two", clock=clock)  # which knows nothing of those that are gone
    clock.now += FIRST_SEC
    for _ in range(4 * len(STREAMS)):
        another.upkeep()
    assert not any(execute(client, "XINFO CONSUMERS", stream, GROUP) for stream in STREAMS[1::2])
    ledgers = keys_of(client, GROUP).ledgers(client)
    counts = [count for ledger in ledgers for count in client.hgetall(ledger).items()]
    closed = [int(n) for field, n in counts if field == b"closed:stored"]
    assert (sum(closed), len(counts) - len(closed)) == (len(STREAMS) // 2, len(STREAMS) // 2)


def test_an_acknowledgement_that_a_failover_has_undone_makes_no_second_letter(
    workshop: Workshop, client: redis.Redis
) -> None:
    _, entries = read_one(workshop, client)
    settler(client).settle(dead(entries))
    stream, ledger = STREAMS[0], ClusterKeys(GROUP).ledger_of(STREAMS[0].encode())
    # As the replica knows it that the last second had not reached.
    client.xclaim(stream, GROUP, "one", 0, [entries[0].id], force=True, justid=True)
    execute(client, "HDEL", ledger, f"dead_lettered:{stream}")
    settler(client).settle(dead(entries))
    assert len(dead_letters(client)) == 1
    assert (books(client).dead_lettered, books(client).pending, books(client).missing) == (1, 0, 0)


def test_a_wrong_password_is_told_and_not_taken_for_nodes_that_are_away(cluster: Cluster) -> None:
    servers = replace(cluster.servers, url="redis://:wrong@")
    with redis_client.connect(servers, timeout_sec=10) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_node_that_is_down_keeps_what_goes_with_it_from_being_added(
    cluster: Cluster, client: redis.Redis
) -> None:
    """Else every attempt of an outage would add the rest of a batch once more."""
    assert isinstance(client, ClusterClient)
    client.ping()
    down = cluster.owner(slot_of(STREAMS[0])).address
    client._masters[:] = [("127.0.0.1", 1) if node == down else node for node in client._masters]
    with client.pipeline(transaction=False) as pipe:
        for stream in STREAMS:
            pipe.xadd(stream, {"value": "1"})
        with pytest.raises(redis.ConnectionError):
            pipe.execute()
    with redis_client.connect(cluster.servers, timeout_sec=10) as another:
        assert [another.xlen(stream) for stream in STREAMS] == [0] * len(STREAMS)


def test_more_streams_than_one_blocking_read_covers_are_read_to_the_end(
    workshop: Workshop, client: redis.Redis
) -> None:
    streams = [f"mqtt_stream:many-{number}:t" for number in range(700)]
    with client.pipeline(transaction=False) as pipe:
        for stream in streams * 2:
            pipe.xadd(stream, {"value": "1"})
        pipe.execute()
    reader = workshop.reader(batch_size=300)
    found = read_all(reader, 1400, reads=200)
    assert max(map(len, found)) <= 300
    for entries in found:
        reader.settle(outcome(entries))
    client.xadd(streams[13], {"value": "one more"})
    reader.settle(outcome(flat(read_all(reader, 1, reads=200))))
    total = books(client)
    assert (total.stored, total.pending, total.missing) == (1401, 0, 0)


@pytest.fixture
def run(
    database: Database,
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    monkeypatch.setenv("REDIS_URL", cluster.servers.url)
    for name, value in settings_of(cluster.servers).items():
        monkeypatch.setenv(name.upper(), str(value))
    return commands(database, capsys, monkeypatch)


def worked(database: Database, cluster: Cluster, client: redis.Redis, entries: int, **more: Any) -> None:
    """A worker settles so many entries in all."""
    settings = settings_for(database, cluster.servers.url, **settings_of(cluster.servers), **more)
    run_until(DatabaseWriterService(settings), lambda: everything_settled(client, entries))


REPLAY = ("dead-letters", "replay", "--yes", "--rate", "0")


def test_dead_letters_are_replayed_each_once_wherever_their_streams_are(
    run: Command, database: Database, cluster: Cluster, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [*STREAMS, "mqtt_stream:{one}:t", "mqtt_stream:a}b:t", "mqtt_stream:{}:t"]
    for stream in streams:
        add(client, stream, [{"value": "1", "timestamp": "4000000000"}, {"value": "2"}])
    count = len(streams)
    worked(database, cluster, client, 2 * count)
    assert len(dead_letters(client)) == count
    assert run(*REPLAY, "--rejected").told.endswith(f"replayed {count} into {count} streams\n")
    worked(database, cluster, client, 3 * count)
    letters = dead_letters(client)
    assert [letter[letter.index(b"replays") + 1] for letter in letters] == [b"1"] * count

    monkeypatch.setenv("MAX_FUTURE_SEC", "3000000000")
    with monkeypatch.context() as patch:  # ends after the entries were added, before any letter is deleted
        patch.setattr(Replayer, "_deleted", interrupted)
        assert run(*REPLAY, "--limit", "5").status == 130
    assert len(dead_letters(client)) == count
    tried: list[Done] = []
    client.delete(record_of(streams[7].encode()))
    # so that its stream is on the next node already, and its record nowhere
    cluster.move(slot_of(streams[7]), meanwhile=lambda _: tried.append(run(*REPLAY)))
    assert tried[0].status == 1, tried
    assert f"replayed {count - 6:,} for certain; the same command goes on" in tried[0].told
    assert len(dead_letters(client)) == 1
    assert run(*REPLAY).told.endswith("replayed 1 into 1 stream\n")
    worked(database, cluster, client, 4 * count, max_future_sec=3_000_000_000)
    assert database.rows("select count(*), sum(value) from sensor_readings") == [(2 * count, 3 * count)]
    assert (dead_letters(client), books(client).duplicate, books(client).missing) == ([], 0, 0)


def interrupted(*_: object) -> list[Any]:
    raise KeyboardInterrupt


def test_what_operators_ask_is_answered_of_the_whole_cluster(run: Command, client: redis.Redis) -> None:
    count = fill(client, 2)
    done = run("check", "--json")
    wrong = [one for one in json.loads(done.told) if one["ok"] is False]
    assert (done.status, wrong, done.errors) == (0, [], "")
    assert client.dbsize() == len(STREAMS)
    assert sum(stream["lag"] for stream in json.loads(run("lag", "--json").told)["streams"]) == count
    for number in range(3):
        client.xadd(FAILED, {"no": f"letter of ours {number}"})
    assert "3" in run("dead-letters", "stats").told
    assert len(run("dead-letters", "export").told.splitlines()) == 3
    assert "removed 3 dead letters" in run("dead-letters", "purge", "--all", "--yes").told
    assert dead_letters(client) == []
