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


def test_of_the_copies_of_a_message_the_one_of_the_first_filter_counts() -> None:
    copies = Copies(["sensors/+/+", "devices/+/telemetry", "+/+/status", "pico/+/+"])
    assert set(copies.numbered) == {0, 2, 3}
    first, last = copies.numbered[0], copies.numbered[2]
    assert not copies.is_copy("sensors/a/status", [first])
    assert copies.is_copy("sensors/a/status", [last])
    assert not copies.is_copy("sensors/a/status", [first, last])  # sent once, for both
    assert not copies.is_copy("x/y/status", [last])


def test_a_message_of_a_filter_that_is_not_known_is_no_copy() -> None:
    copies = Copies(["a/+", "+/b"])
    assert not copies.is_copy("c/d", [7])


def test_a_message_that_waited_for_filters_of_earlier_settings_is_no_copy() -> None:
    before, after = Copies(["x/+", "+/b"]), Copies(["a/+", "x/+", "+/b"])
    old = before.numbered[1]
    assert before.is_copy("x/b", [old])
    assert not after.is_copy("x/b", [old])
    assert not after.is_copy("a/b", [old])


def test_identifiers_are_those_that_mqtt_allows() -> None:
    many = [f"{number}/+" for number in range(2000)] + ["+/x"]
    assert all(1 <= number <= 268_435_455 for number in Copies(many).numbered.values())
