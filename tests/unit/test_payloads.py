"""Payloads of real devices: each format's readings, what it refuses, and what no input may do."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from struct import pack
from typing import Any
from zoneinfo import ZoneInfo

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config
import wiring
from formats import MAX_NESTING
from parse import Parser
from payloads import FORMATS_OF_MAKERS, members
from schema import Bad, Entry, Member, Parsed, PayloadFormat, Reason
from sparkplug import Payload
from tests.payload_examples import EXAMPLES, NOON_MS, SENML, Example
from tests.payload_examples import sparkplug as encoded
from tests.support import ROOT
from tests.unit.test_parse_properties import check_storable
from topics import topic_filter
from values import Instant

ARRIVED_MS = 1_768_480_000_000
DEFAULTS = wiring.limits(
    config.load(database_url="postgresql://user@host/db", device_timezone="Europe/Berlin")
)
PARSER = Parser(DEFAULTS)


def entry(topic: str, payload: bytes) -> Entry:
    fields = [b"topic", topic.encode(), b"payload", payload]
    return Entry(b"mqtt_stream:shard:0", b"%d-0" % ARRIVED_MS, fields)


def parse(topic: str, payload: bytes, parser: Parser = PARSER) -> Parsed:
    return parser.parse(entry(topic, payload), ARRIVED_MS * 1000)


def told(parsed: Parsed) -> dict[str, float | str | None]:
    return {r.sensor_type: r.value if r.value_text is None else r.value_text for r in parsed.readings}


def refused(parsed: Parsed) -> dict[str, Reason]:
    return {rejection.sensor_type: rejection.reason for rejection in parsed.rejections}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_as_its_maker_documents_it_gives_its_readings(example: Example) -> None:
    parsed = parse(example.topic, example.payload)
    assert not parsed.rejections
    assert [
        (
            r.device_id,
            r.sensor_type,
            r.timestamp_us // 1000,
            r.value if r.value_text is None else r.value_text,
        )
        for r in parsed.readings
    ] == [
        (device, sensor, ARRIVED_MS if moment is None else moment, value)
        for device, sensor, moment, value in example.told
    ]
    assert parsed.owner == example.owner
    metadata = {r.sensor_type: json.loads(r.metadata) for r in parsed.readings if r.metadata is not None}
    assert metadata == example.metadata


# Topics and settings


@pytest.mark.parametrize(
    ("topic", "payload", "online"),
    [
        ("tele/plug/LWT", b"Online", True),
        ("tele/plug/LWT", b"Offline", False),
        ("zigbee2mqtt/shelf/availability", b'{"state":"online"}', True),
        ("zigbee2mqtt/shelf/availability", b"offline", False),
        ("shelly-a/online", b"true", True),
        ("shelly-a/online", b"false", False),
    ],
)
def test_the_makers_status_topics_tell_whether_a_device_is_there(
    topic: str, payload: bytes, online: bool
) -> None:
    status = parse(topic, payload).status
    assert status is not None
    assert (status.device_id, status.online) == (topic.removeprefix("tele/").split("/")[-2], online)


def parser_of(**changes: Any) -> Parser:
    return Parser(replace(DEFAULTS, **changes))


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("+/b", "a/b", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("a.c", "abc", False),
        ("a/+/#", "a/b\n/c", True),
    ],
)
def test_a_filter_matches_as_in_mqtt(pattern: str, topic: str, matches: bool) -> None:
    assert bool(topic_filter(pattern).fullmatch(topic)) is matches


def test_the_first_filter_that_matches_decides_and_auto_lifts_a_later_one() -> None:
    parser = parser_of(
        topic_templates=("t/{device_id}",),
        payload_formats=(("t/odd", PayloadFormat.AUTO), ("t/#", PayloadFormat.SENML)),
    )
    assert told(parse("t/odd", b'{"v": 1}', parser)) == {"v": 1.0}
    assert refused(parse("t/other", b'{"v": 1}', parser)) == {"": Reason.PAYLOAD_UNEXPECTED}


def configured(formats: str) -> Parser:
    """A parser with PAYLOAD_FORMATS as a user sets it."""
    return Parser(
        wiring.limits(config.load(database_url="postgresql://user@host/db", payload_formats=formats))
    )


def test_the_filters_of_a_user_stand_before_those_of_the_makers() -> None:
    payload = b'{"Time": "2026-01-15T12:00:00Z", "X": 1}'
    parser = configured("tele/odd/SENSOR=auto,lab/#=senml")
    assert told(parse("tele/other/SENSOR", payload, parser)) == {"X": 1.0}
    assert "Time" in told(parse("tele/odd/SENSOR", payload, parser))
    assert "Time" in told(parse("tele/other/SENSOR", payload, configured("lab/#=senml,#=auto")))


def test_the_advice_for_zigbee2mqtts_names_with_a_slash_reads_readings_alone() -> None:
    prefix = "zigbee2mqtt/kitchen/{device_id}"
    parser = parser_of(
        topic_templates=(*DEFAULTS.topic_templates, prefix),
        status_templates=(*DEFAULTS.status_templates, f"{prefix}/availability"),
        payload_formats=(("zigbee2mqtt/kitchen/+", PayloadFormat.ZIGBEE2MQTT),),
    )
    parsed = parse("zigbee2mqtt/kitchen/lamp", b'{"state": "ON", "action": ""}', parser)
    assert [(one.device_id, one.sensor_type) for one in parsed.readings] == [("lamp", "state")]
    status = parse("zigbee2mqtt/kitchen/lamp/availability", b'{"state": "online"}', parser).status
    assert status is not None
    assert status.device_id == "lamp"
    for topic in ("zigbee2mqtt/kitchen/lamp/set", "zigbee2mqtt/lamp/set", "zigbee2mqtt/bridge/state"):
        assert refused(parse(topic, b'{"state": "ON"}', parser)) == {"": Reason.TOPIC_UNKNOWN}, topic
    text = (ROOT / "docs" / "payloads.md").read_text(encoding="utf-8")
    assert f"`{prefix}`" in text
    assert f"`{prefix}/availability`" in text


def test_a_node_stands_before_its_device_and_neither_may_be_empty() -> None:
    payload = encoded({"name": b"x", "double_value": 1.0})
    (reading,) = parse("spBv1.0/g/DBIRTH/edge/pump", payload).readings
    assert reading.device_id == "edge/pump"
    for topic in ("spBv1.0/g/DDATA//pump", "spBv1.0/g/DDATA/edge/"):
        assert refused(parse(topic, payload)) == {"": Reason.DEVICE_ID_EMPTY}


# What is recognised


def test_names_below_names_are_joined_and_what_is_empty_holds_nothing() -> None:
    parsed = parse(
        "pico/room/d", b'{"a": {"b": {"c": 1}}, "list": [2, [3, {"x": true}]], "none": [], "": {"y": 4}}'
    )
    assert told(parsed) == {
        "room.a.b.c": 1.0,
        "room.list.0": 2.0,
        "room.list.1.0": 3.0,
        "room.list.1.1.x": 1.0,
        "room.y": 4.0,
    }


@pytest.mark.parametrize("form", ["%s", '{"values": {"deep": %s, "ok": 1}}', '{"deep": %s, "ok": 1}'])
def test_what_is_nested_too_deep_is_rejected_alone(form: str) -> None:
    extra = 0 if form == "%s" else 1
    fits = "[" * (MAX_NESTING - extra) + "1" + "]" * (MAX_NESTING - extra)
    assert not parse("devices/d/telemetry", (form % fits).encode()).rejections
    parsed = parse("devices/d/telemetry", (form % f"[{fits}, 5]").encode())
    assert [rejection.reason for rejection in parsed.rejections] == [Reason.VALUE_UNSUPPORTED]
    assert len(parsed.readings) == 1 + extra


def test_a_name_that_occurs_twice_is_found_at_every_level() -> None:
    parsed = parse("devices/d/telemetry", b'{"a": {"b": [{"x": 1, "x": 2, "y": 3}]}}')
    assert told(parsed) == {"a.b.0.y": 3.0}
    assert refused(parsed) == {"a.b.0.x": Reason.DUPLICATE_FIELD}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ('{"a": NaN}', Reason.METADATA_NOT_JSON),
        ('{"a": "\\u0000"}', Reason.NUL_CHARACTER),
        ('{"a": "' + "x" * 9000 + '"}', Reason.METADATA_TOO_LARGE),
        ('{}, "metadata": {}', Reason.DUPLICATE_FIELD),
    ],
)
def test_metadata_of_one_value_is_checked_as_elsewhere(metadata: str, reason: Reason) -> None:
    payload = f'{{"value": 1, "metadata": {metadata}}}'.encode()
    assert refused(parse("pico/temp/d", payload)) == {"temp": reason}


def test_metadata_goes_with_its_value_unchanged_or_is_none() -> None:
    (reading,) = parse("pico/temp/d", b'{"metadata":{"b" :1,"a":2.50},"value":{"x":1}}').readings
    assert (reading.sensor_type, reading.metadata) == ("temp.x", b'{"b" :1,"a":2.50}')
    (reading,) = parse("devices/d/telemetry", b'{"value": 1, "metadata": null}').readings
    assert (reading.sensor_type, reading.metadata) == ("value", None)
    assert told(parse("devices/d/telemetry", b'{"value": 1, "metadata": {"x": 2}, "t": 3}')) == {
        "value": 1.0,
        "metadata.x": 2.0,
        "t": 3.0,
    }


@pytest.mark.parametrize("metadata", ["x", 5, True, [5]], ids=repr)
def test_metadata_that_is_no_object_is_a_member_like_others(metadata: object) -> None:
    payload = json.dumps({"value": 3, "metadata": metadata}).encode()
    parsed = parse("pico/temp/d", payload)
    assert not parsed.rejections
    assert len(told(parse("devices/d/telemetry", payload))) == 2
    assert [name.rpartition("metadata")[0] for name in told(parsed)] == ["", "temp."]
    assert told(parsed)["temp.value"] == 3.0


def test_several_moments_in_one_message_are_read_each_with_its_time() -> None:
    payload = (
        b'[{"ts": 1768478400000, "values": {"t": 1}}, {"ts": 1768478401000, "values": {"t": 2, "h": 3}}]'
    )
    parsed = parse("devices/d/telemetry", payload)
    assert [
        (one.sensor_type, one.timestamp_us // 1000 - NOON_MS, one.value) for one in parsed.readings
    ] == [
        ("t", 0, 1.0),
        ("t", 1000, 2.0),
        ("h", 1000, 3.0),
    ]
    assert told(parse("pico/room/d", payload)) == {"room.t": 2.0, "room.h": 3.0}
    assert "0.values.t" in told(
        parse("devices/d/telemetry", b'[{"ts": 1768478400, "values": {"t": 1}}, 5]')
    )


def test_none_is_a_state_as_many_devices_tell_it() -> None:
    payload = b'{"motion_state": "none", "mode": "None", "alarm": "null", "level": "nan"}'
    parsed = parse("devices/d/telemetry", payload)
    assert told(parsed) == {"motion_state": "none", "mode": "None"}
    assert refused(parsed) == {"alarm": Reason.VALUE_NULL, "level": Reason.VALUE_NAN}


# Payloads that say nothing

UPLINK = "application/a/device/d/event/up"
SILENT: dict[str, tuple[str, bytes]] = {
    "cleared reading": ("zigbee2mqtt/d", b""),
    "cleared shelly": ("s/events/rpc", b""),
    "cleared sparkplug": ("spBv1.0/g/NDATA/d", b""),
    "cleared status": ("zigbee2mqtt/d/availability", b""),
    "tasmota without sensors": ("tele/d/SENSOR", b'{"Time": "2026-01-15T13:00:00", "TempUnit": "C"}'),
    "tasmota that failed": ("tele/d/SENSOR", b'{"AM2301": {"Temperature": null, "Id": ""}}'),
    "action that is over": ("zigbee2mqtt/d", b'{"action": "", "battery": null}'),
    "errors that are over": (
        "s/events/rpc",
        b'{"method": "NotifyStatus", "params": {"ts": 1768478400, "switch:0": {"id": 0, "errors": []}}}',
    ),
    "no event": ("s/events/rpc", b'{"method": "NotifyEvent", "params": {"events": []}}'),
    "updates": (
        "s/events/rpc",
        b'{"method": "NotifyStatus", "params": {"sys": {"available_updates": {"beta": {"id": 1}}}}}',
    ),
    "frame without data": (UPLINK, b'{"deduplicationId": "x", "fPort": 0, "data": ""}'),
    "frame of nulls": (UPLINK, b'{"data": "AQ==", "object": {"t": null, "e": ""}}'),
    "uplink without data": ("v3/a/devices/d/up", b'{"uplink_message": {"f_cnt": 1}}'),
    "sparkplug without metrics": ("spBv1.0/g/DDATA/n/d", encoded()),
    "birth of a node": (
        "spBv1.0/g/NBIRTH/n",
        encoded(
            {"name": b"bdSeq", "datatype": 8, "long_value": 0},
            {"name": b"Node Control/Rebirth", "datatype": 11, "boolean_value": False},
        ),
    ),
}


@pytest.mark.parametrize(("topic", "payload"), SILENT.values(), ids=SILENT)
def test_a_payload_of_its_makers_format_that_says_nothing_is_no_error(topic: str, payload: bytes) -> None:
    parsed = parse(topic, payload)
    assert (parsed.readings, parsed.rejections, parsed.status) == ((), (), None)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", Reason.PAYLOAD_EMPTY),
        (b"{}", Reason.PAYLOAD_WITHOUT_READINGS),
        (b'{"ts": 1768478400, "values": {}}', Reason.PAYLOAD_WITHOUT_READINGS),
        (b'{"a": null}', Reason.VALUE_NULL),
        (b'{"a": ""}', Reason.VALUE_EMPTY),
    ],
)
def test_where_no_format_is_known_saying_nothing_is_an_error(payload: bytes, reason: Reason) -> None:
    assert list(refused(parse("devices/d/telemetry", payload)).values()) == [reason]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (UPLINK, b'{"deduplicationId": "x", "data": "AQ=="}'),
        (UPLINK, b'{"temperature": 5}'),
        ("v3/a/devices/d/up", b'{"uplink_message": {"frm_payload": "AQ=="}}'),
    ],
)
def test_a_frame_that_nobody_decodes_is_a_dead_letter_that_says_what_to_set(
    topic: str, payload: bytes
) -> None:
    (rejection,) = parse(topic, payload).rejections
    assert rejection.reason is Reason.PAYLOAD_WITHOUT_READINGS
    assert "set a" in rejection.sentence


def test_null_and_an_empty_text_are_left_out_of_what_makers_send() -> None:
    for topic, form in {
        "tele/d/SENSOR": '{"X": %s}',
        "zigbee2mqtt/d": '{"X": %s}',
        "s/events/rpc": '{"method": "NotifyStatus", "params": {"X": %s}}',
        UPLINK: '{"object": {"X": %s}}',
        "v3/a/devices/d/up": '{"uplink_message": {"decoded_payload": {"X": %s}}}',
    }.items():
        values = '{"deep": [null, 5, ""], "none": null, "empty": "", "zero": 0, "no": false, "blank": " "}'
        parsed = parse(topic, (form % values).encode())
        assert not parsed.rejections
        assert told(parsed) == {"X.deep.1": 5.0, "X.zero": 0.0, "X.no": 0.0, "X.blank": " "}, topic


# Tasmota


def tasmota_ms(time: str, zone: str | None, more: str = "") -> int:
    parser = parser_of(zone=ZoneInfo(zone) if zone else None)
    (reading,) = parse("tele/d/SENSOR", f'{{"Time": "{time}"{more}, "X": 1}}'.encode(), parser).readings
    return reading.timestamp_us // 1000


def test_the_local_time_of_tasmota_counts_only_where_the_zone_is_known() -> None:
    assert tasmota_ms("2026-01-15T13:00:00", None) == ARRIVED_MS
    assert tasmota_ms("2026-01-15T13:00:00", "Europe/Berlin") == NOON_MS
    assert tasmota_ms("2025-07-15T14:00:00", "Europe/Berlin") == 1_752_580_800_000  # summer
    assert tasmota_ms("2026-01-15T12:00:00Z", None) == NOON_MS
    assert tasmota_ms("2026-01-15T13:00:00", None, ', "Epoch": 1768478400') == NOON_MS


def test_in_the_hour_that_comes_twice_the_first_is_taken() -> None:
    assert tasmota_ms("2025-10-26T02:30:00", "Europe/Berlin") == 1_761_438_600_000  # 00:30 UTC


def test_a_clock_that_was_never_set_is_no_time() -> None:
    for unset in ("1970-01-01T00:00:20", "1970-01-01T02:00:20", "2000-12-31T23:59:59"):
        for zone in ("Europe/Berlin", None):
            assert tasmota_ms(unset, zone) == ARRIVED_MS
            assert tasmota_ms(unset + "Z", zone) == ARRIVED_MS
            assert tasmota_ms(unset + "+05:00", zone) == ARRIVED_MS
    assert tasmota_ms("2001-01-01T00:00:00Z", None) == 978_307_200_000
    payload = b'{"method": "NotifyStatus", "params": {"ts": 1.67, "cloud": {"connected": true}}}'
    assert parse("s/events/rpc", payload).readings[0].timestamp_us == ARRIVED_MS * 1000
    payload = b'{"method": "NotifyStatus", "params": {"ts": null, "cloud": {"connected": true}}}'
    assert parse("s/events/rpc", payload).readings[0].timestamp_us == ARRIVED_MS * 1000


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("zigbee2mqtt/d", b'{"last_seen": "1970-01-01T00:00:09Z", "x": 1}'),
        ("zigbee2mqtt/d", b'{"last_seen": 1768478400e-3, "x": 1}'),
        (UPLINK, b'{"time": "1980-01-06T00:00:00Z", "object": {"x": 1}}'),
        ("v3/a/devices/d/up", b'{"uplink_message": {"received_at": 0, "decoded_payload": {"x": 1}}}'),
        ("spBv1.0/g/NDATA/d", encoded({"name": b"x", "double_value": 1.0}, timestamp=NOON_MS // 1000)),
        ("spBv1.0/g/NDATA/d", encoded({"name": b"x", "double_value": 1.0, "timestamp": NOON_MS // 1000})),
    ],
)
def test_no_makers_payload_is_stored_before_2001(topic: str, payload: bytes) -> None:
    parsed = parse(topic, payload)
    assert told(parsed) == {"x": 1.0}
    assert parsed.readings[0].timestamp_us == ARRIVED_MS * 1000


def test_a_local_time_that_no_calendar_has_is_refused() -> None:
    parsed = parse("tele/d/SENSOR", b'{"Time": "2026-02-30T13:00:00", "X": 1, "Y": 2}')
    assert refused(parsed) == {"X": Reason.TIMESTAMP_MALFORMED, "Y": Reason.TIMESTAMP_MALFORMED}


def test_names_are_left_out_at_the_levels_where_their_makers_have_them() -> None:
    inner = b'{"Time": 1, "Epoch": 2, "TempUnit": "C", "Id": "a", "TotalStartTime": "b", "x": 3}'
    assert told(parse("tele/d/SENSOR", b'{"Time": null, "TempUnit": "C", "S": %s}' % inner)) == {
        "S.Time": 1.0,
        "S.Epoch": 2.0,
        "S.TempUnit": "C",
        "S.x": 3.0,
    }
    inner = b'{"update": 5, "device": 3, "last_seen": 1, "x": 1}'
    assert told(parse("zigbee2mqtt/d", b'{"update": {"state": "idle"}, "config": %s}' % inner)) == {
        "config.update": 5.0,
        "config.device": 3.0,
        "config.last_seen": 1.0,
        "config.x": 1.0,
    }
    params = b'{"ts": 1768478400, "schedule:0": {"id": 0, "ts": 5, "next": {"id": 7, "minute_ts": 8}}}'
    assert told(parse("s/events/rpc", b'{"method": "NotifyStatus", "params": %s}' % params)) == {
        "schedule:0.ts": 5.0,
        "schedule:0.next.id": 7.0,
    }


# Shelly, ChirpStack, The Things Stack


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("s/events/rpc", b'{"id": 1, "result": {}}', Reason.PAYLOAD_UNEXPECTED),
        ("s/events/rpc", b'{"method": "NotifyEvent", "params": {}}', Reason.PAYLOAD_UNEXPECTED),
        ("s/events/rpc", b"online", Reason.PAYLOAD_UNEXPECTED),
        ("s/events/rpc", b" ", Reason.PAYLOAD_EMPTY),
        ("s/events/rpc", b'{"method": "NotifyStatus"', Reason.PAYLOAD_NOT_JSON),
        ("application/a/device/d/event/up", b'{"data": "AQ=="}', Reason.PAYLOAD_WITHOUT_READINGS),
        ("spBv1.0/g/NDATA/d", b"\x18\x09", Reason.PAYLOAD_UNEXPECTED),
        ("v3/a/devices/d/up", b'{"join_accept": {}}', Reason.PAYLOAD_UNEXPECTED),
        ("zigbee2mqtt/d", b"[1]", Reason.PAYLOAD_UNEXPECTED),
    ],
)
def test_a_payload_that_is_not_of_its_topics_format_is_refused(
    topic: str, payload: bytes, reason: Reason
) -> None:
    parsed = parse(topic, payload)
    assert not parsed.readings
    assert refused(parsed) == {"": reason}


def test_a_full_status_tells_no_clocks_and_no_addresses_of_somebodys_network() -> None:
    params = {
        "ts": NOON_MS / 1000,
        "sys": {
            "mac": "A4CF129E0011",
            "time": "12:00",
            "unixtime": NOON_MS // 1000,
            "uptime": 7,
            "available_updates": {"stable": {"version": "1.5.0"}},
        },
        "wifi": {
            "sta_ip": "192.0.2.7",
            "sta_ip6": ["2001:db8::7"],
            "ssid": "attic",
            "bssid": "02:00:5e:10:00:00",
            "rssi": -61,
        },
        "eth": {"ip": "192.0.2.8", "ip6": ["2001:db8::8"]},
        "switch:0": {"id": 0, "time": 3},
    }
    payload = json.dumps({"method": "NotifyFullStatus", "params": params}).encode()
    assert told(parse("s/events/rpc", payload)) == {
        "sys.uptime": 7.0,
        "wifi.rssi": -61.0,
        "switch:0.time": 3.0,
    }
    text = (ROOT / "docs" / "payloads.md").read_text(encoding="utf-8")
    for name in (
        "sys.mac",
        "sys.time",
        "sys.unixtime",
        "sys.available_updates",
        "wifi.sta_ip",
        "wifi.ssid",
    ):
        assert f"`{name}`" in text, name


def test_an_event_tells_what_it_brings_along_and_an_odd_one_alone_is_rejected() -> None:
    events = [
        5,
        {"component": "sys", "event": "sleep"},
        {"component": "script:1", "id": 1, "event": "blu", "data": {"temperature": 21.3, "x": [None, 2]}},
        {"component": "script:2", "event": None, "data": 4},
    ]
    payload = json.dumps({"method": "NotifyEvent", "params": {"events": events}}).encode()
    parsed = parse("s/events/rpc", payload)
    assert told(parsed) == {
        "sys.event": "sleep",
        "script:1.event": "blu",
        "script:1.data.temperature": 21.3,
        "script:1.data.x.1": 2.0,
        "script:2.data": 4.0,
    }
    assert refused(parsed) == {"event": Reason.VALUE_UNSUPPORTED}


# SenML


def senml(*records: object, topic: str = "devices/d/telemetry") -> Parsed:
    """Read from CBOR with the labels of JSON, which must come to the same as JSON."""
    parsed = parse(topic, json.dumps(records).encode())
    assert parse(topic, cbor2.dumps(records)) == parsed
    return parsed


def test_base_fields_hold_from_their_record_on() -> None:
    parsed = senml(
        {"n": "a", "v": 1},
        {"bn": "x/", "bv": 100, "bs": 50, "n": "b", "v": 1, "s": 2},
        {"v": 3},
        {"bn": "y/", "n": "c", "vs": "text"},
    )
    assert told(parsed) == {
        "a": 1.0,
        "x/b": 101.0,
        "x/b.sum": 52.0,
        "x/": 103.0,
        "x/.sum": 50.0,
        "y/c": "text",
        "y/c.sum": 50.0,
    }


@pytest.mark.parametrize(
    ("base", "time", "moment_ms"),
    [
        (0, 0, ARRIVED_MS),
        (0, -60, ARRIVED_MS - 60_000),
        (0, 1.5, ARRIVED_MS + 1500),
        (-100, 40, ARRIVED_MS - 60_000),
        (2**28, 0, 2**28 * 1000),
        (2**28, -1, ARRIVED_MS + (2**28 - 1) * 1000),
        (1_700_000_000, 0.25, 1_700_000_000_250),
    ],
)
def test_a_time_below_two_to_the_28th_counts_from_the_arrival(
    base: float, time: float, moment_ms: int
) -> None:
    told_times = [
        member.time
        for member in members(
            json.dumps([{"bt": base, "n": "a", "t": time, "v": 1}]).encode(),
            "",
            arrival_us=ARRIVED_MS * 1000,
        )
    ]
    assert told_times == [Instant(moment_ms * 1000)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"n": "bad", "v": 1, "vs": "x"}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": "1"}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": True}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "vb": 1}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "vs": 1}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "vd": 1}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": {}}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": 1, "secret_": 1}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": None}, Reason.VALUE_NULL),
        ({"n": "bad", "t": 5}, Reason.VALUE_MISSING),
        ({"n": "bad", "v": 1, "t": "noon"}, Reason.TIMESTAMP_MALFORMED),
        ({"n": "bad", "v": 1, "t": 1e300}, Reason.TIMESTAMP_MALFORMED),
        ({"n": "bad", "v": 1, "t": -1e10}, Reason.TIMESTAMP_BEFORE_1970),
        ({"n": "bad", "v": 1, "t": 4e9}, Reason.TIMESTAMP_IN_FUTURE),
        ({"n": "bad", "vs": ""}, Reason.VALUE_EMPTY),
        ({"n": 5, "v": 1}, Reason.RECORD_MALFORMED),
        ({"n": "bad", "v": 1, "u": "\x00"}, Reason.NUL_CHARACTER),
    ],
    ids=str,
)
def test_a_bad_record_is_rejected_alone(record: dict[str, Any], reason: Reason) -> None:
    parsed = senml({"n": "a", "v": 1}, record, {"n": "b", "v": 2})
    assert told(parsed) == {"a": 1.0, "b": 2.0}
    assert list(refused(parsed).values()) == [reason]


@pytest.mark.parametrize(
    "base",
    [{"bn": 5}, {"bt": "noon"}, {"bv": None}, {"bs": True}, {"bver": 11}, {"bver": 0}, {"bver": 25}],
    ids=str,
)
def test_a_bad_base_field_spoils_the_pack(base: dict[str, Any]) -> None:
    parsed = senml({"n": "a", "v": 1}, {**base, "n": "b", "v": 2})
    assert not parsed.readings
    assert refused(parsed) == {"": Reason.RECORD_MALFORMED}


@pytest.mark.parametrize("version", [1, 5, 10, 26])
def test_records_of_base_fields_hold_nothing_and_known_versions_are_taken(version: int) -> None:
    assert told(senml({"bn": "x/", "bver": version}, {"n": "a", "v": 1, "ut": 9})) == {"x/a": 1.0}


def test_fields_that_are_not_known_are_passed_over_where_the_format_is_said() -> None:
    pack = [{"n": "a", "v": 1, "colour": "red"}]
    parser = parser_of(payload_formats=(("#", PayloadFormat.SENML),))
    for payload in (json.dumps(pack).encode(), cbor2.dumps(pack)):
        assert told(parse("devices/d/telemetry", payload, parser)) == {"a": 1.0}


def test_an_array_is_taken_for_senml_only_where_all_its_fields_are_senmls() -> None:
    for odd in ({"temp": 21}, {"name": "x"}, {"ts": 5}):
        parsed = parse("devices/d/telemetry", json.dumps([{"n": "door", "s": 3}, odd]).encode())
        assert told(parsed)["0.n"] == "door"
        assert told(parsed)["0.s"] == 3.0


def test_the_topic_may_give_a_pack_its_name() -> None:
    assert told(parse("pico/temp/d", b'[{"v": 1, "u": "Cel"}]')) == {"temp": 1.0}
    parsed = parse("pico/temp/d", b'[{"bt": 1768478400, "v": 1}, {"t": 1, "v": 2}]')
    assert [one.timestamp_us // 1000 - NOON_MS for one in parsed.readings] == [0, 1000]
    assert told(parse("devices/d/telemetry", b'[{"v": 1}]')) == {"0.v": 1.0}
    assert told(parse("pico/temp/d", b'[{"t": 1}]')) == {"temp.0.t": 1.0}


def test_cbor_takes_its_numbers_for_labels_and_decimal_fractions_for_numbers() -> None:
    parsed = parse("devices/d/telemetry", cbor2.dumps([{-2: "x/", 0: "a", 2: Decimal("21.5"), 99: "?"}]))
    assert told(parsed) == {"x/a": 21.5}


def test_a_label_in_cbor_that_is_neither_number_nor_text_is_passed_over() -> None:
    labels = (True, (1, (2, 3)), b"n", 1.0)
    parsed = parse("devices/d/telemetry", cbor2.dumps([{0: "a", 2: 3, **dict.fromkeys(labels, 9)}]))
    (reading,) = parsed.readings
    assert (reading.sensor_type, reading.value, reading.metadata) == ("a", 3.0, None)


def test_a_unit_of_more_than_a_hundred_characters_is_refused_with_the_records_that_have_it() -> None:
    parsed = senml(
        {"n": "a", "v": 1, "u": "u" * 100},
        {"bu": "b" * 101, "n": "b", "v": 2},
        {"n": "c", "v": 3, "u": "c" * 101},
        {"n": "d", "v": 4, "u": "C"},
        {"n": "e", "v": 5, "s": 6},
    )
    assert told(parsed) == {"a": 1.0, "d": 4.0}
    assert refused(parsed) == dict.fromkeys("bce", Reason.RECORD_MALFORMED)


def test_the_metadata_of_a_unit_is_built_once() -> None:
    pack = json.dumps([{"n": "a", "u": "Cel", "v": 1}, {"n": "b", "bu": "Cel", "v": 2}, {"n": "c", "v": 3}])
    told_units = [member.metadata for member in members(pack.encode(), "")]
    assert told_units[0] == b'{"unit": "Cel"}'
    assert all(unit is told_units[0] for unit in told_units)


def test_an_array_of_plain_objects_is_not_taken_for_senml() -> None:
    assert told(parse("devices/d/telemetry", b'[{"t": 1, "v": 2}, {"name": "x"}]')) == {
        "0.t": 1.0,
        "0.v": 2.0,
        "1.name": "x",
    }


# Sparkplug B

INT8, INT16, INT32, INT64, UINT8, UINT32, UINT64 = 1, 2, 3, 4, 5, 7, 8


@pytest.mark.parametrize(
    ("datatype", "field", "raw", "value"),
    [
        (INT8, "int_value", 255, -1),
        (INT8, "int_value", 2**32 - 1, -1),
        (INT8, "int_value", 127, 127),
        (INT16, "int_value", 2**16 - 5, -5),
        (INT16, "int_value", 2**32 - 5, -5),
        (INT32, "int_value", 2**31, -(2**31)),
        (INT32, "long_value", 2**64 - 3, -3),
        (INT64, "long_value", 2**64 - 2**40, -(2**40)),
        (UINT8, "int_value", 255, 255),
        (UINT32, "int_value", 2**32 - 1, 2**32 - 1),
        (UINT32, "long_value", 2**32 - 1, 2**32 - 1),
        (UINT64, "long_value", 2**63, 2**63),
        (0, "int_value", 2**31 - 1, 2**31 - 1),
        (0, "long_value", 2**40, 2**40),
        (13, "long_value", NOON_MS, NOON_MS),
    ],
)
def test_the_datatype_tells_the_sign_of_an_integer(datatype: int, field: str, raw: int, value: int) -> None:
    parsed = parse("spBv1.0/g/NDATA/d", encoded({"name": b"x", "datatype": datatype, field: raw}))
    assert told(parsed) == {"x": float(value)}


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ({"name": b"bad"}, Reason.VALUE_UNSUPPORTED),
        ({"name": b"bad", "datatype": INT8, "int_value": 300}, Reason.VALUE_OUT_OF_RANGE),
        ({"name": b"bad", "int_value": 2**31}, Reason.VALUE_SIGN_UNKNOWN),
        ({"name": b"bad", "long_value": 2**63}, Reason.VALUE_SIGN_UNKNOWN),
        ({"alias": 7, "double_value": 1.0}, Reason.METRIC_WITHOUT_NAME),
        ({"name": b"bad", "double_value": float("nan")}, Reason.VALUE_NAN),
        ({"name": b"bad", "string_value": b"\xff"}, Reason.INVALID_UTF8),
        ({"name": b"\xff", "double_value": 1.0}, Reason.INVALID_UTF8),
        ({"name": b"bad", "double_value": 1.0, "timestamp": 2**64 - 1}, Reason.TIMESTAMP_IN_FUTURE),
    ],
    ids=str,
)
def test_a_bad_metric_is_rejected_alone(metric: dict[str, Any], reason: Reason) -> None:
    payload = encoded({"name": b"a", "double_value": 1.0}, metric, {"name": b"b", "boolean_value": False})
    parsed = parse("spBv1.0/g/NDATA/d", payload)
    assert told(parsed) == {"a": 1.0, "b": 0.0}
    assert list(refused(parsed).values()) == [reason]


@pytest.mark.parametrize(
    "metric",
    [
        {"name": b"x", "is_null": True, "datatype": INT32},
        {"name": b"x", "is_null": True, "int_value": 5},
        {"name": b"x", "string_value": b"", "datatype": 12},
        {"name": b"_types_/Pump", "datatype": 19},
        {"name": b"table", "datatype": 16},
        {"name": b"pump", "template_value": b"\x28\x01"},
        {"name": b"table", "dataset_value": b"\x08\x02"},
        {"name": b"Node Control/Rebirth", "boolean_value": False},
    ],
    ids=str,
)
def test_a_metric_that_holds_no_single_value_is_left_out(metric: dict[str, Any]) -> None:
    parsed = parse("spBv1.0/g/NDATA/d", encoded(metric, {"name": b"a", "double_value": 1.0}))
    assert (told(parsed), refused(parsed)) == ({"a": 1.0}, {})


def test_the_rejection_of_an_alias_says_what_to_do() -> None:
    (rejection,) = parse("spBv1.0/g/NDATA/d", encoded({"alias": 7, "int_value": 1})).rejections
    assert "send names" in rejection.sentence
    assert rejection.value == "7"


def test_without_any_timestamp_the_arrival_counts() -> None:
    payload = encoded({"name": b"a", "double_value": 1.0}, timestamp=None)
    assert parse("spBv1.0/g/NDATA/d", payload).readings[0].timestamp_us == ARRIVED_MS * 1000


def test_fields_that_are_not_read_are_passed_over() -> None:
    # seq = 9 (field 3) in the payload; is_historical (5), metadata (8) and properties (9) in the metric
    metric = b"\x0a\x01a" + b"\x28\x01" + b"\x42\x02\x08\x01" + b"\x4a\x00" + b"\x69" + pack("<d", 2.5)
    payload = b"\x18\x09" + b"\x12" + bytes([len(metric)]) + metric
    assert told(parse("spBv1.0/g/NDATA/d", payload)) == {"a": 2.5}


def test_a_compressed_payload_is_told_as_such() -> None:
    payload = Payload(uuid=b"SPBV1.0_COMPRESSED").SerializeToString()
    assert refused(parse("spBv1.0/g/NDATA/d", payload)) == {"": Reason.PAYLOAD_UNEXPECTED}


# What no input may do

FORMATS = list(PayloadFormat)
ZONE = ZoneInfo("Europe/Berlin")
names = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        re.findall(
            r"\w+",
            """ts timestamp values value metadata Time Epoch TempUnit last_seen update method params events
            component event object time uplink_message decoded_payload received_at n v vs vb vd s t u ut
            bn bt bu bv bs bver""",
        )
    ),
)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=6),
    st.text(st.characters(categories=["Cs", "Cc"]), max_size=3),
    st.sampled_from(
        ["NotifyStatus", "NotifyEvent", "2026-01-15T13:00:00", "1970-01-01T00:00:00Z", 1768478400]
    ),
)


def _trees(leaves: st.SearchStrategy[Any], labels: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(labels, below, max_size=5)),
        max_leaves=12,
    )


json_payloads = _trees(scalars, names).map(lambda tree: json.dumps(tree).encode())
cbor_scalars = st.one_of(
    scalars.filter(lambda value: not isinstance(value, str) or value.isascii()),
    st.binary(max_size=6),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.builds(
        cbor2.CBORTag,
        st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1)),
        st.one_of(
            st.integers(), st.text(st.characters(max_codepoint=127), max_size=6), st.binary(max_size=6)
        ),
    ),
)
records = st.dictionaries(
    st.one_of(st.integers(-7, 10), names.filter(str.isascii)), cbor_scalars, max_size=6
)
cbor_payloads = st.one_of(st.lists(records, max_size=4), _trees(cbor_scalars, st.integers(-7, 10))).map(
    cbor2.dumps
)
metrics = st.fixed_dictionaries(
    {},
    optional={
        "name": st.binary(max_size=4),
        "alias": st.integers(0, 2**64 - 1),
        "timestamp": st.integers(0, 2**64 - 1),
        "datatype": st.integers(0, 40),
        "is_null": st.booleans(),
        "is_transient": st.booleans(),
        "int_value": st.integers(0, 2**32 - 1),
        "long_value": st.integers(0, 2**64 - 1),
        "float_value": st.floats(width=32),
        "double_value": st.floats(),
        "string_value": st.binary(max_size=4),
    },
)
sparkplug_payloads = st.lists(metrics, max_size=4).map(lambda found: encoded(*found))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A payload of any kind, perhaps with a piece cut out and something put in."""
    raw = draw(st.one_of(st.binary(max_size=60), json_payloads, cbor_payloads, sparkplug_payloads))
    if draw(st.booleans()):
        return raw
    start = draw(st.integers(0, len(raw)))
    return (
        raw[:start]
        + draw(st.binary(max_size=3))
        + raw[draw(st.integers(start, min(len(raw), start + 4))) :]
    )


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(damaged(), st.sampled_from(FORMATS), st.sampled_from(["", "room"]), st.sampled_from([None, ZONE]))
def test_whatever_the_payload_under_whichever_format_only_bad_is_raised(
    payload: bytes, form: PayloadFormat, sensor: str, zone: ZoneInfo | None
) -> None:
    try:
        found = list(members(payload, sensor, form, ARRIVED_MS * 1000, zone))
    except Bad:
        found = []
    assert all(isinstance(member, Member) for member in found)
    parser = parser_of(
        topic_templates=("{sensor_type}/{device_id}", "{device_id}"),
        status_templates=(),
        payload_formats=(("#", form),),
        zone=zone,
        max_readings_per_entry=5,
    )
    parsed = parse(f"{sensor}/d" if sensor else "d", payload, parser)
    assert parsed.readings or parsed.rejections or form in FORMATS_OF_MAKERS
    assert len(parsed.readings) + len(parsed.rejections) <= 5
    check_storable(parsed, DEFAULTS, (ARRIVED_MS + 3_600_000) * 1000)


def tagged(tag: int, content: object) -> bytes:
    """A pack with a value under a tag."""
    return cbor2.dumps([{0: "a", 2: cbor2.CBORTag(tag, content)}])


def referring(levels: int) -> bytes:
    """A pack in which each label holds the one before 200 times, by reference: 200 ** levels in full."""
    first = b"\xa1\xd8\x1c\x82\x01\x02\x00"
    more = [
        b"\xa1\xd8\x1c\x98\xc8" + (b"\xd8\x1d" + cbor2.dumps(below)) * 200 + b"\x00"
        for below in range(levels)
    ]
    return b"\x98" + bytes([levels + 1]) + first + b"".join(more)


BIG = cbor2.dumps((1 << 3_900_000) - 12345)
# What cbor2 would compute by itself, for seconds up to for ever, or fail at with an error of Python's
COMPUTED = {
    "label of a big number": b"\x81\xa1\x81" + cbor2.dumps(10**4301) + b"\x01",
    "label of a fraction": b"\x81\xa1\xd8\x1e\x82" + cbor2.dumps(1 << 20000) + b"\x03\x01",
    "labels by reference": referring(6),
    "fraction of big numbers": b"\x81\xa1\x02\xd8\x1e\x82" + BIG + cbor2.dumps(3**2_400_000),
    "decimal fraction of a big number": b"\x81\xa1\x02\xc4\x82\x20" + BIG,
    "decimal fraction of a text": tagged(4, [-1, "9" * 900_000]),
    "big float": b"\x81\xa1\x02\xc5\x82\x20" + BIG,
    "big exponent": tagged(5, [10**8, 3]),
    "pattern": tagged(35, "a{1,60000}" * 5000),
    "mail": tagged(36, "Content-Type: multipart/mixed; boundary=a\n\n" + "--a\n" * 200_000),
    "time": tagged(1, 1e300),
    "time in text": tagged(0, "2" * 500_000),
    "set": tagged(258, [[1]]),
}
# One step over 1 MiB, in every way that a format can be made to work hard
HEAVY = {
    **{f"cbor {name}": (payload, PayloadFormat.AUTO) for name, payload in COMPUTED.items()},
    "long base unit": (
        b'[{"bn":"a","bu":"' + "é".encode() * 400_000 + b'"}' + b',{"v":1}' * 990 + b"]",
        PayloadFormat.AUTO,
    ),
    "long base unit in cbor": (
        cbor2.dumps([{-2: "a", -4: "é" * 400_000}] + [{2: 1}] * 990),
        PayloadFormat.AUTO,
    ),
    "wide": (b"[" + b"1," * 500_000 + b"1]", PayloadFormat.AUTO),
    "empty": (b"[" + b"[]," * 340_000 + b"[]]", PayloadFormat.AUTO),
    "long name": (b'{"' + b"n" * 900_000 + b'": [' + b"1," * 50_000 + b"1]}", PayloadFormat.AUTO),
    "deep": (b"[" * 900 + b"]" * 900, PayloadFormat.AUTO),
    "wide and deep": (
        b'{"a":' * 7 + b"[" + b"[[1]]," * 170_000 + b"1]" + b"}" * 7,
        PayloadFormat.ZIGBEE2MQTT,
    ),
    "null": (
        b"{" + b'"a":null,' * 1 + b'"b":[' + b"null," * 200_000 + b"null]}",
        PayloadFormat.ZIGBEE2MQTT,
    ),
    "long base name": (
        b'[{"bn":"' + b"n" * 900_000 + b'"},' + b'{"v":1},' * 10_000 + b'{"v":1}]',
        PayloadFormat.SENML,
    ),
    "cbor": (b"\x9f" + b"\xa1\x02\x01" * 340_000 + b"\xff", PayloadFormat.AUTO),
    "cbor claims": (b"\x9b" + b"\xff" * 8 + b"\xa1", PayloadFormat.SENML),
    "cbor tags": (b"\x81" + b"\xc1" * 1_000_000, PayloadFormat.SENML),
    "cbor fraction": (
        cbor2.dumps([{0: "a", 2: cbor2.CBORTag(4, [2**60, 1])}] * 50_000),
        PayloadFormat.SENML,
    ),
    "cbor big float": (cbor2.dumps([{0: "a", 2: cbor2.CBORTag(5, [10**9, 1])}]), PayloadFormat.SENML),
    "metrics": (b"\x12\x00" * 520_000, PayloadFormat.SPARKPLUG_B),
    "groups": (b"\x0b" * 1_000_000, PayloadFormat.SPARKPLUG_B),
}


def parse_heavy(kind: str) -> Parsed:
    payload, form = HEAVY[kind]
    assert len(payload) <= DEFAULTS.max_entry_bytes
    parser = parser_of(topic_templates=("{device_id}",), payload_formats=(("#", form),))
    return parse("d", payload, parser)


@pytest.mark.parametrize("kind", HEAVY)
def test_a_payload_of_a_mebibyte_costs_bounded_time(kind: str) -> None:
    started = time.process_time()
    parsed = parse_heavy(kind)
    assert time.process_time() - started < 3  # tenths of a second; what is not linear takes minutes
    assert parsed.rejections or kind == "null"
    assert len(parsed.readings) + len(parsed.rejections) <= DEFAULTS.max_readings_per_entry


@pytest.mark.parametrize("payload", COMPUTED.values(), ids=COMPUTED)
def test_what_a_cbor_decoder_would_compute_is_refused_unread(payload: bytes) -> None:
    assert refused(parse("devices/d/telemetry", payload)) == {"": Reason.PAYLOAD_NOT_CBOR}


@pytest.mark.parametrize(
    "kind", ["long name", "long base name", "long base unit", "long base unit in cbor"]
)
def test_a_long_text_is_not_repeated_with_every_member_below_it(kind: str) -> None:
    tracemalloc.start()
    try:
        assert parse_heavy(kind).rejections
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000


@pytest.mark.parametrize(
    ("payload", "form"),
    [
        (b'{"a": [' + b"1," * 100_000 + b"1]}", PayloadFormat.AUTO),
        (json.dumps(SENML * 20_000).encode(), PayloadFormat.AUTO),
        (encoded(*[{"name": b"a", "double_value": 1.0}] * 20_000), PayloadFormat.SPARKPLUG_B),
    ],
    ids=["json", "senml", "sparkplug"],
)
def test_members_are_made_only_as_far_as_they_are_asked_for(payload: bytes, form: PayloadFormat) -> None:
    found = members(payload, "", form, ARRIVED_MS * 1000)
    tracemalloc.start()
    try:
        assert len(list(islice(found, 10))) == 10
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


# Documentation


def test_every_format_and_its_topics_are_documented() -> None:
    text = (ROOT / "docs" / "payloads.md").read_text(encoding="utf-8")
    for form in PayloadFormat:
        assert f"`{form}`" in text
    for template in DEFAULTS.topic_templates[5:9] + DEFAULTS.status_templates[4:]:
        assert f"`{template}`" in text, template


def test_every_reason_is_documented() -> None:
    text = (ROOT / "docs" / "entries.md").read_text(encoding="utf-8")
    for reason in Reason:
        assert f"`{reason}`" in text, reason
