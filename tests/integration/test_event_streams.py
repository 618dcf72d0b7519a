"""Streams of device events: read by name, in the same loop and books as all others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from main import DatabaseWriterService
from metrics import Stats
from ops.ledger import Ledger, read_ledger
from redis_client import execute
from schema import Reason
from tests.integration.readers import (
    FAILED,
    GROUP,
    Clock,
    Workshop,
    deliver,
    flat,
    ids,
    make_stale,
    outcome,
    pending,
    read_all,
    recover_all,
)
from tests.support import Database, add, run_until, settings_for, wait_until

CREATED = "devices.threshold.created"
GONE = "devices.device.deleted"
NAMED = (CREATED, GONE)
ONE = [{"device_id": "d1"}]


def ledger(client: redis.Redis, pattern: str = "mqtt_stream:*") -> Ledger:
    return read_ledger(client, GROUP, pattern, FAILED, NAMED)


@pytest.mark.parametrize("pattern", ["mqtt_stream:*", "*", "devices.*"])
def test_a_named_stream_is_read_once_whether_the_pattern_covers_it_or_not(
    workshop: Workshop, client: redis.Redis, pattern: str
) -> None:
    entry_ids = add(client, GONE, ONE * 3)
    stats = Stats()
    reader = workshop.reader(pattern=pattern, named_streams=NAMED, stats=stats, discovery_interval_sec=0.01)
    found = flat(reader.read() for _ in range(4))
    assert ids(found) == [(GONE.encode(), entry_id) for entry_id in entry_ids]
    assert stats.streams == 1
    reader.settle(outcome(found))
    books = ledger(client, pattern)
    assert (books.total.read, books.total.stored, books.total.missing) == (3, 3, 0)
    assert list(books.streams) == [GONE.encode()]


def test_a_named_stream_that_is_made_later_is_found_as_soon_as_any_other(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    reader = workshop.reader(clock=clock, named_streams=NAMED, discovery_interval_sec=2.0)
    assert reader.read() == []
    add(client, GONE, ONE)
    clock.now += 1.9
    assert reader.read() == []
    clock.now += 0.2
    assert len(reader.read()) == 1


def test_a_long_search_for_other_streams_does_not_put_off_the_look_for_named_ones(
    workshop: Workshop, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    scan_iter = redis.Redis.scan_iter

    def slow(self: redis.Redis, *arguments: object, **options: object) -> Iterator[bytes]:
        clock.now += 10.0
        return scan_iter(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.Redis, "scan_iter", slow)
    reader = workshop.reader(clock=clock, named_streams=NAMED, discovery_interval_sec=2.0)
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    add(client, GONE, ONE)
    clock.now += 2.1
    assert [entry.stream for entry in reader.read()] == [GONE.encode()]
    clock.now += 200.0
    assert [entry.stream for entry in reader.read()] == [b"mqtt_stream:d:t"]


def test_named_streams_that_are_not_there_cost_one_round_trip_a_search(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    reader = workshop.reader(clock=clock, named_streams=NAMED, discovery_interval_sec=2.0)
    client.config_resetstat()
    for _ in range(50):
        reader.read()
    clock.now += 2.1
    reader.read()
    calls = {name: told["calls"] for name, told in client.info("commandstats").items()}
    assert calls["cmdstat_type"] == len(NAMED)
    assert "cmdstat_xreadgroup" not in calls
    assert ledger(client).streams == {}


def test_a_named_key_of_another_type_is_left_out_and_told_once(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    client.set(GONE, "x")
    with capture_logs() as logs:
        reader = workshop.reader(clock=clock, named_streams=NAMED, discovery_interval_sec=2.0)
        for _ in range(3):
            clock.now += 2.1
            assert reader.read() == []
    told = [log for log in logs if log["event"] == "named_key_is_no_stream"]
    assert [(log["stream"], log["log_level"]) for log in told] == [(GONE, "warning")]
    assert ledger(client).streams == {}
    client.delete(GONE)
    add(client, GONE, ONE)
    clock.now += 2.1
    assert len(reader.read()) == 1


def test_a_quiet_worker_wakes_at_an_event(workshop: Workshop, client: redis.Redis) -> None:
    for number in range(64):
        add(client, f"mqtt_stream:shard:{number}", [{"value": "1"}])
    add(client, GONE, ONE)
    reader = workshop.reader(block_sec=20.0, discovery_interval_sec=60.0, named_streams=NAMED)
    reader.settle(outcome(flat(read_all(reader, 65, reads=10))))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(entry.stream for entry in reader.read()))
    thread.start()
    try:
        wait_until(lambda: client.info("clients")["blocked_clients"] == 1, 10)
    finally:
        add(client, GONE, ONE)
        thread.join(10)
    assert found == [GONE.encode()]


def test_groups_of_named_streams_are_made_from_the_first_entry_and_made_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()  # it stands still: no look for streams comes to the rescue
    add(client, GONE, ONE * 4)
    reader = workshop.reader(clock=clock, named_streams=NAMED)
    reader.settle(outcome(flat(read_all(reader, 4, reads=5))))
    client.xgroup_destroy(GONE, GROUP)
    add(client, GONE, ONE)
    assert len(flat(read_all(reader, 5, reads=5))) == 5


def test_stale_and_own_pending_events_are_recovered_and_poison_ends(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, GONE, ONE * 2)
    deliver(client, "one", [GONE], 1)
    deliver(client, "dead", [GONE], 1)
    make_stale(client, GONE)
    reader = workshop.reader("one", named_streams=NAMED, claim_min_idle_sec=60.0, max_deliveries=1)
    assert sum(len(page) for page in recover_all(reader)) == 2, "each is tried alone"
    assert pending(client, GONE) == []
    (poison,) = add(client, GONE, ONE)
    deliver(client, "dead", [GONE])
    for _ in range(3):
        make_stale(client, GONE)
        workshop.reader("one", named_streams=NAMED, max_deliveries=1).recover()  # which ends the worker
    assert [fields[3] for _, fields in execute(client, "XRANGE", FAILED, "-", "+")] == [poison]
    books = ledger(client).total
    assert (books.read, books.stored, books.dead_lettered, books.missing) == (3, 2, 1, 0)


def test_named_streams_are_trimmed_of_what_is_acknowledged(workshop: Workshop, client: redis.Redis) -> None:
    for number in range(1, 11):
        client.xadd(GONE, {"device_id": "d1"}, id=f"{number}-0")
    reader = workshop.reader(named_streams=NAMED, stream_retention_sec=10, batch_size=1)
    entries = flat(read_all(reader, 7, reads=20))
    reader.settle(outcome(entries[:5]))
    reader.upkeep()
    assert client.xlen(GONE) == 5
    books = ledger(client).total
    assert (books.read, books.stored, books.pending, books.unread, books.missing) == (7, 5, 2, 3, 0)


# A whole worker

RULE = {
    "sensor_id": "s1",
    "device_id": "d1",
    "key": "temp",
    "threshold_id": "t1",
    "threshold_type": "max",
    "value": "30",
    "severity": "critical",
}
BAD: list[tuple[str, dict[Any, Any]]] = [
    (CREATED, {**RULE, "value": "hot"}),
    (CREATED, {**RULE, "device_id": "*"}),
    (CREATED, {"data": b'{"threshold_id": "\xff"}'}),
    ("devices.threshold.deleted", {"device_id": "d1"}),
    (GONE, {b"\xfe\x00": b"\x00\xff", "place_id": "p"}),
    ("devices.device.bulk-deleted", {"device_ids": json.dumps(["d1", ""])}),
]


def test_bad_events_are_dead_letters_with_every_original_byte(
    database: Database, redis_url: str, client: redis.Redis
) -> None:
    service = DatabaseWriterService(settings_for(database, redis_url, consumer_name="one"))
    sent = []
    for stream, fields in BAD:
        (entry_id,) = add(client, stream, [fields])
        parts = [part for pair in fields.items() for part in pair]
        sent.append((stream.encode(), entry_id, [p.encode() if isinstance(p, str) else p for p in parts]))
    run_until(service, lambda: client.xlen(FAILED) == len(BAD))
    letters = [fields for _, fields in execute(client, "XRANGE", FAILED, "-", "+")]
    found = []
    for letter in letters:
        named = dict(zip(letter[::2], letter[1::2], strict=True))
        count = int(named[b"original_fields"])
        assert named[b"error"].startswith(Reason.EVENT_MALFORMED.encode() + b": ")
        found.append((letter[1], letter[3], letter[len(letter) - 2 * count :]))
    assert sorted(found) == sorted(sent)
    streams = settings_for(database, redis_url).event_streams()
    books = read_ledger(client, GROUP, "mqtt_stream:*", FAILED, streams).total
    assert (books.read, books.dead_lettered, books.missing) == (len(BAD), len(BAD), 0)
