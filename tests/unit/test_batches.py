"""A batch parsed in columns says what its entries say one by one, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import columns
import values
from batches import parse_batch
from entries import Entries
from fates import acknowledged, decide, letters
from parse import Limits, Parser
from schema import Bad, Batch, Entry, EventKind, Fate, Parsed, Reading, Reason, Rejection, RowFate
from tests.support import is_long

NOW_US = 1_700_000_000_000_000
EVENTS = "mqtt_stream:events"
LIMITS = Limits(
    topic_templates=("devices/{device_id}/telemetry", "{place_id}/d/{device_id}/{sensor_type}"),
    status_templates=("devices/{device_id}/status",),
    event_streams=((EVENTS, EventKind.DEVICE_DELETED),),
    max_entry_bytes=5_000,
    max_readings_per_entry=8,
)
USUAL = [b"1", b"-0.5", b"21.25", b"1e3", b"0", b"999999999999999999999", b"3.0000000000000004"]
STRANGE = [
    b"", b" ", b"+5", b".5", b"5.", b"007", b" 1 ", b"1,2", b"1]", b"[1", b"]", b"nan", b"inf", b"1e999",
    b"-1e999", b"1e-999", b"0x10", b"1_0", b"true", b"false", b'"on"', b"null", b"undefined", b"\xff",
    b"\x00",
    b"1\x00", b"-", b"-0", b"9" * 399, b"9" * 401, b"0." + b"1" * 500, b"{}", b"1 2", b"\t1\r\n", b"1\x0b",
]  # fmt: skip
TIMES = [
    b"1690000000", b"1690000000123", b"1690000000123456", b"1690000000123456789", b"0", b"99999999999",
    b"100000000000", b"1690000000.25", b"2023-07-22T04:26:40Z", b"2023-07-22T04:26:40.5Z",
]  # fmt: skip
STRANGE_TIMES = [
    b"", b"-1", b"1e9", b"1690000000.1234567", b"2023-07-22T04:26:40", b"2023-07-22T04:26:40+02:00",
    b"2023-07-22 04:26:40Z", b"2023-07-22T04:26:60Z", b"2023-13-22T04:26:40Z", b"1969-12-31T23:59:59Z",
    b"2023-07-22T04:26:40.1234567Z", b"2023-07-22T04:26:40\\u005a", b'2023-07-22T04:26:40Z","',
    b"4102444800", b"99999999999999999999", b"100000000000000000000", b"nan", b"2016-12-31T23:59:60Z",
    b"1,2", b"0000-01-01",
    b"2023-07-22T04:26:40.123456Z ", b"0000-07-22T04:26:40Z", b"true", b"\xff",
]  # fmt: skip
MIDS = [b"", b"undefined", b"0" * 32, b"00061F3A2B4C5D6EF4430000B1A10001", b"m1", b"m2"]


def pairs(names: Sequence[bytes], parts: Sequence[bytes]) -> list[bytes]:
    return [part for pair in zip(names, parts, strict=True) for part in pair]


def often(usual: list[bytes], strange: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(*[st.sampled_from(usual)] * 12, st.sampled_from(strange), st.binary(max_size=12))


streams = st.sampled_from(
    [
        b"mqtt_stream:a:t",
        b"mqtt_stream:a:b:t",
        b"mqtt_stream:b:t",
        b"mqtt_stream:bad",
        b"other",
        EVENTS.encode(),
    ]
)
flat = st.tuples(often(USUAL, STRANGE), often(TIMES, STRANGE_TIMES), st.sampled_from(MIDS))
shapes = st.sampled_from(
    [(b"value",), (b"value", b"timestamp"), (b"timestamp", b"value"), (b"value", b"timestamp", b"mid")]
)
others = st.one_of(
    st.lists(st.binary(max_size=9), max_size=6).map(lambda fields: [*fields, *fields]),
    st.just([b"value", b"1", b"value", b"2"]),
    st.just([b"value", b"1", b"metadata", b'{"a": 1}']),
    st.just([b"value", b"1", b"timestamp", b"1690000000", b"payload", b"2"]),
    st.just([b"topic", b"devices/d/telemetry", b"payload", b'{"a": 1, "b": NaN}']),
    st.just([b"topic", b"devices/d/status", b"payload", b"online"]),
    st.just([b"topic", b"home/d/x/t", b"payload", b"5"]),
    st.just([b"value", b"1" * 6_000]),
)


PAYLOADS = [
    b'{"ts": 1690000000, "values": {"a": 1, "b": 2.5}}', b'{"values": {"a": 1}}',
    b'{"values":{"a":-1e3},"ts":1.5}',
    b'{"ts": 1690000000123, "values": {"c": 18446744073709551616}}',
    b"21.5", b"-3", b"0", b'{"a": 1.5}', b'{"a": 1, "b": -2.5, "ts": 1690000000}', b'{"value": 7}',
    b'{"value": 7.25, "timestamp": 1690000000123}', b'{"timestamp": 1690000000.5, "x": 1}',
]  # fmt: skip
STRANGE_PAYLOADS = [
    b"", b"{}", b"[]", b" 5", b"5 ", b"nan", b"on", b"true", b"1,2", b"1e999", b"[1", b"\xa1", b"\x9f\xff",
    b'{"ts": 1690000000}', b'{"ts": 1690000000, "timestamp": 1, "a": 1}', b'{"a": 1, "a": 2}', b'{"": 1}',
    b'{"value": 1, "ts": -0.0}', b'{"value": 1, "ts": 1690000000123456789}', b'{"value": 1, "metadata": 2}',
    b'{"value": 1, "ts": 1e9}', b'{"values": 5}', b'{"a": {"b": 1}}', b'{"a": 1, "b": true}',
    b'{"a": "1:2"}',
    b'{"a": 1}}', b'{"a": 1},{"a": 2}', b'{"value": 1, "value": 2}', b'{"a" : 1}', b'{"ts": 1e300, "a": 1}',
    b'{"timestamp": 9007199254740993, "a": 1}', b'{"a": 1' + b"0" * 400 + b"}", b'{"metadata": 1}',
    b'{"value": 1, "metadata": null}', b'{"values": 1, "ts": 1690000000}',
    b'{"values": {}}', b'{"values": {"a": true}}', b'{"values": {"a": "on"}}',
    b'{"values": {"a": 1, "a": 2}}', b'{"values": {"a": 1}, "ts": 1, "ts": 2}', b'{"values": {"": 1}}',
    b'{"values": {"a": NaN}}', b'{"values": {"a": {"b": 1}}}', b'{"values": {"a": 1}, "more": 2}',
    b'{"ts": null, "values": {"a": 1}}', b'{"ts": "2023-07-22T04:26:40Z", "values": {"a": 1}}',
    b'{"ts": 9999999999, "values": {"a": 1}}', b'{"ts": -1, "values": {"a": 1}}',
    b'{"values": {"a": 1e999}}',
    b'{"values": {"a\\u0000": 1}}', b'{"values": {"' + b"x" * 101 + b'": 1}}',
    b'{"values": {"a": 1}},{"values": {}}',
    b'{"values" : {"a" : 1}}', b'{"values": {"a": 1, "b": null}}', b'{"ts": true, "values": {"a": 1}}',
    b'{"ts": 1690000000.7, "values": {"a": 1}}', b'{"a": 1, "b": 2}', b"\xff",
    b'{"values": {"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9}}',
]  # fmt: skip
TOPICS = [
    b"devices/d1/telemetry", b"devices/d2/telemetry", b"home/d/d3/t", b"unknown", b"devices/d1/status", b"",
]  # fmt: skip
message = st.tuples(
    st.sampled_from([*TOPICS[:3] * 5, *TOPICS]),
    often(PAYLOADS, STRANGE_PAYLOADS),
    often(TIMES, STRANGE_TIMES),
    st.sampled_from(MIDS),
)
message_shapes = st.sampled_from(
    [
        (b"topic", b"payload"),
        (b"topic", b"payload", b"timestamp"),
        (b"mid", b"topic", b"payload", b"timestamp"),
    ]
)


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[bytes, list[list[object]]]]:
    """Blocks of entries, most of them alike."""
    of_messages = draw(st.booleans())
    names = draw(message_shapes if of_messages else shapes)
    every = (
        (b"topic", b"payload", b"timestamp", b"mid") if of_messages else (b"value", b"timestamp", b"mid")
    )
    found: list[tuple[bytes, list[list[object]]]] = []
    number = 0
    for stream in draw(st.lists(streams, min_size=1, max_size=6)):
        rows: list[list[object]] = []
        for parts in draw(st.lists(message if of_messages else flat, min_size=1, max_size=12)):
            number += 1
            odd = draw(st.integers(0, 25)) == 0
            chosen = dict(zip(every, parts, strict=True))
            fields = draw(others) if odd else pairs(names, [chosen[name] for name in names])
            rows.append([b"%d-%d" % (1_690_000_000_000 + number, number % 3), fields])
        found.append((stream, rows))
    return found


def one_by_one(entries: Sequence[Entry]) -> list[Parsed]:
    parser = Parser(LIMITS)
    return [parser.parse(entry, NOW_US) for entry in entries]


def alike(parsed: Sequence[Parsed]) -> list[Parsed]:
    """With tuples and lists told no longer apart."""
    return [one._replace(readings=list(one.readings), rejections=list(one.rejections)) for one in parsed]


def told(batch: Batch) -> list[Parsed]:
    """What a batch says of each entry, in the form of one parsed by itself."""
    readings = iter(batch.readings)
    found: list[Parsed] = []
    for place in range(len(batch.entries)):
        parsed = batch.others.get(place)
        if parsed is None:
            found.append(Parsed((next(readings),), (), place not in batch.carried))
        else:
            assert list(parsed.readings) == [next(readings) for _ in parsed.readings]
            found.append(parsed)
    assert next(readings, None) is None
    return found


@settings(max_examples=400 if is_long() else 120, deadline=None)
@given(batches())
def test_a_batch_says_what_its_entries_say_one_by_one(
    blocks: list[tuple[bytes, list[list[object]]]],
) -> None:
    entries = Entries(blocks)
    batch = parse_batch(Parser(LIMITS), entries, NOW_US)
    assert alike(told(batch)) == alike(one_by_one(entries))
    assert parse_batch(Parser(LIMITS), list(entries), NOW_US).readings == batch.readings
    assert not batch.distinct or len({one.key for one in batch.readings}) == len(batch.readings)


@pytest.mark.parametrize("bad", range(0, 300, 37))
def test_one_strange_value_among_many_is_found_wherever_it_stands(bad: int) -> None:
    rows = [[b"%d-0" % (n + 1), [b"value", b"NaN" if n == bad else b"%d" % n]] for n in range(300)]
    batch = parse_batch(Parser(LIMITS), Entries([(b"mqtt_stream:a:t", rows)]), NOW_US)
    assert list(batch.others) == [bad]
    assert [one.value for one in batch.readings] == [float(n) for n in range(300) if n != bad]
    assert batch.distinct


def test_a_batch_without_entries_says_nothing() -> None:
    assert parse_batch(Parser(LIMITS), [], NOW_US) == Batch([], [], {}, distinct=True, carried=set())


@given(st.lists(often(USUAL, STRANGE), max_size=40))
def test_a_column_of_numbers_is_what_each_of_its_texts_is(column: list[bytes]) -> None:
    def alone(raw: bytes) -> float | None:
        try:
            return values.scalar(raw)[0]
        except Bad:
            return None

    for raw, found in zip(column, columns.numbers(column), strict=True):
        assert found is None or found == alone(raw)


@given(st.lists(often(TIMES, STRANGE_TIMES), max_size=40))
def test_a_column_of_times_is_what_each_of_its_texts_is(column: list[bytes]) -> None:
    def alone(raw: bytes) -> int | None:
        try:
            return values.check_time(values.timestamp(raw), NOW_US)
        except Bad:
            return None

    for raw, found in zip(column, columns.times(column, NOW_US), strict=True):
        assert found is None or found == alone(raw)


@pytest.mark.parametrize(
    "column",
    [
        [b"1690000000", b"1690000001"],
        [b"1690000000123", b"1690000000124"],
        [b"1690000000123456"],
        [b"1690000000123456789"],
        [b"1690000000.5", b"1690000001"],
        [b"2023-07-22T04:26:40Z", b"2023-07-22T04:26:40.123456Z"],
    ],
)
def test_usual_times_are_decoded_together(column: list[bytes]) -> None:
    assert columns.times(column, NOW_US) == [values.timestamp(raw) for raw in column]


def test_identities_are_the_halves_of_the_entry_ids() -> None:
    ids = [b"1700000000000-3", b"0-1", b"18446744073709551615-18446744073709551615"]
    expected = [
        first.to_bytes(8, "big") + second.to_bytes(8, "big")
        for first, second in map(values.entry_id_parts, ids)
    ]
    assert columns.identities(ids) == expected


def entries_of(count: int) -> Entries:
    half = count // 2
    rows = [[b"%d-0" % n, [b"value", b"%d" % n]] for n in range(1, count + 1)]
    return Entries([(b"mqtt_stream:a:t", rows[:half]), (b"mqtt_stream:b:t", rows[half:])])


def test_entries_in_blocks_are_the_entries_in_a_row() -> None:
    entries = entries_of(7)
    plain = list(entries)
    assert [entries[n] for n in range(-7, 7)] == [plain[n] for n in range(-7, 7)]
    assert entries[2:6] == plain[2:6]
    assert entries[::-3] == plain[::-3]
    assert entries == plain
    assert entries != plain[1:]
    with pytest.raises(IndexError):
        entries[7]


@given(st.lists(st.sampled_from([*RowFate]), min_size=8, max_size=8), st.booleans())
def test_what_becomes_of_a_batch_in_columns_is_what_becomes_of_its_entries(
    rows: list[RowFate], retried: bool
) -> None:
    entries = entries_of(8)
    batch = parse_batch(Parser(LIMITS), entries, NOW_US)
    alone = Batch.of(list(entries), one_by_one(entries))
    assert decide(batch, rows, retried) == decide(alone, rows, retried)
    everything = decide(batch, None, retried)
    assert everything == decide(alone, [RowFate.STORED] * 8, retried)
    assert {item.fate for item in everything.settled} == {Fate.STORED}


def test_a_reading_made_in_a_column_is_a_reading() -> None:
    batch = parse_batch(Parser(LIMITS), entries_of(2), NOW_US)
    assert all(type(one) is Reading for one in batch.readings)
    assert batch.readings[0]._asdict()["sensor_type"] == "t"


@given(st.lists(st.sampled_from([None, *RowFate]), min_size=8, max_size=8))
def test_what_is_acknowledged_in_blocks_is_what_is_acknowledged_one_by_one(
    answers: list[RowFate | None],
) -> None:
    bad = Rejection(Reason.CONFLICT, "another value")
    batch = parse_batch(Parser(LIMITS), entries_of(8), NOW_US)
    settled = decide(batch, [answer or bad for answer in answers], retried=False).settled
    in_blocks, one_by_one = acknowledged(settled), acknowledged(list(settled))
    assert {key: sorted(ids) for key, ids in in_blocks.items()} == {
        key: sorted(ids) for key, ids in one_by_one.items()
    }
    assert list(letters(settled)) == list(letters(list(settled)))
    assert len(list(letters(settled))) == answers.count(None)


def test_usual_payloads_are_decoded_together() -> None:
    found = columns.payloads([one for one in PAYLOADS if b"18446744073709551616" not in one])
    assert None not in found


def test_halves_of_payloads_that_fit_together_shift_no_neighbour() -> None:
    payloads = [
        b'{"values":{"a":1', b'"b":2}}', *(b'{"values":{"t":%d}}' % n for n in range(1, 5)),
        b'{"values":{"t":98}},{"values":{"t":99}}', b'{"values":{"a}', b'{b":1}}',
        b'{"values" :{"a":1,"a":2}}',
    ]  # fmt: skip
    rows = [
        [b"1690000000001-%d" % n, [b"topic", b"devices/d%d/telemetry" % n, b"payload", payload]]
        for n, payload in enumerate(payloads)
    ]
    entries = Entries([(b"mqtt_stream:shard:1", rows)])
    batch = parse_batch(Parser(LIMITS), entries, NOW_US)
    assert alike(told(batch)) == alike(one_by_one(entries))


@pytest.mark.parametrize("strange", [b" 1690000000", b"1690000000\n", b"1690000000." + b"1" * 80])
def test_a_time_is_refused_among_others_as_it_is_by_itself(strange: bytes) -> None:
    rows = [
        [b"1690000000001-%d" % n, [b"value", b"1", b"timestamp", time]]
        for n, time in enumerate([b"1690000000", strange, b"1690000001"])
    ]
    entries = Entries([(b"mqtt_stream:a:t", rows)])
    assert alike(told(parse_batch(Parser(LIMITS), entries, NOW_US))) == alike(one_by_one(entries))


@pytest.mark.parametrize("answers", [None, [RowFate.STORED] * 2])
def test_an_entry_of_which_a_part_is_stored_is_told_from_one_that_is_bad_as_a_whole(
    answers: list[RowFate] | None,
) -> None:
    fields = (
        [b"topic", b"devices/d/telemetry", b"payload", payload] for payload in (b'{"a":1,"b":NaN}', b"x=")
    )
    rows: list[list[object]] = [[b"%d-0" % n, one] for n, one in enumerate(fields, 1)]
    rows.append([b"3-0", [b"topic", b"devices/d/telemetry", b"payload", b'{"values": {"a": 2}}']])
    batch = parse_batch(Parser(LIMITS), Entries([(b"mqtt_stream:shard:1", rows)]), NOW_US)
    outcome = decide(batch, answers, retried=False)
    assert [item.fate for item in outcome.settled] == [Fate.DEAD_LETTERED, Fate.DEAD_LETTERED, Fate.STORED]
    assert outcome.partly == {0}
