"""From an entry of an event stream to a device event: both forms, and whatever bytes arrive."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_events import MAX_DEVICES, parse_event
from schema import Bad, DeviceEvent, Entry, EventKind, Reason

MOMENT = (1_700_000_000_000, 3)
RULE = {
    "sensor_id": "s-1",
    "device_id": "d1",
    "key": "temperature",
    "threshold_id": "t-1",
    "threshold_type": "max",
    "value": 30.5,
    "severity": "critical",
}
PARSED = DeviceEvent(
    EventKind.THRESHOLD_CREATED, MOMENT, ("d1",), "t-1", "temperature", "max", 30.5, "critical", "s-1"
)


def entry(*fields: bytes) -> Entry:
    return Entry(b"devices.something", b"1700000000000-3", fields)


def flat(members: dict[str, Any]) -> Entry:
    """As Redis holds it: every value is a text."""
    pairs = [
        (name, value if isinstance(value, bytes) else str(value).encode())
        for name, value in members.items()
    ]
    return entry(*(part for name, value in pairs for part in (name.encode(), value)))


def document(members: Any) -> Entry:
    return entry(b"data", json.dumps(members).encode())


FORMS = pytest.mark.parametrize("form", [flat, document])
CHANGES = pytest.mark.parametrize("kind", [EventKind.THRESHOLD_CREATED, EventKind.THRESHOLD_UPDATED])


def refusal(given: Entry, kind: EventKind) -> Bad:
    with pytest.raises(Bad) as caught:
        parse_event(given, kind)
    assert caught.value.reason is Reason.EVENT_MALFORMED
    assert caught.value.sentence
    assert "\n" not in caught.value.sentence
    assert len(caught.value.value) <= 200
    return caught.value


@FORMS
@CHANGES
def test_a_threshold_is_read_in_both_forms(form: Any, kind: EventKind) -> None:
    assert parse_event(form({**RULE, "note": "passed over"}), kind) == PARSED._replace(kind=kind)


@FORMS
def test_of_a_deleted_threshold_only_the_id_is_read(form: Any) -> None:
    given = form({"sensor_id": "", "device_id": "d*", "key": "?", "threshold_id": "t-1"})
    expected = DeviceEvent(EventKind.THRESHOLD_DELETED, MOMENT, ("d*",), "t-1")
    assert parse_event(given, EventKind.THRESHOLD_DELETED) == expected


@FORMS
def test_a_deleted_device_is_read_in_both_forms(form: Any) -> None:
    given = form({"device_id": "d:1*", "place_id": "home"})
    assert parse_event(given, EventKind.DEVICE_DELETED) == DeviceEvent(
        EventKind.DEVICE_DELETED, MOMENT, ("d:1*",)
    )


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(document({"device_ids": ["b", "a", "b"]}), id="object"),
        pytest.param(flat({"device_ids": ' ["b", "a", "b"]'}), id="JSON text"),
        pytest.param(flat({"device_ids": "b, a ,b"}), id="commas"),
    ],
)
def test_devices_deleted_in_bulk_are_named_once_each(given: Entry) -> None:
    assert parse_event(given, EventKind.DEVICE_DELETED).devices == ("b", "a")


def test_ten_thousand_devices_are_taken_and_one_more_refused() -> None:
    names = [f"d{n}" for n in range(MAX_DEVICES)]
    for form in (document({"device_ids": names}), flat({"device_ids": ",".join(names)})):
        assert len(parse_event(form, EventKind.DEVICE_DELETED).devices) == MAX_DEVICES
    assert (
        "at most 10000"
        in refusal(document({"device_ids": [*names, "x"]}), EventKind.DEVICE_DELETED).sentence
    )


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"device_id": ""},
        {"device_id": " "},
        {"device_id": "d" * 101},
        {"device_id": "d\x00"},
        {"device_ids": ""},
        {"device_ids": "a,,b"},
        {"device_ids": "a,"},
        {"device_ids": "[]"},
        {"device_ids": '["a"'},
        {"device_ids": '["a", ""]'},
        {"device_ids": '["a", 7]'},
        {"device_ids": '["a", "\\ud800"]'},
        {"device_ids": b"\xff"},
        {"device_ids": "a", "device_id": "a"},
    ],
    ids=repr,
)
def test_a_deletion_that_does_not_name_its_devices_is_refused(members: dict[str, Any]) -> None:
    refusal(flat({"place_id": "home", **members}), EventKind.DEVICE_DELETED)


@pytest.mark.parametrize("value", [None, 7, True, {}, "a", [None], [["a"]], [{}], [True], []], ids=repr)
def test_device_ids_that_are_no_array_of_texts_are_refused(value: object) -> None:
    refusal(document({"device_ids": value}), EventKind.DEVICE_DELETED)


BAD_MEMBERS: list[tuple[str, list[Any]]] = [
    ("device_id", ["", "d" * 101, "d*", "d?", "a\x00b"]),
    ("key", ["", "k" * 101, "*", "k?", "a\x00b"]),
    ("threshold_id", ["", " ", "t" * 101, "a\nb", "a\x00b", "a\x7fb", "a\x85b"]),
    ("threshold_type", ["", "rate", "MAX", "max "]),
    ("severity", ["", "info", "Critical"]),
    ("value", ["", "high", "nan", "NaN", "inf", "1e999", "0x10", "1_0", "1,5", "true"]),
    ("sensor_id", ["s" * 101, "a\nb"]),
]


@FORMS
@CHANGES
@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, many in BAD_MEMBERS for bad in many])
def test_a_threshold_with_a_bad_member_is_refused(form: Any, kind: EventKind, name: str, bad: str) -> None:
    refusal(form({**RULE, name: bad}), kind)


@FORMS
@pytest.mark.parametrize("name", [name for name in RULE if name != "sensor_id"])
def test_a_threshold_without_a_member_is_refused(form: Any, name: str) -> None:
    members = {key: value for key, value in RULE.items() if key != name}
    assert name in refusal(form(members), EventKind.THRESHOLD_CREATED).sentence


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("value", True),
        ("value", None),
        ("value", [1]),
        ("value", {}),
        ("value", 10**400),
        ("value", math.inf),
        ("value", math.nan),
        ("value", "\ud800"),
        ("device_id", 7),
        ("device_id", "\ud800"),
        ("key", None),
        ("threshold_id", 7),
        ("threshold_id", "\udfff"),
        ("threshold_type", ["max"]),
        ("severity", "\ud800"),
        ("sensor_id", 7),
    ],
)
def test_a_member_of_another_kind_is_refused(name: str, bad: object) -> None:
    refusal(document({**RULE, name: bad}), EventKind.THRESHOLD_CREATED)


@pytest.mark.parametrize("value", ["30.5", " 30.5 ", "3.05e1", 30.5])
def test_a_limit_may_be_a_number_or_text_of_one(value: object) -> None:
    assert parse_event(document({**RULE, "value": value}), EventKind.THRESHOLD_CREATED).value == 30.5


@pytest.mark.parametrize("absent", [None, "", "absent"])
def test_the_id_of_the_sensor_may_be_absent(absent: str | None) -> None:
    members = {key: value for key, value in RULE.items() if key != "sensor_id"}
    if absent != "absent":
        members["sensor_id"] = absent
    assert parse_event(document(members), EventKind.THRESHOLD_CREATED).sensor_id is None


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(entry(), id="nothing"),
        pytest.param(entry(b"device_id", b"a", b"device_id", b"b"), id="a field twice"),
        pytest.param(entry(b"device_id"), id="half a pair"),
        pytest.param(entry(b"data", b""), id="no JSON"),
        pytest.param(entry(b"data", b"[1]"), id="an array"),
        pytest.param(entry(b"data", b"\xff"), id="not UTF-8"),
        pytest.param(entry(b"data", b'{"device_id": "a", "device_id": "b"}'), id="a member twice"),
        pytest.param(entry(b"data", b'{"a":' * 100_000), id="deep"),
        pytest.param(entry(b"data", b'{"device_id": ' + b"1" * 10_000 + b"}"), id="long number"),
        pytest.param(entry(b"device_id", b"\xff"), id="bytes"),
    ],
)
def test_an_entry_that_is_no_event_is_refused(given: Entry) -> None:
    refusal(given, EventKind.DEVICE_DELETED)


# Whatever bytes arrive

NAMES = [*RULE, "device_ids", "data", "place_id"]
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.sampled_from(["min", "max", "warning", "critical", "1", "d1", "*", "\ud800", ["a", "b"]]),
)
documents = st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=3)), values, max_size=9)
near = st.builds(lambda changes: {**RULE, **changes}, documents)
payloads = st.one_of(documents, near).map(lambda members: json.dumps(members).encode())
raw = st.one_of(
    st.binary(max_size=20), payloads, st.text(max_size=9).map(lambda t: t.encode("utf-8", "replace"))
)
names = st.one_of(st.sampled_from([name.encode() for name in NAMES]), st.binary(max_size=5))
wild = st.lists(st.one_of(names, raw), max_size=10).map(lambda parts: entry(*parts))
shaped = st.one_of(
    st.dictionaries(names, raw, max_size=9).map(
        lambda pairs: entry(*(p for pair in pairs.items() for p in pair))
    ),
    st.builds(
        lambda changes: flat({**RULE, **changes}), st.dictionaries(st.sampled_from(NAMES), raw, max_size=3)
    ),
    payloads.map(lambda text: entry(b"data", text)),
)


def answer(given: Entry, kind: EventKind) -> DeviceEvent | Bad:
    try:
        return parse_event(given, kind)
    except Bad as bad:
        return bad


@settings(max_examples=400, deadline=None)
@given(st.one_of(wild, shaped), st.sampled_from(EventKind))
def test_whatever_bytes_arrive_an_event_is_one_that_the_database_takes_or_is_refused(
    given: Entry, kind: EventKind
) -> None:
    event = answer(given, kind)
    if isinstance(event, Bad):
        assert event.reason is Reason.EVENT_MALFORMED
        assert len(event.value) <= 200
        return
    assert (event.kind, event.moment) == (kind, MOMENT)
    assert 1 <= len(event.devices) <= MAX_DEVICES
    texts = [*event.devices, event.threshold_id, event.sensor_type, event.sensor_id or ""]
    assert all(len(text) <= 100 and "\x00" not in text for text in texts)
    assert all(text.encode("utf-8").decode() == text for text in texts)
    if kind is EventKind.DEVICE_DELETED:
        return
    assert len(event.devices) == 1
    assert event.threshold_id.strip()
    if kind is not EventKind.THRESHOLD_DELETED:
        assert not {"*", "?"} & set(event.devices[0] + event.sensor_type)
        assert event.bound in ("min", "max")
        assert event.severity in ("warning", "critical")
        assert math.isfinite(event.value)
