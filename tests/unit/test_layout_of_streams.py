"""What workers read from the bridge's entries is what the message said, in both layouts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqtt.intake import Message, identity_of
from mqtt.layout import Addition, Composer, Router
from parse import Limits, Parser
from schema import Entry, EventKind, Parsed, Reason
from setting_types import Layout

NOW_US = 1_700_000_000_000_000
EVENTS = "mqtt_stream:devices:deleted"
LIMITS = Limits(
    topic_templates=("devices/{device_id}/telemetry", "{user_id}/{device_id}/feeds/{sensor_type}"),
    status_templates=("devices/{device_id}/status",),
    event_streams=((EVENTS, EventKind.DEVICE_DELETED),),
    max_entry_bytes=2000,
    max_readings_per_entry=5,
)
RESERVED = ("mqtt_stream:failed", EVENTS)


def message(topic: str, payload: bytes, arrived_us: int = NOW_US) -> Message:
    return Message(topic, payload, 1, arrived_us, 1, identity_of(topic, payload))


def composed(layout: Layout, one: Message, limits: Limits = LIMITS, shards: int = 16) -> list[Addition]:
    return list(Composer(layout, limits, Router(limits, shards), RESERVED).compose(one))


def read(addition: Addition, limits: Limits = LIMITS, now_us: int = NOW_US) -> Parsed:
    """As a worker reads it."""
    return Parser(limits).parse(Entry(addition.stream, b"1700000000001-7", addition.fields), now_us)


def said(parsed: Parsed) -> list[tuple[object, ...]]:
    return [
        (
            reading.device_id,
            reading.sensor_type,
            reading.timestamp_us,
            reading.message_id,
            repr(reading.value),
            reading.value_text,
            reading.metadata,
        )
        for reading in parsed.readings
    ]


def whole(one: Message) -> dict[bytes, bytes]:
    return {
        b"topic": one.topic.encode(),
        b"payload": one.payload,
        b"timestamp": b"%d" % one.arrived_us,
        b"mid": one.identity.hex().encode(),
    }


def as_dict(addition: Addition) -> dict[bytes, bytes]:
    return dict(zip(addition.fields[::2], addition.fields[1::2], strict=True))


LETTERS = st.characters(exclude_characters="/\x00", exclude_categories=["Cs"])
ODD = st.sampled_from(list("ab:*?% \n.é漢\U0001f600"))
names = st.one_of(
    st.sampled_from(["d1", "failed", "devices", "deleted", "shard", "", ":", "a:b", "x" * 100, "x" * 101]),
    st.text(st.one_of(ODD, LETTERS), max_size=8),
)
topics = st.one_of(
    st.builds("devices/{}/telemetry".format, names),
    st.builds("{}/{}/feeds/{}".format, names, names, names),
    st.builds("devices/{}/status".format, names),
    st.builds("{}/{}".format, names, names),
)
times = st.one_of(
    st.sampled_from([0, 1, 12.5, 1000, 99_999_999, 1_700_000_000, 1_700_000_000_123, 9e9, "x", None]),
    st.integers(0, NOW_US // 1_000_000),
    st.sampled_from(["1970-01-01T00:00:01Z", "1972-12-31T23:59:59.999999Z", "2023-01-02 03:04:05.6"]),
)
values: st.SearchStrategy[Any] = st.one_of(
    st.floats(),
    st.integers(-(10**20), 10**20),
    st.booleans(),
    st.text(st.one_of(ODD, st.sampled_from(list('"\\\x01\x7f\u2028')), LETTERS), max_size=6),
    st.sampled_from(
        [None, "nan", "\x00", "é" * 600, "\U0001f600" * 300, -0.0, 5e-324, 1.7976931348623157e308]
    ),
)
good = st.one_of(st.floats(-1e300, 1e300), st.booleans(), st.text(ODD, min_size=1, max_size=6))
members = st.one_of(
    st.dictionaries(st.text(ODD, min_size=1, max_size=4), good, min_size=1, max_size=4),
    st.dictionaries(st.one_of(names, st.sampled_from(["value", "metadata"])), values, max_size=6),
)
documents = st.one_of(
    members,
    st.builds(lambda found, time: {"ts": time, "values": found}, members, times),
    st.builds(lambda found, time: {**found, "timestamp": time}, members, times),
    st.builds(lambda value, time: {"value": value, "timestamp": time}, values, times),
)
payloads = st.one_of(
    st.builds(
        lambda document, ascii_only: json.dumps(document, ensure_ascii=ascii_only).encode(),
        documents,
        st.booleans(),
    ),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
)
arrivals = st.one_of(st.just(NOW_US), st.integers(0, 2 * 10**14), st.integers(0, NOW_US))


@settings(max_examples=200, deadline=None)
@given(topics, payloads, arrivals, st.sampled_from(Layout))
def test_workers_read_from_the_entries_what_the_message_says(
    topic: str, payload: bytes, arrived_us: int, layout: Layout
) -> None:
    one = message(topic, payload, arrived_us)
    (original,) = composed(Layout.SHARDS, one)
    expected = read(original)
    additions = composed(layout, one)
    parsed = [read(addition) for addition in additions]
    assert [row for part in parsed for row in said(part)] == said(expected)
    assert [bad.reason for part in parsed for bad in part.rejections] == [
        bad.reason for bad in expected.rejections
    ]
    assert [part.status for part in parsed if part.status] == ([expected.status] if expected.status else [])
    assert not any(part.event or (part.readings and part.own_id) for part in parsed)
    assert {addition.stream for addition in additions}.isdisjoint(name.encode() for name in RESERVED)
    if expected.rejections or expected.status:
        assert additions == [original]


@settings(max_examples=50, deadline=None)
@given(topics, payloads, arrivals)
def test_a_shard_gets_the_whole_message_byte_for_byte(topic: str, payload: bytes, arrived_us: int) -> None:
    one = message(topic, payload, arrived_us)
    (addition,) = composed(Layout.SHARDS, one)
    assert addition.stream in {b"mqtt_stream:shard:%d" % number for number in range(16)}
    fields = as_dict(addition)
    assert {name: fields[name] for name in (b"topic", b"payload", b"mid")} == {
        name: value for name, value in whole(one).items() if name != b"timestamp"
    }
    # The time of arrival as workers read it, whatever the clock said: one set to 1970 included.
    bare = read(Addition(b"mqtt_stream:d1:t", [b"value", b"1", b"timestamp", fields[b"timestamp"]]))
    assert [reading.timestamp_us for reading in bare.readings] == [arrived_us]


@settings(max_examples=50, deadline=None)
@given(names, names, names, st.integers(1, 64))
def test_all_of_one_device_goes_into_one_shard(device: str, owner: str, sensor: str, shards: int) -> None:
    router = Router(LIMITS, shards)
    routes = [
        router.route(topic)
        for topic in (
            f"devices/{device}/telemetry",
            f"{owner}/{device}/feeds/{sensor}",
            f"devices/{device}/status",
        )
    ]
    assert len({route.stream for route in routes}) == 1
    assert routes == [
        router.route(topic)
        for topic in (
            f"devices/{device}/telemetry",
            f"{owner}/{device}/feeds/{sensor}",
            f"devices/{device}/status",
        )
    ]


def test_devices_spread_over_all_shards() -> None:
    router = Router(LIMITS, 16)
    streams = [router.route(f"devices/d{number}/telemetry").stream for number in range(4000)]
    counts = [streams.count(stream) for stream in set(streams)]
    assert len(counts) == 16
    assert min(counts) > 4000 / 16 / 2


def test_the_shard_of_a_device_stays_the_same_over_versions() -> None:
    """Else a restart would put a device's messages beside each other in two streams."""
    router = Router(LIMITS, 16)
    assert [router.route(f"devices/{name}/telemetry").stream for name in ("d1", "kitchen", "é")] == [
        b"mqtt_stream:shard:6",
        b"mqtt_stream:shard:4",
        b"mqtt_stream:shard:14",
    ]


@pytest.mark.parametrize(
    ("topic", "matched", "status"),
    [
        ("devices/d1/telemetry", True, False),
        ("u1/d1/feeds/t", True, False),
        ("devices/d1/status", True, True),
        ("devices/d1/other", False, False),
        ("devices/d1/telemetry/x", False, False),
        (f"{'u' * 201}/d1/feeds/t", False, False),
    ],
)
def test_a_topic_decides_where_a_message_goes(topic: str, matched: bool, status: bool) -> None:
    route = Router(LIMITS, 16).route(topic)
    assert (route.matched, route.status) == (matched, status)


def test_a_message_becomes_one_entry_a_series() -> None:
    one = message("u1/d1/feeds/t", b'{"ts": 1700000000, "values": {"a": 21.5, "b": "open"}}')
    mid = one.identity.hex().encode()
    assert composed(Layout.SERIES, one) == [
        (
            b"mqtt_stream:d1:t.a",
            [b"value", b"21.5", b"timestamp", b"1700000000000000", b"mid", mid],
        ),
        (
            b"mqtt_stream:d1:t.b",
            [b"value", b'"open"', b"timestamp", b"1700000000000000", b"mid", mid],
        ),
    ]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("devices/d1/telemetry", b'{"a": 1, "b": null}'),
        ("devices/d1/telemetry", b'{"a": 1, "b": NaN}'),
        ("devices/d1/telemetry", b"{broken"),
        ("devices/d1/telemetry", b"21.5"),  # nobody names the sensor
        ("devices/d1/telemetry", b'{"a:b": 1}'),  # a key that would be read as another series
        ("devices/:d1/telemetry", b'{"a": 1}'),
        ("devices/failed/telemetry", b""),
        ("devices/d1/status", b"online"),
        ("devices/d1/unknown", b"1"),
        ("devices/devices/telemetry", b'{"deleted": 1, "other": 2}'),  # the stream of device events
        ("devices/d1/telemetry", b'{"a": 1, "a": 2}'),
        ("devices/d1/telemetry", b'{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}'),
    ],
)
def test_what_cannot_be_told_as_plain_readings_goes_as_it_is(topic: str, payload: bytes) -> None:
    one = message(topic, payload)
    assert composed(Layout.SERIES, one) == composed(Layout.SHARDS, one)


@pytest.mark.parametrize("seconds", [0, 1, 12, 86_400, 99_999_999, 100_000_000, 1_700_000_000])
def test_a_device_whose_clock_was_never_set_keeps_its_time(seconds: int) -> None:
    """Unix time is told apart by its size: few microseconds would be read as seconds."""
    one = message("devices/d1/telemetry", b'{"ts": %d, "a": 1}' % seconds)
    readings = [reading for addition in composed(Layout.SERIES, one) for reading in read(addition).readings]
    assert [reading.timestamp_us for reading in readings] == [seconds * 1_000_000]


def test_a_message_at_the_limit_of_an_entry_stays_within_it() -> None:
    one = message("devices/d1/telemetry", json.dumps({"a": "é" * 900}, ensure_ascii=False).encode())
    (addition,) = composed(Layout.SERIES, one)
    assert addition.stream == b"mqtt_stream:d1:a"
    assert [reading.value_text for reading in read(addition).readings] == ["é" * 900]


def test_a_message_whose_reading_would_outgrow_an_entry_goes_as_it_is() -> None:
    limits = Limits(topic_templates=("{device_id}",), max_entry_bytes=91)
    one = message("d", b'{"ts":1,"a":1e15}')
    (addition,) = composed(Layout.SERIES, one, limits)
    assert [reading.value for reading in read(addition, limits).readings] == [1e15]
    assert as_dict(addition)[b"payload"] == one.payload


def test_a_message_too_large_for_an_entry_is_handed_on_for_workers_to_reject() -> None:
    one = message("devices/d1/telemetry", b'{"a": "%s"}' % (b"x" * 3000))
    (addition,) = composed(Layout.SERIES, one)
    assert [bad.reason for bad in read(addition).rejections] == [Reason.ENTRY_TOO_LARGE]


def test_many_topics_do_not_grow_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqtt.layout._CACHED", 10)
    router = Router(LIMITS, 4)
    composer = Composer(Layout.SERIES, LIMITS, router, RESERVED)
    for number in range(100):
        (one,) = composer.compose(message(f"devices/d{number}/telemetry", b'{"a": 1}'))
        assert one.stream == b"mqtt_stream:d%d:a" % number
    assert len(router._known) <= 10
    assert len(composer._keys) <= 10
