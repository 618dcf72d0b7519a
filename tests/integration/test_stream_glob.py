"""Our reading of Redis's globs, beside Redis's own."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_glob import compiled

LETTERS = "ab:*?[]^-\\"


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("mqtt_stream:*", "mqtt_stream:shard:3", True),
        ("mqtt_stream:*", "mqtt_stream", False),
        ("readings", "readingsshard:3", False),
        ("mqtt_stream:*:temp", "mqtt_stream:shard:3", False),
        ("mqtt_stream:[ab]*", "mqtt_stream:shard:3", False),
        ("mqtt_stream:[^a]*", "mqtt_stream:shard:3", True),
        ("mqtt_stream:[a-t]*", "mqtt_stream:shard:3", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("a?c", "a\nc", True),
        ("a.c", "abc", False),
    ],
)
def test_a_key_matches_as_redis_says(client: redis.Redis, pattern: str, key: str, matches: bool) -> None:
    client.set(key, b"")
    assert bool(client.keys(pattern)) is matches
    assert bool(compiled(pattern).fullmatch(key)) is matches


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.text(LETTERS, max_size=8), key=st.text(LETTERS, min_size=1, max_size=6))
def test_any_pattern_matches_any_key_as_redis_says(client: redis.Redis, pattern: str, key: str) -> None:
    client.flushdb()
    client.set(key, b"")
    assert bool(compiled(pattern).fullmatch(key)) is bool(client.keys(pattern or "\0"))
