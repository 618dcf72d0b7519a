"""The mark of a replayed entry: it says what its original said, and fails as that one did."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from batches import parse_batch
from ops import letter_views
from ops.letters import UNREADABLE, letter_of
from ops.replay import record_of
from parse import MAX_FIELDS, Limits, Parser
from replays import MARK, marked, original
from schema import Entry, Fate, Reason, Rejection, Settled
from settlement import dead_letter_fields

NOW_US = 1_800_000_000_000_000
STREAM = b"mqtt_stream:kitchen:temperature"
FIRST = b"1700000000000-7"
LATER = b"1790000000000-0"
FLAT = (b"value", b"21.5")
MESSAGE = (b"topic", b"pico/temperature/kitchen", b"payload", b"21.5")
TIMED = (*FLAT, b"timestamp", b"2026-01-02T03:04:05Z")
NAMED = (*FLAT, b"mid", b"m1")
BYTES = st.binary(max_size=12)
PAIRS = st.lists(
    st.tuples(BYTES | st.sampled_from([MARK, b"original_fields", b"value"]), BYTES), max_size=6
)


def parser() -> Parser:
    return Parser(Limits())


def replayed(fields: tuple[bytes, ...], times: int = 1) -> Entry:
    return Entry(STREAM, LATER, marked(FIRST, times, fields))


@pytest.mark.parametrize("fields", [FLAT, MESSAGE, TIMED, NAMED])
def test_a_replayed_entry_says_what_its_original_said(fields: tuple[bytes, ...]) -> None:
    first = parser().parse(Entry(STREAM, FIRST, fields), NOW_US)
    again = parser().parse(replayed(fields), NOW_US)
    assert again.readings == first.readings
    assert len(again.readings) == 1
    assert not again.own_id  # its row may be another entry's: then it is a duplicate, not its own


def test_many_of_them_at_once_say_the_same_and_are_not_taken_for_distinct() -> None:
    entries = [replayed(FLAT), replayed(FLAT, 2), Entry(STREAM, LATER, FLAT)]
    batch = parse_batch(parser(), entries, NOW_US)
    assert [reading.timestamp_us for reading in batch.readings] == [1_700_000_000_000_000] * 2 + [
        1_790_000_000_000_000
    ]
    assert batch.readings[0].key == batch.readings[1].key
    assert not batch.distinct
    assert not parse_batch(parser(), entries[:2], NOW_US).distinct


def test_the_mark_counts_neither_as_a_field_nor_as_bytes() -> None:
    full = tuple(part for n in range(MAX_FIELDS - 1) for part in (b"f%d" % n, b"")) + FLAT
    limits = Limits(max_entry_bytes=sum(map(len, full)))
    assert not Parser(limits).parse(replayed(full), NOW_US).rejections
    one_more = (b"x", b"", *full)
    assert Parser(limits).parse(replayed(one_more), NOW_US).rejections


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"1-1",
        b"1-1 0",
        b"1-1 01",
        b"1 1",
        b"x-1 1",
        b"18446744073709551616-0 1",
        b"1-1 1 1",
        b"1-1 1\n",
    ],
)
def test_a_field_of_that_name_that_is_no_mark_is_a_field_like_any_other(said: bytes) -> None:
    entry = Entry(STREAM, LATER, (MARK, said, *FLAT))
    assert original(entry) == (entry, 0)
    (reading,) = parser().parse(entry, NOW_US).readings
    assert reading.timestamp_us == 1_790_000_000_000_000


def test_only_the_first_field_is_a_mark() -> None:
    entry = Entry(STREAM, LATER, (*FLAT, *marked(FIRST, 1, ())))
    assert original(entry) == (entry, 0)


@given(PAIRS, st.integers(0, 10**9 - 1))
def test_a_letter_of_a_replayed_entry_holds_the_original_byte_for_byte(
    pairs: list[tuple[bytes, bytes]], times: int
) -> None:
    fields = tuple(part for pair in pairs for part in pair)
    if original(Entry(STREAM, FIRST, fields))[1]:
        return
    entry = replayed(fields, times) if times else Entry(STREAM, FIRST, fields)
    rejection = Rejection(Reason.VALUE_NAN, "it is none: or so", "kitchen", "temperature", "nan")
    letter = letter_of(b"1-1", dead_letter_fields(Settled(entry, Fate.DEAD_LETTERED, rejection), 1_234_567))
    assert (letter.entry.stream, letter.entry.id, tuple(letter.entry.fields)) == (STREAM, FIRST, fields)
    assert (letter.replays, letter.replayed_id) == (times, LATER if times else b"")
    assert (letter.reason, letter.sentence, letter.device) == ("value_nan", "it is none: or so", "kitchen")
    assert letter.failed_at == 1234.567


@given(st.lists(BYTES | st.sampled_from([b"original_fields", b"original_id", b"0"]), max_size=9))
def test_whatever_else_stands_in_the_stream_is_unreadable_and_raises_nothing(raw: list[bytes]) -> None:
    letter = letter_of(b"1-1", raw)
    assert letter.reason == UNREADABLE
    assert letter.entry.fields == raw


@pytest.mark.parametrize(
    "forged",
    [
        {b"original_id": b"18446744073709551616-0"},
        {b"failed_at": b"nan"},
        {b"failed_at": b"1e999"},
        {b"replays": b"-1"},
        {b"replayed_id": b"\xff\x1b[31m"},
        {b"replayed_id": b"1-1\x1b[31m"},
    ],
)
def test_a_letter_with_a_header_that_no_worker_writes_is_unreadable(forged: dict[bytes, bytes]) -> None:
    header = {b"original_stream": STREAM, b"original_id": FIRST, b"error": b"r: s", b"failed_at": b"1"}
    for fields, readable in ((header, True), (header | forged, False)):
        raw = [
            part for pair in (fields | {b"original_fields": b"1", b"value": b"1"}).items() for part in pair
        ]
        letter = letter_of(b"1-1", raw)
        assert letter.readable == readable
        json.dumps(letter_views.json_object(letter), allow_nan=False)


def test_a_forged_reason_moves_no_cursor() -> None:
    raw = [b"original_stream", STREAM, b"original_id", FIRST, b"error", b"\x1b[2Jr\n: \x1b[2J"]
    letter = letter_of(b"1-1", [*raw, b"failed_at", b"1", b"original_fields", b"0"])
    assert letter.readable
    assert "\x1b" not in letter_views.in_full(letter, "")


@pytest.mark.parametrize(
    "stream",
    [
        b"mqtt_stream:a:b",
        b"mqtt_stream:{x}:b",
        b"mqtt_stream:{x{y}:b",
        b"mqtt_stream:a}b:c",
        b"{}:a",
        b"{{:a}",
    ],
)
def test_the_record_of_a_replay_has_the_slot_of_its_stream(stream: bytes) -> None:
    assert key_slot(record_of(stream).encode()) == key_slot(stream)
