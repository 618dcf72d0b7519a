"""From an entry to its readings and rejections: both entry forms, and an example of every reason."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from itertools import count

import pytest

from parse import MAX_FIELDS, Limits, Parser, stream_names
from schema import Bad, DeviceStatus, Entry, EventKind, Parsed, PayloadFormat, Reading, Reason, Rejection
from tests.payload_examples import sparkplug

NOW_US = 1_700_000_000_000_000
ENTRY_ID = b"1700000000000-3"
OWN_ID = (1_700_000_000_000).to_bytes(8, "big") + (3).to_bytes(8, "big")
LIMITS = Limits(
    topic_templates=(
        "pico/{sensor_type}/{device_id}",
        "{place_id}/devices/{device_id}/telemetry",
        "tele/{device_id}/SENSOR",
        "spBv1.0/{owner}/NDATA/{device_id}",
    ),
    payload_formats=(
        ("tele/+/SENSOR", PayloadFormat.TASMOTA),
        ("spBv1.0/#", PayloadFormat.SPARKPLUG_B),
    ),
    status_templates=("{place_id}/devices/{device_id}/status", "{device_id}/status"),
    event_streams=(
        ("devices.threshold.created", EventKind.THRESHOLD_CREATED),
        ("devices.device.deleted", EventKind.DEVICE_DELETED),
        ("mqtt_stream:devices:deleted", EventKind.DEVICE_DELETED),
    ),
    max_readings_per_entry=100,
)
TELEMETRY = b"home/devices/d1/telemetry"
SHARD = b"mqtt_stream:shard:7"


def fields_of(**fields: bytes | str) -> list[bytes]:
    """Names and values in turn, as Redis has them."""
    found: list[bytes] = []
    for name, value in fields.items():
        found += [name.encode(), value.encode() if isinstance(value, str) else value]
    return found


def flat(stream: bytes = b"mqtt_stream:d1:temp", /, **fields: bytes | str) -> Entry:
    return Entry(stream, ENTRY_ID, fields_of(**fields))


def message(payload: bytes | str, topic: bytes = TELEMETRY, **fields: bytes | str) -> Entry:
    return Entry(SHARD, ENTRY_ID, fields_of(topic=topic, payload=payload, **fields))


def parse(entry: Entry, limits: Limits = LIMITS) -> Parsed:
    return Parser(limits).parse(entry, NOW_US)


def only_reading(entry: Entry) -> Reading:
    parsed = parse(entry)
    assert not parsed.rejections
    (reading,) = parsed.readings
    return reading


def only_rejection(entry: Entry, limits: Limits = LIMITS) -> Rejection:
    parsed = parse(entry, limits)
    assert not parsed.readings
    (rejection,) = parsed.rejections
    return rejection


def by_sensor(parsed: Parsed) -> dict[str, float | str | None]:
    return {
        reading.sensor_type: reading.value if reading.value_text is None else reading.value_text
        for reading in parsed.readings
    }


# The form of one value an entry


def test_an_entry_with_a_value_is_one_reading() -> None:
    entry = flat(value="21.5", timestamp="2023-11-14T22:13:20.000001Z", metadata='{"unit": "C"}')
    assert only_reading(entry) == Reading("d1", "temp", NOW_US + 1, OWN_ID, 21.5, None, b'{"unit": "C"}')


def test_without_a_timestamp_the_entry_id_tells_the_time() -> None:
    assert only_reading(flat(value="1")).timestamp_us == 1_700_000_000_000_000
    assert only_reading(message('{"a": 1}')).timestamp_us == 1_700_000_000_000_000


def test_an_entry_id_beyond_the_future_limit_is_refused() -> None:
    entry = Entry(b"mqtt_stream:d1:temp", b"18446744073709551615-0", fields_of(value="1"))
    assert only_rejection(entry).reason is Reason.TIMESTAMP_IN_FUTURE


def test_the_future_is_measured_from_the_present_that_is_passed_in() -> None:
    limits = Limits(max_future_sec=1.5)
    entry = flat(value="1", timestamp="1700000001500000")
    assert Parser(limits).parse(entry, NOW_US).readings
    assert Parser(limits).parse(entry, NOW_US - 1).rejections[0].reason is Reason.TIMESTAMP_IN_FUTURE


def test_without_a_message_id_the_entry_id_identifies_the_reading() -> None:
    parsed = parse(flat(value="1"))
    assert parsed.readings[0].message_id == OWN_ID
    assert parsed.own_id


@pytest.mark.parametrize(
    "mid", [pytest.param(b"0005f8c1-a3e0-4ef6-f445-00000b4a0000", id="UUID"), pytest.param(b"7", id="text")]
)
def test_a_message_id_identifies_the_reading_whichever_entry_carries_it(mid: bytes) -> None:
    first = parse(flat(value="1", mid=mid))
    again = parse(Entry(b"mqtt_stream:d1:temp", b"1700000000001-0", fields_of(value="1", mid=mid)))
    assert first.readings[0].message_id == again.readings[0].message_id != OWN_ID
    assert not first.own_id


@pytest.mark.parametrize("mid", [pytest.param(b"", id="empty"), pytest.param(b"undefined", id="undefined")])
def test_an_unset_message_id_leaves_the_entry_its_own(mid: bytes) -> None:
    parsed = parse(flat(value="1", mid=mid))
    assert parsed.readings[0].message_id == OWN_ID
    assert parsed.own_id


def test_unknown_fields_are_passed_over() -> None:
    assert only_reading(flat(value="1", quality="good")).value == 1.0


def test_a_value_field_takes_precedence_over_a_payload() -> None:
    reading = only_reading(flat(value="1", payload='{"a": 2}', topic="pico/humidity/other"))
    assert (reading.device_id, reading.sensor_type, reading.value) == ("d1", "temp", 1.0)


def test_a_rejected_value_is_told_of_the_series_that_the_stream_names() -> None:
    rejection = only_rejection(flat(value="x", topic="pico/humidity/other"))
    assert (rejection.device_id, rejection.sensor_type) == ("d1", "temp")


# Stream keys


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        pytest.param(b"mqtt_stream:d1:temp", ("d1", "temp"), id="plain"),
        pytest.param(b"mqtt_stream:AA:BB:CC:temp", ("AA:BB:CC", "temp"), id="MAC address"),
        pytest.param(b"mqtt_stream:a::b:temp", ("a::b", "temp"), id="two colons inside"),
        pytest.param(b"mqtt_stream:mqtt_stream:d1:temp", ("mqtt_stream:d1", "temp"), id="prefix once only"),
        pytest.param("mqtt_stream:Küche:°C".encode(), ("Küche", "°C"), id="not ASCII"),
        pytest.param(
            b"mqtt_stream:" + b"d" * 100 + b":" + b"s" * 100, ("d" * 100, "s" * 100), id="longest"
        ),
    ],
)
def test_a_device_id_may_hold_colons_and_a_sensor_type_may_not(
    stream: bytes, names: tuple[str, str]
) -> None:
    assert stream_names(stream, "mqtt_stream:") == names
    reading = only_reading(flat(stream, value="1"))
    assert (reading.device_id, reading.sensor_type) == names


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param(b"", Reason.STREAM_KEY_TOO_FEW_PARTS, id="nothing"),
        pytest.param(b"d1", Reason.STREAM_KEY_TOO_FEW_PARTS, id="one part"),
        pytest.param(b"d1:", Reason.STREAM_KEY_EMPTY_PART, id="no sensor"),
        pytest.param(b":temp", Reason.STREAM_KEY_EMPTY_PART, id="no device"),
        pytest.param(b":", Reason.STREAM_KEY_EMPTY_PART, id="colon alone"),
        pytest.param(b"d1::temp", Reason.STREAM_KEY_EMPTY_PART, id="device ends with a colon"),
        pytest.param(b":d1:temp", Reason.STREAM_KEY_EMPTY_PART, id="device begins with a colon"),
        pytest.param(b" :temp", Reason.DEVICE_ID_EMPTY, id="device of white space"),
        pytest.param(b"d1: ", Reason.SENSOR_TYPE_EMPTY, id="sensor of white space"),
        pytest.param(b"d" * 101 + b":temp", Reason.DEVICE_ID_TOO_LONG, id="long device"),
        pytest.param(b"d1:" + b"s" * 101, Reason.SENSOR_TYPE_TOO_LONG, id="long sensor"),
        pytest.param(b"d\xff:temp", Reason.INVALID_UTF8, id="invalid UTF-8"),
        pytest.param(b"d\x00:temp", Reason.NUL_CHARACTER, id="NUL"),
    ],
)
def test_a_stream_key_that_names_no_series_is_refused(key: bytes, reason: Reason) -> None:
    with pytest.raises(Bad) as refused:
        stream_names(b"mqtt_stream:" + key, "mqtt_stream:")
    assert refused.value.reason is reason
    assert only_rejection(flat(b"mqtt_stream:" + key, value="1")).reason is reason


@pytest.mark.parametrize(
    ("pattern", "stream", "names"),
    [
        pytest.param("sensors:*", b"sensors:d1:temp", ("d1", "temp"), id="another name"),
        pytest.param("site:north:*", b"site:north:d1:temp", ("d1", "temp"), id="prefix of two parts"),
        pytest.param("site:no*", b"site:north:temp", ("north", "temp"), id="wildcard within a part"),
        pytest.param("site:?:*", b"site:a:d1:temp", ("a:d1", "temp"), id="question mark"),
        pytest.param("site:[ab]:*", b"site:a:d1:temp", ("a:d1", "temp"), id="brackets"),
        pytest.param("*", b"d1:temp", ("d1", "temp"), id="everything"),
        pytest.param("*:temp", b"d1:temp", ("d1", "temp"), id="ends with a sensor"),
    ],
)
def test_what_stands_before_the_wildcard_of_the_pattern_is_no_part_of_the_device(
    pattern: str, stream: bytes, names: tuple[str, str]
) -> None:
    (reading,) = parse(flat(stream, value="1"), Limits(stream_pattern=pattern)).readings
    assert (reading.device_id, reading.sensor_type) == names


# The form of a whole MQTT message


@pytest.mark.parametrize(
    ("payload", "value", "value_text"),
    [
        pytest.param(b"21.5", 21.5, None, id="ASCII number"),
        pytest.param(b" 21.5\n", 21.5, None, id="white space around"),
        pytest.param(b"true", 1.0, None, id="boolean"),
        pytest.param(b'"open"', None, "open", id="string"),
        pytest.param(b'{"value": 21.5}', 21.5, None, id="object with a value"),
        pytest.param(b'{"value": "open", "ts": 1700000000}', None, "open", id="value and time"),
    ],
)
def test_a_topic_that_names_the_sensor_brings_one_reading(
    payload: bytes, value: float | None, value_text: str | None
) -> None:
    assert only_reading(message(payload, b"pico/temp/d1")) == Reading(
        "d1", "temp", NOW_US, OWN_ID, value, value_text
    )


def test_a_flat_object_holds_a_reading_for_each_member() -> None:
    parsed = parse(message('{"t": 21.5, "door": "open", "on": true, "off": false, "ts": 1600000000}'))
    assert by_sensor(parsed) == {"t": 21.5, "door": "open", "on": 1.0, "off": 0.0}
    assert {reading.timestamp_us for reading in parsed.readings} == {1_600_000_000_000_000}
    assert {reading.device_id for reading in parsed.readings} == {"d1"}


def test_an_object_of_time_and_values_holds_a_reading_for_each_value() -> None:
    parsed = parse(message('{"ts": 1600000000123, "values": {"t": 21.5, "h": 40}}'))
    assert by_sensor(parsed) == {"t": 21.5, "h": 40.0}
    assert {reading.timestamp_us for reading in parsed.readings} == {1_600_000_000_123_000}


def test_members_of_a_topic_that_names_a_sensor_are_joined_with_it() -> None:
    assert by_sensor(parse(message('{"t": 1, "h": 2}', b"pico/room/d1"))) == {"room.t": 1.0, "room.h": 2.0}


def test_the_time_in_the_payload_comes_before_that_of_the_entry() -> None:
    entry = message('{"a": 1, "timestamp": "2020-09-13T12:26:40Z"}', timestamp="1500000000")
    assert only_reading(entry).timestamp_us == 1_600_000_000_000_000
    assert only_reading(message('{"a": 1}', timestamp="1500000000")).timestamp_us == 1_500_000_000_000_000


def test_all_readings_of_a_message_carry_its_id() -> None:
    parsed = parse(message('{"a": 1, "b": 2}', mid="42"))
    assert len({reading.message_id for reading in parsed.readings}) == 1
    assert not parsed.own_id


def test_the_first_topic_template_that_matches_is_taken() -> None:
    limits = Limits(topic_templates=("a/{device_id}", "{device_id}/{sensor_type}"))
    (reading,) = parse(message('{"x": 1}', b"a/b"), limits).readings
    assert (reading.device_id, reading.sensor_type) == ("b", "x")


# Whose it is, and whether it is there


@pytest.mark.parametrize(
    ("template", "topic", "owner"),
    [
        pytest.param("{place_id}/{device_id}", b"home/d1", "home", id="place"),
        pytest.param("{user_id}/{device_code}", b"me/d1", "me", id="user"),
        pytest.param("{owner}/x/{device_id}", b"us/x/d1", "us", id="owner"),
        pytest.param("{place_id}/{device_id}", b"/d1", "", id="empty level"),
        pytest.param("{floor}/{device_id}", b"2/d1", "", id="no owner"),
        pytest.param("{place_id}/{device_id}", b"h" * 200 + b"/d1", "h" * 200, id="longest"),
    ],
)
def test_the_topic_tells_whose_the_readings_are(template: str, topic: bytes, owner: str) -> None:
    parser = Parser(Limits(topic_templates=(template,)))
    for _ in range(2):  # the second time it is remembered
        parsed = parser.parse(message('{"a": 1, "b": null}', topic), NOW_US)
        assert (parsed.owner, len(parsed.readings), len(parsed.rejections)) == (owner, 1, 1)


def test_an_owner_that_is_too_long_is_refused_rather_than_cut() -> None:
    assert only_rejection(message('{"a": 1}', b"h" * 201 + b"/devices/d1/telemetry")).reason is (
        Reason.TOPIC_UNKNOWN
    )


def only_status(entry: Entry, limits: Limits = LIMITS) -> DeviceStatus:
    parsed = parse(entry, limits)
    assert not parsed.readings
    assert not parsed.rejections
    assert parsed.status is not None
    assert parsed.owner == parsed.status.owner
    return parsed.status


STATUS = b"home/devices/d1/status"
ONLINE = ["online", "1", "true", "connected", " Online\n", "TRUE", "Connected", "Alive", "awake", "asleep"]
OFFLINE = ["offline", "0", "false", "disconnected", "OFFLINE", "\tfalse ", "Dead"]


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("form", ["%s", '{"status": "%s"}', '{"state": "%s"}', '{"online": "%s", "ip": 1}'])
def test_a_status_is_told_by_a_word_or_by_an_object_that_holds_one(form: str, online: bool) -> None:
    for word in ONLINE if online else OFFLINE:
        payload = form % (word if form == "%s" else json.dumps(word)[1:-1])
        assert only_status(message(payload, STATUS)) == DeviceStatus("d1", online, NOW_US, "home")


@pytest.mark.parametrize(
    ("payload", "online"),
    [
        ('{"online": true}', True),
        ('{"online": false}', False),
        ('{"state": 1}', True),
        ('{"status": 0}', False),
        ('{"online": false, "status": "online"}', True),
    ],
)
def test_a_status_may_be_a_boolean_and_the_member_status_comes_first(payload: str, online: bool) -> None:
    assert only_status(message(payload, STATUS)).online is online


@pytest.mark.parametrize(
    "payload",
    [
        b" ",
        b"on",
        b"2",
        b'"online"',
        b"\xff",
        b"\x00online",
        b"{}",
        b'{"status": 2}',
        b'{"status": 1.0e0}',
        b'{"status": null}',
        b'{"status": "ok", "online": true}',
        b'{"status": ["online"]}',
        b'{"status": "online", "status": "offline"}',
        b'{"online": ' + b"1" * 5000 + b"}",
        b'{"online": ' + b"1" * 300 + b"}",
        b'{"status": "online"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"online" * 100_000,
    ],
    ids=lambda payload: repr(payload[:24]),
)
def test_a_status_that_says_neither_is_refused(payload: bytes) -> None:
    assert only_rejection(message(payload, STATUS)).reason is Reason.STATUS_UNKNOWN


def test_an_empty_status_was_cleared_and_says_nothing() -> None:
    parsed = parse(message(b"", STATUS))
    assert (parsed.readings, parsed.rejections, parsed.status) == ((), (), None)


def test_the_time_of_a_status_is_the_payloads_then_the_entrys_then_that_of_its_id() -> None:
    both = message('{"online": true, "ts": 1600000000}', STATUS, timestamp="1500000000")
    assert only_status(both).time_us == 1_600_000_000_000_000
    assert only_status(message("online", STATUS, timestamp="1500000000")).time_us == 1_500_000_000_000_000
    assert only_status(message("online", STATUS)).time_us == 1_700_000_000_000_000
    for bad in ('"yesterday"', "-1", "99999999999"):
        assert only_rejection(message(f'{{"online": true, "ts": {bad}}}', STATUS)).reason.startswith(
            "timestamp"
        )


def test_templates_of_readings_come_before_those_of_statuses() -> None:
    limits = Limits(
        topic_templates=("{device_id}/{sensor_type}",), status_templates=("{device_id}/status",)
    )
    (reading,) = parse(message('"online"', b"d1/status"), limits).readings
    assert (reading.sensor_type, reading.value_text) == ("status", "online")


def test_a_rejected_status_is_told_of_its_device() -> None:
    assert only_rejection(message("perhaps", STATUS)).device_id == "d1"
    assert only_rejection(message("online", b"home/devices//status")).reason is Reason.DEVICE_ID_EMPTY


# Streams of device events


@pytest.mark.parametrize("stream", [b"devices.device.deleted", b"mqtt_stream:devices:deleted"])
def test_an_entry_of_an_event_stream_is_an_event_whatever_its_fields_are_called(stream: bytes) -> None:
    parser = Parser(LIMITS)
    refused = parser.parse(Entry(stream, ENTRY_ID, ()), NOW_US)  # it must not teach the parser a series
    assert (refused.rejections[0].reason, refused.rejections[0].device_id) == (Reason.NO_FIELDS, "")
    for fields in ({}, {"value": "1"}, {"topic": STATUS, "payload": "online"}):
        parsed = parser.parse(flat(stream, device_id="d7", **fields), NOW_US)
        assert parsed.event is not None
        assert (parsed.event.devices, parsed.event.moment) == (("d7",), (1_700_000_000_000, 3))
        assert (parsed.readings, parsed.rejections, parsed.status) == ((), (), None)


def test_an_event_that_is_too_large_is_refused_unread() -> None:
    entry = flat(b"devices.device.deleted", device_ids=b"[" * 2_000_000)
    assert only_rejection(entry).reason is Reason.ENTRY_TOO_LARGE


# Bad members beside good ones

BAD_MEMBERS = [
    pytest.param("null", Reason.VALUE_NULL, id="null"),
    pytest.param('""', Reason.VALUE_EMPTY, id="empty"),
    pytest.param('"undefined"', Reason.VALUE_UNDEFINED, id="undefined"),
    pytest.param("NaN", Reason.VALUE_NAN, id="NaN"),
    pytest.param("Infinity", Reason.VALUE_INFINITE, id="Infinity"),
    pytest.param("-Infinity", Reason.VALUE_INFINITE, id="-Infinity"),
    pytest.param("1e400", Reason.VALUE_OUT_OF_RANGE, id="float beyond a double"),
    pytest.param("-1e400", Reason.VALUE_OUT_OF_RANGE, id="negative float beyond a double"),
    pytest.param("1" + "0" * 400, Reason.VALUE_OUT_OF_RANGE, id="integer beyond a double"),
    pytest.param("1" * 5000, Reason.VALUE_OUT_OF_RANGE, id="integer of 5,000 digits"),
    pytest.param('"a\\u0000b"', Reason.NUL_CHARACTER, id="NUL"),
    pytest.param('"\\ud800"', Reason.INVALID_UTF8, id="lone surrogate"),
]


@pytest.mark.parametrize(("member", "reason"), BAD_MEMBERS)
@pytest.mark.parametrize(
    "form", ['{"a": 1, "bad": %s, "b": "on"}', '{"values": {"a": 1, "bad": %s, "b": "on"}}']
)
def test_one_bad_member_does_not_take_its_neighbours(form: str, member: str, reason: Reason) -> None:
    parsed = parse(message(form % member))
    assert by_sensor(parsed) == {"a": 1.0, "b": "on"}
    assert [(r.reason, r.device_id, r.sensor_type) for r in parsed.rejections] == [(reason, "d1", "bad")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("", Reason.SENSOR_TYPE_EMPTY, id="empty"),
        pytest.param("s" * 101, Reason.SENSOR_TYPE_TOO_LONG, id="too long"),
        pytest.param("a\\u0000", Reason.NUL_CHARACTER, id="NUL"),
        pytest.param("\\ud800", Reason.INVALID_UTF8, id="lone surrogate"),
    ],
)
def test_one_bad_name_does_not_take_its_neighbours(name: str, reason: Reason) -> None:
    parsed = parse(message(f'{{"a": 1, "{name}": 2, "b": 3}}'))
    assert by_sensor(parsed) == {"a": 1.0, "b": 3.0}
    assert [rejection.reason for rejection in parsed.rejections] == [reason]


def test_a_bad_time_rejects_each_reading_of_the_message() -> None:
    parsed = parse(message('{"ts": "yesterday", "a": 1, "b": 2}'))
    assert not parsed.readings
    assert [(r.reason, r.sensor_type) for r in parsed.rejections] == [
        (Reason.TIMESTAMP_MALFORMED, "a"),
        (Reason.TIMESTAMP_MALFORMED, "b"),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param('{"a": 1, "a": 2, "b": 3}', id="as json.dumps writes"),
        pytest.param('{"a" : 1, "a" : 2, "b" : 3}', id="space before the colon"),
        pytest.param('{"a"  : 1, "a"  : 2, "b"  : 3}', id="two spaces before the colon"),
        pytest.param('{"a"\t:1,"a"\t:2,"b"\t:3}', id="tab before the colon"),
        pytest.param('{"a"\r\n: 1, "a"\r\n: 2, "b"\r\n: 3}', id="line end before the colon"),
        pytest.param('{"a": 1, "\\u0061": 2, "b": 3}', id="one of them escaped"),
        pytest.param('{"values": {"a"\t: 1, "a"\t: 2, "b"\t: 3}}', id="among values"),
    ],
)
def test_a_name_that_occurs_twice_in_a_payload_is_not_dropped_in_silence(payload: str) -> None:
    parsed = parse(message(payload))
    assert by_sensor(parsed) == {"b": 3.0}
    assert [(r.reason, r.sensor_type) for r in parsed.rejections] == [(Reason.DUPLICATE_FIELD, "a")]


# Every reason

# Not from parsing: these are told by the writer, by the registry of series, and by whoever reads.
WRITERS_OWN = {Reason.CONFLICT, Reason.REFUSED_BY_DATABASE, Reason.UNKNOWN_SERIES, Reason.POISON}
SMALL = Limits(topic_templates=LIMITS.topic_templates, max_entry_bytes=200, max_readings_per_entry=2)
EXAMPLES: dict[Reason, Entry] = {
    Reason.NO_FIELDS: flat(),
    Reason.TOO_MANY_FIELDS: flat(**{f"f{n}": "" for n in range(MAX_FIELDS + 1)}),
    Reason.DUPLICATE_FIELD: Entry(b"mqtt_stream:d1:temp", ENTRY_ID, [b"value", b"1", b"value", b"1"]),
    Reason.ENTRY_TOO_LARGE: flat(value=b"1" * 1_048_577),
    Reason.INVALID_UTF8: flat(value=b"\xff"),
    Reason.NUL_CHARACTER: flat(value=b"1\x00"),
    Reason.STREAM_KEY_TOO_FEW_PARTS: flat(b"mqtt_stream:alone", value="1"),
    Reason.STREAM_KEY_EMPTY_PART: flat(b"mqtt_stream:d1:", value="1"),
    Reason.DEVICE_ID_EMPTY: message('{"a": 1}', b"home/devices//telemetry"),
    Reason.DEVICE_ID_TOO_LONG: flat(b"mqtt_stream:" + b"d" * 101 + b":temp", value="1"),
    Reason.SENSOR_TYPE_EMPTY: message("21.5"),
    Reason.SENSOR_TYPE_TOO_LONG: flat(b"mqtt_stream:d1:" + b"s" * 101, value="1"),
    Reason.VALUE_MISSING: flat(timestamp="1700000000"),
    Reason.VALUE_EMPTY: flat(value=""),
    Reason.VALUE_UNDEFINED: flat(value="undefined"),
    Reason.VALUE_NULL: flat(value="null"),
    Reason.VALUE_NAN: flat(value="NaN"),
    Reason.VALUE_INFINITE: flat(value="-Infinity"),
    Reason.VALUE_HEXADECIMAL: flat(value="0x1F"),
    Reason.VALUE_UNDERSCORE: flat(value="1_000"),
    Reason.VALUE_SEPARATOR: flat(value="21,5"),
    Reason.VALUE_OUT_OF_RANGE: flat(value="1e999"),
    Reason.VALUE_NOT_A_NUMBER: flat(value="21.5C"),
    Reason.VALUE_UNSUPPORTED: message("[" * 9 + "1" + "]" * 9),
    Reason.TIMESTAMP_MALFORMED: flat(value="1", timestamp="yesterday"),
    Reason.TIMESTAMP_BEFORE_1970: flat(value="1", timestamp="-1"),
    Reason.TIMESTAMP_IN_FUTURE: flat(value="1", timestamp="2199-01-01T00:00:00Z"),
    Reason.METADATA_NOT_JSON: flat(value="1", metadata="{unit: C}"),
    Reason.METADATA_NOT_OBJECT: flat(value="1", metadata="[]"),
    Reason.METADATA_TOO_DEEP: flat(value="1", metadata='{"a":' * 1000 + "1" + "}" * 1000),
    Reason.METADATA_TOO_LARGE: flat(value="1", metadata=json.dumps({"a": "x" * 9000})),
    Reason.TOPIC_MISSING: flat(SHARD, payload="1"),
    Reason.TOPIC_UNKNOWN: message("1", b"no/such/topic/at/all"),
    Reason.PAYLOAD_EMPTY: message(" "),
    Reason.PAYLOAD_NOT_JSON: message('{"a": 1'),
    Reason.PAYLOAD_NOT_CBOR: message(b"\x82\xa1"),
    Reason.PAYLOAD_NOT_PROTOBUF: message(b"\xff", b"spBv1.0/p/NDATA/d1"),
    Reason.PAYLOAD_UNEXPECTED: message("[1]", b"tele/d1/SENSOR"),
    Reason.RECORD_MALFORMED: message('[{"n": "a", "v": 1, "must_": 2}]'),
    Reason.METRIC_WITHOUT_NAME: message(sparkplug({"alias": 4, "int_value": 1}), b"spBv1.0/p/NDATA/d1"),
    Reason.VALUE_SIGN_UNKNOWN: message(
        sparkplug({"name": b"a", "int_value": 2**32 - 1}), b"spBv1.0/p/NDATA/d1"
    ),
    Reason.PAYLOAD_WITHOUT_READINGS: message('{"ts": 1700000000}'),
    Reason.TOO_MANY_READINGS: message(json.dumps({f"s{n}": n for n in range(101)})),
    Reason.STATUS_UNKNOWN: message("perhaps", b"home/devices/d1/status"),
    Reason.EVENT_MALFORMED: flat(b"devices.device.deleted", place_id="p1"),
}


@pytest.mark.parametrize("reason", [pytest.param(reason, id=reason.value) for reason in Reason])
def test_every_reason_has_an_example(reason: Reason) -> None:
    if reason in WRITERS_OWN:
        assert reason not in EXAMPLES
        return
    rejection = only_rejection(EXAMPLES[reason])
    assert rejection.reason is reason
    assert rejection.sentence
    assert "\n" not in rejection.sentence


@pytest.mark.parametrize("topic", [None, b""], ids=["none", "empty"])
def test_a_payload_without_a_topic_is_refused(topic: bytes | None) -> None:
    fields = {} if topic is None else {"topic": topic}
    assert only_rejection(flat(SHARD, payload="1", **fields)).reason is Reason.TOPIC_MISSING


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="objects"),
        pytest.param(b"[" * 100_000, id="arrays without end"),
        pytest.param(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b', "b": NaN}', id="not JSON besides"),
    ],
)
def test_a_payload_nested_ten_thousand_deep_is_refused(payload: bytes) -> None:
    assert only_rejection(message(payload)).reason is Reason.PAYLOAD_NOT_JSON


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"\xff", Reason.INVALID_UTF8, id="bare"),
        pytest.param(b'{"a": "\xff"}', Reason.INVALID_UTF8, id="in a value"),
        pytest.param(b'{"\xff": 1}', Reason.INVALID_UTF8, id="in a name"),
        pytest.param(b'{"a": "x\x00y"}', Reason.NUL_CHARACTER, id="NUL"),
    ],
)
def test_a_payload_that_is_no_text_is_refused(payload: bytes, reason: Reason) -> None:
    assert only_rejection(message(payload)).reason is reason


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([b"value", b"1", b"value", b"2"], id="two values"),
        pytest.param([b"value", b"1", b"note", b"", b"note", b""], id="another name"),
        pytest.param([b"topic", b"a", b"payload", b"1", b"topic", b"b"], id="two topics"),
    ],
)
def test_a_field_name_that_occurs_twice_is_refused_rather_than_guessed_at(fields: list[bytes]) -> None:
    entry = Entry(b"mqtt_stream:d1:temp", ENTRY_ID, fields)
    assert only_rejection(entry).reason is Reason.DUPLICATE_FIELD


def test_as_many_fields_as_allowed_are_read_and_thousands_refused() -> None:
    padding = {f"f{n}": "" for n in range(MAX_FIELDS - 1)}
    assert only_reading(flat(value="1", **padding)).value == 1.0
    many = {f"f{n}": "" for n in range(5000)}
    assert only_rejection(flat(value="1", **many)).reason is Reason.TOO_MANY_FIELDS


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(flat(value=b"1" * 10_000_000), id="value"),
        pytest.param(message(b"1" * 10_000_000), id="payload"),
        pytest.param(flat(value="1", note=b"x" * 10_000_000), id="another field"),
        pytest.param(Entry(SHARD, ENTRY_ID, [b"n" * 10_000_000, b""]), id="name"),
    ],
)
def test_ten_megabytes_are_refused_by_their_size(entry: Entry) -> None:
    rejection = only_rejection(entry)
    assert rejection.reason is Reason.ENTRY_TOO_LARGE
    assert len(rejection.value) <= 200


def test_all_fields_count_towards_the_size_of_an_entry() -> None:
    limits = Limits(max_entry_bytes=20)
    assert parse(flat(value="1" * 15), limits).readings
    assert only_rejection(flat(value="1" * 16), limits).reason is Reason.ENTRY_TOO_LARGE


def test_as_many_readings_as_allowed_are_taken_and_one_more_refused() -> None:
    def holding(readings: int) -> Entry:
        return message(json.dumps({f"s{n}": n for n in range(readings)}))

    assert len(parse(holding(100)).readings) == 100
    assert only_rejection(holding(101)).reason is Reason.TOO_MANY_READINGS


def test_a_rejected_message_is_told_of_the_device_that_the_topic_names() -> None:
    assert only_rejection(message("[]")).device_id == "d1"
    rejection = only_rejection(message("x", b"pico/temp/d1"))
    assert (rejection.device_id, rejection.sensor_type) == ("d1", "temp")


def test_the_excerpt_of_a_long_value_has_at_most_200_characters() -> None:
    assert 0 < len(only_rejection(flat(value="x" * 5000)).value) <= 200
    assert len(only_rejection(flat(value=b"\xff" * 5000)).value) <= 200


# The parser itself


def test_a_template_with_a_name_inside_a_level_never_breaks_the_parser() -> None:
    """The configuration refuses it; should it come through, an entry must still not stop the worker."""
    parsed = parse(message("1", b"dev-{device_id}/t"), Limits(topic_templates=("dev-{device_id}/t",)))
    assert parsed.rejections


def test_one_parser_answers_as_a_fresh_one_does() -> None:
    entries = [*EXAMPLES.values(), flat(value="1"), message('{"a": 1}')]
    parser = Parser(LIMITS)
    first = [parser.parse(entry, NOW_US) for entry in entries]
    assert first == [parser.parse(entry, NOW_US) for entry in entries]
    assert first == [parse(entry) for entry in entries]


def test_what_the_parser_remembers_of_topics_is_bounded_in_bytes() -> None:
    """A topic has up to 65,535 bytes; levels that name neither device nor sensor may be of any length."""
    parser = Parser(LIMITS)
    numbers = count()

    def feed(topics: int) -> Sequence[Parsed]:
        return [
            parser.parse(message("{}", b"%060000d/devices/d1/telemetry" % next(numbers)), NOW_US)
            for _ in range(topics)
        ]

    feed(5)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        feed(100)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000
