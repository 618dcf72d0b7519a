"""Cutting what is to be settled into calls, and dead letters that a replay can undo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_client import Argument
from schema import Entry, Fate, Reason, Rejection, Settled
from settlement import LUA_VALUES, SettleCall, dead_letter_fields, plan

NOW_MS = 1_700_000_000_123
BAD = Rejection(Reason.VALUE_NAN, "the value is NaN", "d1", "temp", "NaN")
ACKNOWLEDGED = (Fate.STORED, Fate.DUPLICATE, Fate.SKIPPED, Fate.TRIMMED)
HEADER_NAMES = (
    b"original_stream",
    b"original_id",
    b"device_id",
    b"sensor_type",
    b"value",
    b"error",
    b"failed_at",
    b"original_fields",
)


def done(number: int, stream: bytes = b"s", fate: Fate = Fate.STORED) -> Settled:
    return Settled(Entry(stream, b"%d-0" % number, [b"value", b"1"]), fate)


def rejected(number: int, stream: bytes = b"s", fields: Sequence[bytes] = (b"value", b"NaN")) -> Settled:
    return Settled(Entry(stream, b"%d-0" % number, fields), Fate.DEAD_LETTERED, BAD)


def operations(call: SettleCall) -> Iterator[tuple[Fate, bytes, bytes, list[bytes]]]:
    """What the SETTLE script would do: (fate, stream, entry ID, dead letter) one by one.

    The script's first two keys are the ledger and the dead-letter stream, so streams count from 3.
    """
    arguments: list[Argument] = list(call.arguments)
    place = 0

    def number(at: int) -> int:
        found = arguments[at]
        assert isinstance(found, int)
        return found

    def raw(at: int) -> bytes:
        found = arguments[at]
        assert isinstance(found, bytes)
        return found

    while place < len(arguments):
        if arguments[place] == "A":
            fate, stream = Fate(arguments[place + 1]), call.streams[number(place + 2) - 3]
            size = number(place + 3)
            assert 0 < size < LUA_VALUES
            for at in range(place + 4, place + 4 + size):
                yield fate, stream, raw(at), []
        else:
            assert arguments[place] == "D"
            stream, size = call.streams[number(place + 1) - 3], number(place + 3)
            letter = [raw(at) for at in range(place + 4, place + 4 + size)]
            yield Fate.DEAD_LETTERED, stream, raw(place + 2), letter
        place += 4 + size
    assert place == len(arguments)


def check(settled: Sequence[Settled]) -> list[SettleCall]:
    """Plan, and check that each entry is settled once, rightly, in calls that are bounded."""
    calls = list(plan(settled, NOW_MS))
    found: list[tuple[Fate, bytes, bytes, list[bytes]]] = []
    for call in calls:
        assert call.arguments
        assert len(set(call.streams)) == len(call.streams)
        if not call.too_wide:
            assert len(call.arguments) <= 2 * LUA_VALUES + 4
            found += operations(call)
            continue
        (stream,), (_, _, entry_id, _, *letter) = call.streams, call.arguments
        assert isinstance(entry_id, bytes)
        found.append(
            (Fate.DEAD_LETTERED, stream, entry_id, [part for part in letter if isinstance(part, bytes)])
        )
    expected = [
        (
            item.fate,
            item.entry.stream,
            item.entry.id,
            dead_letter_fields(item, NOW_MS) if item.rejection else [],
        )
        for item in settled
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    return calls


def test_nothing_to_settle_makes_no_call() -> None:
    assert check([]) == []


def test_a_usual_batch_is_one_call() -> None:
    settled = [done(n, b"s%d" % (n % 3)) for n in range(300)] + [rejected(n) for n in range(300, 310)]
    assert len(check(settled)) == 1


def test_each_fate_of_each_stream_is_settled_as_such() -> None:
    settled = [
        done(10 * n + m, stream, fate)
        for n, stream in enumerate((b"a", b"b"))
        for m, fate in enumerate(ACKNOWLEDGED)
    ]
    assert len(check(settled)) == 1


@pytest.mark.parametrize(
    "settled",
    [
        pytest.param([done(n) for n in range(20_000)], id="one stream"),
        pytest.param([done(n, b"s%d" % n) for n in range(5000)], id="a stream an entry"),
        pytest.param([rejected(n) for n in range(2000)], id="all rejected"),
        pytest.param([rejected(n, b"s%d" % n) for n in range(2000)], id="rejected, a stream an entry"),
        pytest.param([rejected(n, fields=[b"x"] * 3000) for n in range(20)], id="broad letters"),
        pytest.param(
            [done(n) if n % 2 else rejected(n, fields=[b"x"] * 2 * (n % 100)) for n in range(3000)],
            id="mixed",
        ),
    ],
)
def test_many_entries_are_cut_into_bounded_calls(settled: list[Settled]) -> None:
    assert len(check(settled)) > 1


def test_a_letter_with_too_many_fields_for_lua_goes_apart() -> None:
    settled = [rejected(1), rejected(2, b"wide", [b"x"] * 10_000), rejected(3), done(4)]
    calls = check(settled)
    wide = [call for call in calls if call.too_wide]
    assert [(call.streams, call.arguments[2]) for call in wide] == [([b"wide"], b"2-0")]


@pytest.mark.parametrize("extra", [-2, 0, 2, 4])
def test_the_broadest_letter_for_lua_is_within_its_limit(extra: int) -> None:
    header = len(dead_letter_fields(rejected(1, fields=[b"x", b"y"]), NOW_MS)) - 2
    fields = [b"x"] * (LUA_VALUES - header + extra)
    (call,) = check([rejected(1, fields=fields)])
    assert call.too_wide is (extra > 0)


def test_a_call_is_bounded_in_bytes_too() -> None:
    """Redis ends a connection whose query exceeds 1 GB (client-query-buffer-limit)."""
    ten_megabytes = bytes(10_000_000)
    settled = [rejected(n, fields=[b"value", ten_megabytes]) for n in range(300)]
    for call in plan(settled, NOW_MS):
        size = sum(len(argument) for argument in call.arguments if isinstance(argument, bytes))
        assert size < 256_000_000


def some_settled() -> st.SearchStrategy[Settled]:
    entries = st.builds(
        lambda stream, entry_id, fields: Entry(stream, entry_id, fields),
        st.sampled_from([b"a", b"b", b"c"]),
        st.uuids().map(lambda unique: unique.bytes),
        st.lists(st.binary(max_size=3), max_size=10).map(lambda half: [*half, *half]),
    )
    return st.one_of(
        st.builds(lambda entry, fate: Settled(entry, fate), entries, st.sampled_from(ACKNOWLEDGED)),
        entries.map(lambda entry: Settled(entry, Fate.DEAD_LETTERED, BAD)),
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(some_settled(), max_size=50))
def test_whatever_is_to_be_settled_each_entry_is_settled_once(settled: list[Settled]) -> None:
    check(settled)


# Dead letters


def header_of(letter: Sequence[bytes], original: int) -> dict[bytes, bytes]:
    head = letter[: len(letter) - original]
    return dict(zip(head[::2], head[1::2], strict=True))


def test_a_dead_letter_tells_what_it_was_and_why() -> None:
    item = rejected(7, b"mqtt_stream:d1:temp", [b"payload", b"NaN"])
    letter = dead_letter_fields(item, NOW_MS)
    assert header_of(letter, 2) == {
        b"original_stream": b"mqtt_stream:d1:temp",
        b"original_id": b"7-0",
        b"device_id": b"d1",
        b"sensor_type": b"temp",
        b"value": b"NaN",
        b"error": b"value_nan: the value is NaN",
        b"failed_at": b"1700000000.123",
        b"original_fields": b"1",
    }


def test_the_original_fields_stand_last_with_repeated_names_kept() -> None:
    fields = [b"value", b"1", b"value", b"\xff\x00", b"", b""]
    letter = dead_letter_fields(rejected(1, fields=fields), NOW_MS)
    assert letter[-6:] == fields
    assert header_of(letter, 6)[b"original_fields"] == b"3"


def test_the_header_leaves_the_value_to_the_original_where_it_has_one() -> None:
    letter = dead_letter_fields(rejected(1, fields=[b"value", b"NaN"]), NOW_MS)
    assert letter[::2].count(b"value") == 1


def test_a_field_whose_content_is_the_word_value_is_no_value() -> None:
    letter = dead_letter_fields(rejected(1, fields=[b"payload", b"value"]), NOW_MS)
    assert header_of(letter, 2)[b"value"] == b"NaN"


def test_an_entry_without_fields_has_a_dead_letter_of_header_alone() -> None:
    letter = dead_letter_fields(rejected(1, fields=[]), NOW_MS)
    assert header_of(letter, 0)[b"original_fields"] == b"0"


def test_a_rejection_that_cannot_be_encoded_still_has_a_dead_letter() -> None:
    bad = Rejection(Reason.INVALID_UTF8, "half \ud800 a pair", "\ud800", "\udfff", "\ud800")
    letter = dead_letter_fields(Settled(Entry(b"s", b"1-0", []), Fate.DEAD_LETTERED, bad), NOW_MS)
    assert header_of(letter, 0)[b"error"] == b"invalid_utf8: half ? a pair"


def test_what_was_not_rejected_has_no_dead_letter() -> None:
    with pytest.raises(ValueError, match="only a rejected entry"):
        dead_letter_fields(done(1), NOW_MS)


names = st.one_of(st.sampled_from(HEADER_NAMES), st.binary(max_size=5))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(names, st.one_of(names, st.binary(max_size=20))), max_size=12), st.booleans())
def test_a_replay_recovers_the_original_whatever_its_names(
    pairs: list[tuple[bytes, bytes]], with_value: bool
) -> None:
    """By the documented rule: read the header up to the first `original_fields`, take that many pairs."""
    original = [part for pair in pairs for part in pair]
    rejection = BAD if with_value else BAD._replace(value="")
    item = Settled(Entry(b"s", b"1-0", original), Fate.DEAD_LETTERED, rejection)
    letter = dead_letter_fields(item, NOW_MS)
    number = int(letter[2 * letter[::2].index(b"original_fields") + 1])
    assert number == len(pairs)
    assert letter[len(letter) - 2 * number :] == original
    header = letter[: len(letter) - 2 * number]
    assert header[-2] == b"original_fields"
    assert len(set(header[::2])) == len(header[::2])
    assert set(header[::2]) <= set(HEADER_NAMES)
