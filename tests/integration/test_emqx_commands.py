"""Redis takes the commands that EMQX renders, and gives back what the parser is tested with."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from config import Settings
from parse import Parser
from schema import Entry
from tests.emqx_rules import commands, load
from wiring import limits

RECEIVED_MS = 1_700_000_000_000
PARSER = Parser(limits(Settings.model_construct()))
SHARDS = load("actions", "shards")
SERIES = load("actions", "series-pico", "series-placebrain", "series-feeds", "status")


@pytest.mark.parametrize(
    ("config", "topic", "payload", "readings"),
    [
        (SHARDS, "devices/é 1/telemetry", b'{"a": 1, "b": "x"}', [("a", 1.0, None), ("b", None, "x")]),
        (SHARDS, "pico/t/d1", b" 21.5 \r\n", [("t", 21.5, None)]),
        (SERIES, "pico/t/d1", b"21.5", [("t", 21.5, None)]),
        (
            SERIES,
            "placebrain/p/devices/d1/telemetry",
            b'{"values": {"a": 1e-11, "b": "x y"}}',
            [("a", 1e-11, None), ("b", None, "x y")],
        ),
    ],
)
def test_an_entry_comes_out_of_redis_as_emqx_put_it_in(
    client: redis.Redis,
    config: dict[str, Any],
    topic: str,
    payload: bytes,
    readings: list[tuple[str, float | None, str | None]],
) -> None:
    found = []
    for command in commands(config, topic, payload, RECEIVED_MS):
        added: Any = client.execute_command(*command)  # type: ignore[no-untyped-call]
        ((entry_id, fields),) = client.execute_command("XRANGE", command[1], added, added)  # type: ignore[no-untyped-call]
        assert fields == command[3:]
        parsed = PARSER.parse(Entry(command[1], entry_id, fields), RECEIVED_MS * 1000)
        assert not parsed.rejections
        found += [(one.sensor_type, one.value, one.value_text) for one in parsed.readings]
    assert found == readings
