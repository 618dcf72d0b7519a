"""Whatever bytes arrive, `parse` answers, and what it accepts PostgreSQL can hold."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parse import Limits, Parser
from schema import Entry, EventKind, Parsed

NOW_US = 1_700_000_000_000_000
LIMITS = Limits(
    topic_templates=("pico/{sensor_type}/{device_id}", "devices/{device_id}/telemetry"),
    status_templates=("{owner}/{device_id}/status",),
    event_streams=tuple((f"events.{kind.name}", kind) for kind in EventKind),
    max_metadata_bytes=500,
    max_entry_bytes=5000,
    max_readings_per_entry=8,
)
SHARED = Parser(LIMITS)
LATEST_US = NOW_US + int(LIMITS.max_future_sec * 1_000_000)

examples = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Bytes

any_text = st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass"))
any_bytes = st.one_of(st.binary(max_size=40), any_text)
halves = st.integers(0, 2**64 - 1)
entry_ids = st.one_of(
    st.builds(lambda millis, sequence: b"%d-%d" % (millis, sequence), halves, halves),
    st.integers(0, 1_700_000_000_000).map(lambda millis: b"%d-0" % millis),
)
NAMES = (b"value", b"payload", b"topic", b"timestamp", b"metadata", b"mid")
streams = st.one_of(
    any_bytes,
    any_bytes.map(lambda rest: b"mqtt_stream:" + rest),
    st.builds(lambda device, sensor: b"mqtt_stream:%s:%s" % (device, sensor), any_bytes, any_bytes),
    st.just(b"mqtt_stream:d1:temp"),
    st.sampled_from([f"events.{kind.name}".encode() for kind in EventKind]),
)

# Nearly numbers, times and JSON

almost_numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(lambda number: repr(number).encode()),
    st.integers().map(lambda number: b"%d" % number),
    st.text("0123456789+-.,eExX_ 'naif\u00a0", max_size=12).map(str.encode),
    st.sampled_from([b"undefined", b"null", b"NaN", b"inf", b"true", b'"on"', b'""', b"0x1F", b"1e999"]),
)
almost_times = st.one_of(
    almost_numbers,
    st.datetimes().map(lambda moment: moment.isoformat().encode()),
    st.builds(
        "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}".format,
        st.one_of(st.integers(0, 9999), st.integers(1968, 2024)),
        st.integers(0, 13),
        st.integers(0, 32),
        st.sampled_from("Tt _"),
        st.sampled_from([0, 12, 22, 23, 24, 25]),
        st.sampled_from([0, 30, 58, 59, 60]),
        st.sampled_from([0, 30, 59, 60, 61]),
        st.sampled_from(["", ".5", ".123456", ".123456789", ".", ",5"]),
        st.sampled_from(["", "Z", "z", "+00:00", "-05:30", "+23:59", "+24:00", "+0100", "+01", "Y"]),
    ).map(str.encode),
    st.integers(0, 10**21).map(lambda number: b"%d" % number),
)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(st.characters(), max_size=10),
    st.text(st.characters(categories=["Cs", "Cc"]), max_size=3),
)
documents: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.sampled_from(["ts", "timestamp", "values", "value", "t"])),
            below,
            max_size=5,
        ),
    ),
    max_leaves=8,
)


def _dumps(document: Any, *, ascii_only: bool) -> bytes:
    """JSON, or nearly: NaN and Infinity as Python writes them, lone surrogates as they are."""
    return json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


json_texts = st.builds(_dumps, documents, ascii_only=st.booleans())


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """JSON with a piece cut out and something put in."""
    raw = draw(json_texts)
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, min(len(raw), start + 4)))
    return raw[:start] + draw(st.binary(max_size=3)) + raw[end:]


almost_json = st.one_of(json_texts, _damaged())
telemetry = st.builds(
    _dumps,
    st.fixed_dictionaries(
        {"ts": st.one_of(scalars, almost_times.map(lambda raw: raw.decode("utf-8", "replace")))},
        optional={"values": st.dictionaries(st.text(max_size=5), scalars, max_size=10), "a": scalars},
    ),
    ascii_only=st.booleans(),
)
topics = st.one_of(
    any_bytes,
    st.sampled_from([b"devices/d1/telemetry", b"pico/temp/d1", b"devices//telemetry", b"pico//d1"]),
    st.builds(lambda device: b"devices/%s/telemetry" % device, any_bytes),
    st.just(b"me/d1/status"),
    st.builds(lambda owner, device: b"%s/%s/status" % (owner, device), any_bytes, any_bytes),
)
deep = st.integers(1, 800).map(lambda levels: b'{"a":' * levels + b"1" + b"}" * levels)


def _entries(fields: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[Entry]:
    return st.builds(Entry, streams, entry_ids, fields)


def _pairs(
    required: dict[bytes, st.SearchStrategy[bytes]], optional: dict[bytes, st.SearchStrategy[bytes]]
) -> st.SearchStrategy[list[bytes]]:
    return st.fixed_dictionaries(required, optional=optional).map(
        lambda fields: [part for pair in fields.items() for part in pair]
    )


wild_fields = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(NAMES), any_bytes), st.one_of(any_bytes, almost_json, almost_times)
    ),
    max_size=8,
).map(lambda pairs: [part for pair in pairs for part in pair])
flat_fields = _pairs(
    {b"value": st.one_of(almost_numbers, any_bytes, st.just(b"1"))},
    {b"timestamp": almost_times, b"metadata": st.one_of(almost_json, deep), b"mid": any_bytes},
)
message_fields = _pairs(
    {b"topic": topics, b"payload": st.one_of(almost_json, telemetry, almost_numbers, deep)},
    {b"timestamp": almost_times, b"mid": any_bytes},
)


def check_storable(parsed: Parsed, limits: Limits = LIMITS, latest_us: int = LATEST_US) -> None:
    """Every reading is a row that PostgreSQL takes, and so is a status."""
    if parsed.status is not None:
        assert 1 <= len(parsed.status.device_id) <= 100
        assert 0 <= parsed.status.time_us <= latest_us
    assert len(parsed.owner) <= 200
    assert "\x00" not in parsed.owner
    for reading in parsed.readings:
        for name in (reading.device_id, reading.sensor_type):
            assert 1 <= len(name) <= 100
            assert "\x00" not in name
            name.encode("utf-8")
        assert 0 <= reading.timestamp_us <= latest_us
        assert len(reading.message_id) == 16
        assert (reading.value is None) != (reading.value_text is None)
        if reading.value is not None:
            assert type(reading.value) is float
            assert math.isfinite(reading.value)
        if reading.value_text is not None:
            assert reading.value_text
            assert "\x00" not in reading.value_text
            reading.value_text.encode("utf-8")
        if reading.metadata is not None:
            assert len(reading.metadata) <= limits.max_metadata_bytes
            check_jsonb(reading.metadata)


def check_jsonb(raw: bytes) -> None:
    """A JSON object by the letter of RFC 8259, without what `jsonb` cannot hold."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    document = json.loads(raw.decode("utf-8"), parse_constant=refuse)
    assert isinstance(document, dict)
    plain = json.dumps(document, ensure_ascii=False)
    assert "\\u0000" not in plain.replace("\\\\", "")
    plain.encode("utf-8")


def check_rejections(parsed: Parsed) -> None:
    for rejection in parsed.rejections:
        assert rejection.sentence
        assert len(rejection.value) <= 200
        assert len(rejection.device_id) <= 100
        assert len(rejection.sensor_type) <= 100


def check(entry: Entry) -> None:
    parsed = SHARED.parse(entry, NOW_US)
    whole = [one for one in (parsed.status, parsed.event) if one is not None]
    assert parsed.readings or parsed.rejections or whole or b"" in entry.fields[1::2]  # a cleared status
    assert not whole or (len(whole), parsed.readings, parsed.rejections) == (1, (), ())
    check_storable(parsed)
    check_rejections(parsed)
    assert SHARED.parse(entry, NOW_US) == parsed
    assert Parser(LIMITS).parse(entry, NOW_US) == parsed


@examples
@given(_entries(wild_fields))
def test_whatever_bytes_arrive_parse_answers(entry: Entry) -> None:
    check(entry)


@examples
@given(_entries(flat_fields))
def test_whatever_a_value_looks_like_it_is_stored_or_rejected(entry: Entry) -> None:
    check(entry)


@examples
@given(_entries(message_fields))
def test_whatever_a_message_holds_its_members_are_stored_or_rejected(entry: Entry) -> None:
    check(entry)


@examples
@given(st.one_of(almost_json, deep))
def test_metadata_that_is_taken_is_what_jsonb_takes(metadata: bytes) -> None:
    check(Entry(b"mqtt_stream:d1:temp", b"1700000000000-0", [b"value", b"1", b"metadata", metadata]))


@examples
@given(almost_times)
def test_a_time_that_is_taken_lies_between_1970_and_the_limit(timestamp: bytes) -> None:
    check(Entry(b"mqtt_stream:d1:temp", b"1700000000000-0", [b"value", b"1", b"timestamp", timestamp]))


@examples
@given(st.dictionaries(st.text(min_size=1, max_size=8), scalars, min_size=1, max_size=8))
def test_every_member_of_an_object_is_answered_for(members: dict[str, Any]) -> None:
    """By a reading or a rejection of its own: none is lost, and a bad one takes no other with it."""
    members = {name: value for name, value in members.items() if name not in ("ts", "timestamp", "values")}
    payload = _dumps(members, ascii_only=True)
    entry = Entry(
        b"mqtt_stream:shard:1", b"1700000000000-0", [b"topic", b"devices/d1/telemetry", b"payload", payload]
    )
    parsed = SHARED.parse(entry, NOW_US)
    assert len(parsed.readings) + len(parsed.rejections) == max(len(members), 1)
    good = {
        name
        for name, value in members.items()
        if isinstance(value, float | int) and abs(value) < 1e300 and name.isascii() and name.isprintable()
    }
    assert {name for name in good if name.strip()} <= {reading.sensor_type for reading in parsed.readings}
