"""Alerts as MQTT messages: topics that any broker takes, and the JSON of the interface."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

import config
from mqtt.messages import LONGEST_TEXT, TOPIC_NAMES, DueAlert, Event, payload_of, topic_of
from mqtt.notes import Seldom

ALERT = DueAlert(
    id=uuid.UUID(int=7),
    created_due=True,
    resolved_due=True,
    sensor_id=None,
    threshold_id="t1",
    device_id="d1",
    place_id="p1",
    sensor_type="temperature",
    value=31.5,
    value_text=None,
    threshold_value=30.0,
    threshold_text=None,
    threshold_type="max",
    severity="critical",
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
    resolved_at=datetime(2026, 1, 2, 4, 0, 0, tzinfo=timezone(timedelta(hours=1))),
)
KEYS = [
    "id", "event_type", "sensor_id", "threshold_id", "device_id", "place_id", "key", "value",
    "threshold_value", "threshold_type", "severity", "created_at", "resolved_at",
]  # fmt: skip


def test_the_message_of_a_new_alert_has_the_fields_of_the_interface() -> None:
    message = json.loads(payload_of(ALERT, Event.CREATED))
    assert list(message) == KEYS
    assert message == {
        "id": "00000000-0000-0000-0000-000000000007",
        "event_type": "created",
        "sensor_id": None,
        "threshold_id": "t1",
        "device_id": "d1",
        "place_id": "p1",
        "key": "temperature",
        "value": 31.5,
        "threshold_value": 30.0,
        "threshold_type": "max",
        "severity": "critical",
        "created_at": "2026-01-02T03:04:05.678000Z",
        "resolved_at": None,
    }


def test_the_message_of_a_resolved_alert_says_when_in_utc() -> None:
    message = json.loads(payload_of(ALERT, Event.RESOLVED))
    assert (message["event_type"], message["resolved_at"]) == ("resolved", "2026-01-02T03:00:00Z")


def test_rules_about_states_tell_their_texts() -> None:
    state = replace(ALERT, value=None, value_text="open", threshold_value=None, threshold_text="closed")
    message = json.loads(payload_of(replace(state, threshold_type="differs"), Event.CREATED))
    assert (message["value"], message["threshold_value"]) == ("open", "closed")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_becomes_null(number: float) -> None:
    def strict(word: str) -> None:
        raise AssertionError(word)

    text = payload_of(replace(ALERT, value=number, threshold_value=number), Event.CREATED)
    message = json.loads(text, parse_constant=strict)
    assert (message["value"], message["threshold_value"]) == (None, None)


def test_a_long_state_is_cut_so_that_no_broker_finds_the_message_too_large() -> None:
    state = replace(ALERT, value=None, value_text="x" * 100_000)
    assert json.loads(payload_of(state, Event.CREATED))["value"] == "x" * LONGEST_TEXT


def test_created_comes_before_resolved() -> None:
    assert ALERT.due == [Event.CREATED, Event.RESOLVED]
    assert replace(ALERT, created_due=False).due == [Event.RESOLVED]


@pytest.mark.parametrize(
    ("template", "place", "topic"),
    [
        ("placebrain/{place_id}/alerts", "p1", "placebrain/p1/alerts"),
        ("placebrain/{place_id}/alerts", "", "placebrain/unknown/alerts"),
        ("a/x-{place_id}-{severity}/{device_id}/{sensor_type}", "p", "a/x-p-critical/d1/temperature"),
        ("{place_id}/alerts", "a/b+c#d\0e\nf", "a_b_c_d_e_f/alerts"),
        ("{place_id}/alerts", "{device_id}", "{device_id}/alerts"),
        ("{place_id}/alerts", "$SYS", "_SYS/alerts"),
        ("$aws/rules/x/{place_id}", "p", "$aws/rules/x/p"),
    ],
)
def test_a_topic_is_its_template_with_names_put_in(template: str, place: str, topic: str) -> None:
    assert topic_of(template, replace(ALERT, place_id=place)) == topic


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=3000), st.text(max_size=300))
def test_no_name_whatever_it_holds_makes_a_topic_that_a_broker_refuses(place: str, device: str) -> None:
    template = "{place_id}/{device_id}{severity}/x"
    topic = topic_of(template, replace(ALERT, place_id=place, device_id=device))
    assert topic.count("/") == 2
    assert all(topic.split("/"))
    assert not topic.startswith("$")
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 or sign in "+#" for sign in topic)
    client = Client(CallbackAPIVersion.VERSION2)
    assert client.publish(topic, b"", qos=1).mid  # raises where paho finds fault with it


@given(st.text(max_size=50), st.floats(), st.text(max_size=50))
def test_every_alert_makes_one_strict_json_object(place: str, value: float, sensor: str) -> None:
    alert = replace(ALERT, place_id=place, value=value, sensor_id=sensor)
    message = json.loads(payload_of(alert, Event.CREATED))
    assert (message["place_id"], message["sensor_id"]) == (place, sensor)


def test_settings_take_the_names_that_topics_have() -> None:
    template = "/".join(f"{{{name}}}" for name in TOPIC_NAMES)
    assert config.load(database_url="postgresql://h/d", alert_topic=template).alert_topic == template


def test_the_same_words_are_said_at_growing_intervals_and_anew_after_a_calm() -> None:
    now = 0.0
    seldom = Seldom(lambda: now)
    said = []
    for second in range(100):
        now = float(second)
        if seldom.may_say("refused"):
            said.append(second)
    assert said == [0, 10, 30, 70]
    assert seldom.may_say("something else")
    now = 500.0
    assert seldom.may_say("refused")
    now = 511.0
    assert seldom.may_say("refused")
