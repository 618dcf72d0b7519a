"""Letting go of entries: once each whatever happens, and their dead letters byte for byte."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import pytest
import redis
from redis.exceptions import OutOfMemoryError

from metrics import Stats
from redis_client import execute
from redis_reader import RedisReader
from retry import Stopping
from schema import Entry, Fate, Outcome, Reason, Rejection, Settled
from standalone.servers import Valkey
from tests.faults import proxy_to
from tests.integration.readers import (
    FAILED,
    GROUP,
    LEDGER,
    Clock,
    Workshop,
    flat,
    numbered,
    outcome,
    pending,
    read_all,
)
from tests.support import add, books, dead_letters, wait_until

STREAM = "mqtt_stream:d:t"
WIDE = 3_000  # fields of one entry, more than a script can take


def add_raw(client: redis.Redis, fields: Sequence[bytes], stream: str = STREAM) -> bytes:
    """XADD with field names that a dict could not hold."""
    entry_id = execute(client, "XADD", stream, "*", *fields)
    assert isinstance(entry_id, bytes)
    return entry_id


def add_wide(client: redis.Redis) -> list[bytes]:
    """Add an entry with thousands of fields; returns them."""
    fields = [part for number in range(WIDE) for part in (b"name%d" % number, b"%d" % number)]
    add_raw(client, fields)
    return fields


def mixed(entries: Sequence[Entry]) -> Outcome:
    """Entries end in turn as stored, duplicate, dead letter, skipped."""
    fates = (Fate.STORED, Fate.DUPLICATE, Fate.DEAD_LETTERED, Fate.SKIPPED)
    return Outcome(
        [outcome([entry], fates[number % 4]).settled[0] for number, entry in enumerate(entries)],
        readings_stored=3,
        readings_duplicate=2,
        readings_rejected=1,
    )


def original(letter: list[bytes]) -> list[bytes]:
    """The original fields of a dead letter, as a replay takes them: so many pairs from the end."""
    pairs = int(letter[letter.index(b"original_fields") + 1])
    return letter[len(letter) - 2 * pairs :]


def header(letter: list[bytes]) -> dict[bytes, bytes]:
    end = letter.index(b"original_fields") + 2
    return dict(zip(letter[:end:2], letter[1:end:2], strict=True))


def counts(client: redis.Redis) -> tuple[int, int, int, int]:
    found = books(client)
    assert found.missing == 0
    return found.stored, found.duplicate, found.dead_lettered, found.skipped


def test_the_ledger_and_the_stats_count_what_was_settled(workshop: Workshop, client: redis.Redis) -> None:
    for name in "abc":
        add(client, f"mqtt_stream:{name}:t", numbered(40))
    stats = Stats()
    reader = workshop.reader(batch_size=500, stats=stats)
    reader.settle(mixed(flat(read_all(reader, 120, reads=10))))
    assert counts(client) == (30, 30, 30, 30)
    assert books(client).pending == 0
    assert len(dead_letters(client)) == 30
    assert (stats.messages_written, stats.messages_duplicate, stats.messages_failed) == (30, 30, 30)
    assert (stats.readings_written, stats.readings_duplicate, stats.readings_failed) == (3, 2, 1)
    assert stats.batches_processed == 1


def test_what_is_not_settled_stays_pending(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(10))
    reader = workshop.reader()
    entries = reader.read()
    reader.settle(outcome(entries[::2]))
    assert [row[0] for row in pending(client, STREAM)] == [entry.id for entry in entries[1::2]]


def test_settling_twice_counts_once(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(40))
    stats = Stats()
    reader = workshop.reader(stats=stats)
    answer = mixed(reader.read())
    reader.settle(answer)
    letters = dead_letters(client)
    reader.settle(answer)
    assert counts(client) == (10, 10, 10, 10)
    assert dead_letters(client) == letters
    assert stats.messages_written == 10


def test_two_workers_that_settle_the_same_entries_count_once(
    workshop: Workshop, client: redis.Redis
) -> None:
    """A worker was slow, its entries were claimed, and both come to an end with them."""
    add(client, STREAM, numbered(40))
    first, second = workshop.reader("first"), workshop.reader("second")
    entries = first.read()
    client.xclaim(STREAM, GROUP, "second", 0, [entry.id for entry in entries])
    second.settle(mixed(entries[:20]))
    first.settle(mixed(entries))
    second.settle(mixed(entries))
    assert counts(client) == (10, 10, 10, 10)
    assert len(dead_letters(client)) == 10


def test_a_worker_may_settle_what_another_has_claimed_and_not_settled_yet(
    workshop: Workshop, client: redis.Redis
) -> None:
    """Its rows are committed, so acknowledging is right whoever owns the entry now."""
    add(client, STREAM, numbered(4))
    first, second = workshop.reader("first"), workshop.reader("second")
    entries = first.read()
    client.xclaim(STREAM, GROUP, "second", 0, [entry.id for entry in entries])
    first.settle(mixed(entries))
    assert second.recover() == []
    assert counts(client) == (1, 1, 1, 1)


@pytest.mark.parametrize("width", [1, WIDE])
def test_settling_whose_reply_is_lost_counts_once(
    workshop: Workshop, client: redis.Redis, valkey: Valkey, width: int
) -> None:
    add_raw(client, [b"name", b"value"] * width)
    with proxy_to(str(valkey.socket)) as proxy:
        stats = Stats()
        reader = workshop.reader(url=f"redis://127.0.0.1:{proxy.port}/0", stats=stats)
        answer = outcome(reader.read(), Fate.DEAD_LETTERED)
        proxy.cut_reply_when = lambda _: proxy.cuts == 0 and client.exists(FAILED) == 1
        reader.settle(answer)
        assert (proxy.cuts, stats.errors) == (1, 1)
    assert counts(client) == (0, 0, 1, 0)
    assert len(dead_letters(client)) == 1


def test_many_entries_of_many_streams_are_settled_in_one_go(
    workshop: Workshop, client: redis.Redis
) -> None:
    """More than one script call can take, of every kind."""
    for number in range(30):
        add(client, f"mqtt_stream:{number}:t", numbered(400))
    reader = workshop.reader(batch_size=12_000)
    reader.settle(mixed(flat(read_all(reader, 12_000, reads=60))))
    assert counts(client) == (3_000, 3_000, 3_000, 3_000)
    assert client.xlen(FAILED) == 3_000


ODD_ENTRIES = {
    "repeated names": [b"value", b"1", b"value", b"2", b"other", b"x", b"value", b"1"],
    "every byte": [bytes(range(256)), bytes(reversed(range(256))), b"value", b"\xff\xfe\x00"],
    "empty name and value": [b"", b"", b"value", b""],
    "the names of a dead letter": [b"error", b"mine", b"original_fields", b"99", b"original_id", b"7"],
    "line ends and digits": [b"a\r\nb", b"$5\r\nhello\r\n", b"0", b"-0"],
    "as many fields as a script can take": [b"n", b"v"] * 1_980,
    "just too many fields for a script": [b"n", b"v"] * 1_999,
    "thousands of fields": [
        part for number in range(9_000) for part in (b"%d" % number, b"\xff%d" % number)
    ],
}


@pytest.mark.parametrize("fields", ODD_ENTRIES.values(), ids=ODD_ENTRIES.keys())
def test_a_dead_letter_holds_the_original_byte_for_byte(
    workshop: Workshop, client: redis.Redis, fields: list[bytes]
) -> None:
    entry_id = add_raw(client, fields)
    reader = workshop.reader(wall_ms=lambda: 1_700_000_000_123)
    entries = reader.read()
    assert list(entries[0].fields) == fields
    reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    (letter,) = dead_letters(client)
    assert original(letter) == fields
    said = header(letter)
    assert said.pop(b"value", b"nan") == b"nan"
    assert said == {
        b"original_stream": STREAM.encode(),
        b"original_id": entry_id,
        b"device_id": b"d",
        b"sensor_type": b"t",
        b"error": b"value_nan: not a number",
        b"failed_at": b"1700000000.123",
        b"original_fields": str(len(fields) // 2).encode(),
    }
    assert counts(client) == (0, 0, 1, 0)


def test_a_value_of_ten_megabytes_survives_in_its_dead_letter(
    workshop: Workshop, client: redis.Redis
) -> None:
    fields = [b"value", random.Random(7).randbytes(10_000_000), b"timestamp", b"1"]
    add_raw(client, fields)
    reader = workshop.reader()
    reader.settle(outcome(reader.read(), Fate.DEAD_LETTERED))
    (letter,) = dead_letters(client)
    assert original(letter) == fields
    client.delete(FAILED, STREAM)


def test_a_wide_dead_letter_is_settled_beside_others_and_only_once(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(3))
    fields = add_wide(client)
    add(client, STREAM, numbered(3))
    reader = workshop.reader()
    answer = outcome(reader.read(), Fate.DEAD_LETTERED)
    reader.settle(answer)
    reader.settle(answer)
    assert counts(client) == (0, 0, 7, 0)
    letters = dead_letters(client)
    assert len(letters) == 7
    assert [original(letter) for letter in letters if len(letter) > WIDE] == [fields]


def test_a_wide_entry_that_somebody_else_acknowledged_leaves_no_dead_letter(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_wide(client)
    stats = Stats()
    reader = workshop.reader(stats=stats)
    entries = reader.read()
    workshop.reader("other").settle(outcome(entries))
    reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    assert counts(client) == (1, 0, 0, 0)
    assert dead_letters(client) == []
    assert stats.messages_failed == 0


def test_a_wide_entry_whose_stream_is_gone_leaves_no_dead_letter(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_wide(client)
    reader = workshop.reader()
    entries = reader.read()
    client.delete(STREAM)
    reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    assert dead_letters(client) == []
    assert client.hgetall(LEDGER) == {}


def settling(
    reader: RedisReader, answer: Outcome, stats: Stats, meanwhile: Callable[[], object]
) -> list[BaseException]:
    """Settle in a thread, and do `meanwhile` once it has failed twice. What settling raised at last."""
    raised: list[BaseException] = []

    def settle() -> None:
        try:
            reader.settle(answer)
        except BaseException as error:  # noqa: BLE001  handed to the test
            raised.append(error)

    thread = threading.Thread(target=settle)
    thread.start()
    try:
        wait_until(lambda: stats.errors >= 2 or raised, 10)
        meanwhile()
    finally:
        thread.join(20)
    assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_a_dead_letter_stream_of_the_wrong_type_is_waited_for_and_nothing_is_let_go(
    workshop: Workshop, client: redis.Redis, wide: bool
) -> None:
    add_wide(client) if wide else add(client, STREAM, numbered(3))
    stats = Stats()
    reader = workshop.reader(stats=stats)
    entries = reader.read()
    client.set(FAILED, "a string")

    def repair() -> None:
        assert len(pending(client, STREAM)) == len(entries)
        assert client.hgetall(LEDGER) == {}
        client.delete(FAILED)

    assert settling(reader, outcome(entries, Fate.DEAD_LETTERED), stats, repair) == []
    assert counts(client) == (0, 0, len(entries), 0)
    assert [original(letter) for letter in dead_letters(client)] == [
        list(entry.fields) for entry in entries
    ]


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_a_stop_ends_the_wait_for_a_dead_letter_stream_of_the_wrong_type(
    workshop: Workshop, client: redis.Redis, wide: bool
) -> None:
    add_wide(client) if wide else add(client, STREAM, numbered(3))
    stats = Stats()
    reader = workshop.reader(stats=stats)
    entries = reader.read()
    client.set(FAILED, "a string")
    raised = settling(reader, outcome(entries, Fate.DEAD_LETTERED), stats, workshop.stop.set)
    assert [type(error) for error in raised] == [Stopping]
    assert len(pending(client, STREAM)) == len(entries)
    assert client.hgetall(LEDGER) == {}


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_an_entry_whose_dead_letter_cannot_be_added_is_not_let_go(
    workshop: Workshop, client: redis.Redis, wide: bool
) -> None:
    """Whatever the reason: here the dead-letter stream has no entry ID left to give."""
    last = f"{2**64 - 1}-{2**64 - 1}"
    client.xadd(FAILED, {"original_stream": STREAM, "original_id": "1-1"}, id=last)
    add_wide(client) if wide else add(client, STREAM, numbered(1))
    reader = workshop.reader()
    entries = reader.read()
    with pytest.raises(redis.ResponseError):
        reader.settle(outcome(entries, Fate.DEAD_LETTERED))
    assert [row[0] for row in pending(client, STREAM)] == [entries[0].id]
    assert client.hgetall(LEDGER) == {}
    assert client.xlen(FAILED) == 1


def test_poison_waits_for_a_dead_letter_stream_of_the_wrong_type(
    workshop: Workshop, client: redis.Redis
) -> None:
    add(client, STREAM, numbered(1))
    for _ in range(3):
        abandoned = workshop.reader(max_deliveries=1)
        assert abandoned.recover() or abandoned.read()
    client.set(FAILED, "a string")
    stats = Stats()
    reader = workshop.reader(max_deliveries=1, stats=stats)
    thread = threading.Thread(target=reader.recover)
    thread.start()
    try:
        wait_until(lambda: stats.errors >= 2 or not thread.is_alive(), 10)
        assert thread.is_alive()
        assert len(pending(client, STREAM)) == 1
    finally:
        client.delete(FAILED)
        thread.join(20)
    assert counts(client) == (0, 0, 1, 0)


def test_a_redis_out_of_memory_lets_entries_go(workshop: Workshop, client: redis.Redis) -> None:
    add(client, STREAM, numbered(40))
    stats = Stats()
    reader = workshop.reader(stats=stats, batch_size=20)
    first = reader.read()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            add(client, STREAM, numbered(1))
        workshop.stop.set()  # a call that cannot get through gives up after a second
        reader.settle(mixed(first))
        second = flat(read_all(reader, 20, reads=5))
        reader.settle(mixed(second))
    finally:
        client.config_set("maxmemory", 0)
    assert counts(client) == (10, 10, 10, 10)
    assert len(dead_letters(client)) == 10
    assert stats.errors == 0


def test_a_worker_starts_and_recovers_while_redis_is_out_of_memory(
    workshop: Workshop, client: redis.Redis
) -> None:
    """A full Redis must not keep away the very worker that would empty it."""
    add(client, STREAM, numbered(10))
    client.config_set("maxmemory", 1)
    try:
        client.script_flush()
        stats = Stats()
        workshop.reader(stats=stats).read()
        reader = workshop.reader(stats=stats)
        reader.settle(outcome(reader.recover()))
        assert stats.errors == 0
    finally:
        client.config_set("maxmemory", 0)
    assert counts(client) == (10, 0, 0, 0)


def test_a_script_flush_is_survived(workshop: Workshop, client: redis.Redis) -> None:
    stats = Stats()
    clock = Clock()
    add(client, STREAM, numbered(4))
    reader = workshop.reader(stats=stats, clock=clock, stream_retention_sec=60, max_deliveries=1)
    entries = reader.read()
    client.script_flush()
    reader.settle(mixed(entries))
    assert counts(client) == (1, 1, 1, 1)
    add(client, "mqtt_stream:new:t", numbered(1))
    clock.now += 100.0
    client.script_flush()
    reader.settle(outcome(reader.read()))
    clock.now += 100.0
    client.script_flush()
    reader.upkeep()
    client.script_flush()
    assert reader.recover() == []
    assert counts(client) == (2, 1, 1, 1)
    assert stats.errors == 0


@pytest.mark.parametrize("loss", ["stream", "group", "flush", "other type"])
def test_a_stream_or_group_that_is_gone_does_no_harm(
    workshop: Workshop, client: redis.Redis, loss: str
) -> None:
    add(client, STREAM, numbered(8))
    add(client, "mqtt_stream:other:t", numbered(8))
    reader = workshop.reader()
    entries = sorted(flat(read_all(reader, 16, reads=5)))
    if loss == "group":
        client.xgroup_destroy(STREAM, GROUP)
    elif loss == "flush":
        client.flushall()
    else:
        client.delete(STREAM)
        if loss == "other type":
            client.set(STREAM, "a string")
    reader.settle(mixed(entries))
    letters = dead_letters(client)
    assert len(letters) == (0 if loss == "flush" else 2)
    assert all(header(letter)[b"original_stream"] == b"mqtt_stream:other:t" for letter in letters)
    if loss in ("stream", "other type"):
        assert counts(client) == (2, 2, 2, 2)
    if loss == "group":  # everything is read again, and the books are those of the new group
        again = flat(read_all(reader, 8, reads=5))
        reader.settle(outcome(again, Fate.DUPLICATE))
        assert counts(client) == (2, 2 + 8, 2, 2)


def test_the_excerpt_of_a_value_is_in_the_header_where_the_entry_has_none(
    workshop: Workshop, client: redis.Redis
) -> None:
    add_raw(client, [b"payload", b'{"a": null}'])
    reader = workshop.reader()
    rejection = Rejection(Reason.VALUE_NULL, "the value is null \ud800", "dévice", "s", "null")
    reader.settle(Outcome([Settled(entry, Fate.DEAD_LETTERED, rejection) for entry in reader.read()]))
    (letter,) = dead_letters(client)
    said = header(letter)
    assert said[b"value"] == b"null"
    assert said[b"device_id"] == "dévice".encode()
    assert said[b"error"] == b"value_null: the value is null ?"


def test_a_ledger_of_another_type_is_refused_before_anything_is_let_go(
    client: redis.Redis, workshop: Workshop
) -> None:
    add(client, STREAM, numbered(5))
    reader = workshop.reader("one")
    entries = reader.read()
    client.set(LEDGER, "not a hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        reader._settler.settle(outcome(entries).settled)
    assert len(pending(client, STREAM)) == 5
    client.delete(LEDGER)
    reader.settle(outcome(entries))
    assert (books(client).stored, books(client).missing) == (5, 0)


def test_a_refused_acknowledgement_is_not_passed_over(client: redis.Redis, workshop: Workshop) -> None:
    add(client, STREAM, numbered(3))
    reader = workshop.reader("one")
    entries = reader.read()
    execute(client, "ACL", "SETUSER", "default", "-xack")
    try:
        with pytest.raises(redis.ResponseError, match=r"(?i)permission|can't run"):
            reader._settler.settle(outcome(entries).settled)
    finally:
        execute(client, "ACL", "SETUSER", "default", "+@all")
    assert len(pending(client, STREAM)) == 3
