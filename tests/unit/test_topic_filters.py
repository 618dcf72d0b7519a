"""Filters that come from templates, and pairs of filters that share topics, against every short topic."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from mqtt.filters import covers, filters_of, overlapping
from schema import Bad
from topics import Topics

LEVELS = ("a", "b", "", "$s")
TOPICS = ["/".join(levels) for length in range(1, 5) for levels in product(LEVELS, repeat=length)]
TOPICS.remove("")  # a topic has at least one character

levels = st.sampled_from([*LEVELS, "+", "+"])
filters = st.builds(
    lambda found, rest: "/".join([*found, *rest]),
    st.lists(levels, max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(lambda found: found not in ("", "/#"))  # of the latter, a part is the topic without a character
_names = st.sampled_from(["{any}", "{any}", "{other}", "a", "b", "$s", ""])
templates = st.lists(_names, min_size=1, max_size=4).map("/".join).filter(bool)

few = settings(max_examples=100, deadline=None)


@cache
def matched(wanted: str) -> frozenset[str]:
    return frozenset(topic for topic in TOPICS if topic_matches_sub(wanted, topic))


@few
@given(filters, filters)
def test_a_filter_covers_another_when_it_matches_all_its_topics(wide: str, narrow: str) -> None:
    """`+/#` and `#` are the same, which no template leads to: there a filter may be kept in vain."""
    if covers(wide, narrow):
        assert matched(narrow) <= matched(wide)
    elif matched(narrow) <= matched(wide):
        assert wide.endswith("/#")
        assert narrow.endswith("#")


@few
@given(st.lists(filters, max_size=4, unique=True))
def test_filters_overlap_when_a_topic_matches_both(wanted: list[str]) -> None:
    expected = [
        (one, other)
        for number, one in enumerate(wanted)
        for other in wanted[number + 1 :]
        if matched(one) & matched(other)
    ]
    assert list(overlapping(wanted)) == expected


@few
@given(st.lists(templates, min_size=1, max_size=5))
def test_every_topic_that_a_template_matches_is_subscribed_to(wanted: list[str]) -> None:
    found = filters_of(wanted)
    topics = Topics(wanted)
    for topic in TOPICS:
        try:
            topics.match(topic)
        except Bad:
            continue
        if not topic.startswith("$"):  # which a leading wildcard does not reach: they are the broker's own
            assert any(topic in matched(one) for one in found)


@few
@given(st.lists(templates, min_size=1, max_size=5))
def test_no_filter_is_there_that_another_covers(wanted: list[str]) -> None:
    found = filters_of(wanted)
    assert len(set(found)) == len(found) > 0
    for one in found:
        assert not any(matched(one) < matched(other) for other in found)


def test_filters_come_from_templates_in_their_order() -> None:
    assert filters_of(
        [
            "pico/{sensor_type}/{device_id}",
            "placebrain/{place_id}/devices/{device_id}/telemetry",
            "{user_id}/{device_code}/feeds/{feed_key}",
            "pico/t/{device_id}",
            "pico/{device_id}/{sensor_type}",
        ]
    ) == ("pico/+/+", "placebrain/+/devices/+/telemetry", "+/+/feeds/+")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("a/#", "a", True),
        ("a/b/#", "a", False),
        ("+/b", "a/+", True),
        ("a/+", "a/+/+", False),
        ("#", "$SYS/#", False),
        ("+/x", "$a/x", False),
        ("$a/+", "$a/x", True),
        ("a//b", "a/+/b", True),
    ],
)
def test_filters_share_topics_or_not(one: str, other: str, shared: bool) -> None:
    assert bool(overlapping([one, other])) is shared
    assert bool(overlapping([other, one])) is shared


@pytest.mark.parametrize(
    ("wide", "narrow", "does"),
    [
        ("a/+", "a/#", False),
        ("+", "#", False),
        ("a/#", "a/+", True),
        ("a/#", "a", True),
        ("+/a", "$s/a", False),
        ("+", "$s", False),
        ("$s/#", "$s/a", True),
        ("+/+", "a/b", True),
    ],
)
def test_a_filter_covers_another_or_not(wide: str, narrow: str, does: bool) -> None:
    assert covers(wide, narrow) is does
    assert (matched(narrow) <= matched(wide)) is does
