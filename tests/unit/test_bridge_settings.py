"""What a bridge is told by the settings, and what it refuses."""

from __future__ import annotations

import pytest

import config
import wiring
from config import ConfigError
from mqtt.filters import Copies

BROKER = "mqtt://broker"


@pytest.mark.parametrize(
    "pattern", ["readings", "mqtt_stream:*:temperature", "mqtt_stream:[ab]*", "mqtt_stream:kitchen:*"]
)
def test_a_pattern_by_which_no_worker_reads_the_shards_is_refused(pattern: str) -> None:
    settings = config.load_edge(mqtt_url=BROKER, stream_pattern=pattern)
    if pattern.endswith("kitchen:*"):  # its prefix is longer, and so are the names of the shards
        wiring.bridge_options(settings)
        return
    with pytest.raises(ConfigError, match=r"STREAM_PATTERN is .* no worker reads .*shard:0"):
        wiring.bridge_options(settings)


def test_a_shard_that_is_the_dead_letter_stream_is_refused() -> None:
    settings = config.load_edge(mqtt_url=BROKER, dead_letter_stream="mqtt_stream:shard:3")
    with pytest.raises(ConfigError, match="no worker reads 'mqtt_stream:shard:3'"):
        wiring.bridge_options(settings)


def test_without_a_broker_there_is_no_bridge() -> None:
    with pytest.raises(ConfigError, match="MQTT_URL is not set; it takes"):
        wiring.bridge_options(config.load_edge())


def test_the_filters_are_those_of_the_templates_unless_some_are_named() -> None:
    made = wiring.bridge_options(config.load_edge(mqtt_url=BROKER))
    assert {"devices/+/telemetry", "+/+/status"} <= set(made.filters)
    assert "devices/+/status" not in made.filters  # +/+/status has it
    assert not made.filters_chosen
    named = wiring.bridge_options(config.load_edge(mqtt_url=BROKER, bridge_topics="a/+, b/#"))
    assert (named.filters, named.filters_chosen) == (("a/+", "b/#"), True)


A, B = b"a" * 16, b"b" * 16  # identities


def two_filters() -> tuple[Copies, int, int]:
    copies = Copies(["sensors/+/+", "devices/+/telemetry", "+/+/status"])
    assert set(copies.numbered) == {0, 2}
    return copies, copies.numbered[0], copies.numbered[2]


def test_of_what_comes_by_two_filters_the_first_counts_whichever_it_is() -> None:
    copies, one, other = two_filters()
    assert not copies.is_copy(A, [other])
    assert copies.is_copy(A, [one])
    assert not copies.is_copy(B, [one])
    assert copies.is_copy(B, [other])


def test_equal_messages_are_as_many_as_came_by_one_filter() -> None:
    copies, one, other = two_filters()
    arrivals = [one, other, one, one, other, other]  # three messages, each by both
    assert [copies.is_copy(A, [number]) for number in arrivals].count(False) == 3


def test_what_comes_by_one_filter_only_is_never_passed_over() -> None:
    """As after a restart of the broker, or where it has refused the other filter."""
    copies, one, other = two_filters()
    assert not any(copies.is_copy(A, [other]) for _ in range(50))
    copies.forget()
    assert not any(copies.is_copy(A, [one]) for _ in range(50))


def test_a_message_that_was_sent_once_for_both_filters_is_no_copy() -> None:
    copies, one, other = two_filters()
    assert not copies.is_copy(A, [one, other])
    assert not copies.is_copy(A, [one, other])


def test_a_message_that_waited_for_filters_of_earlier_settings_is_no_copy() -> None:
    before, after = Copies(["x/+", "+/b"]), Copies(["a/+", "x/+", "+/b"])
    for number in before.numbered.values():
        assert not after.is_copy(A, [number])


def test_identifiers_are_those_that_mqtt_allows() -> None:
    many = [f"{number}/+" for number in range(300)] + ["+/x"]
    assert all(1 <= number <= 268_435_455 for number in Copies(many).numbered.values())
