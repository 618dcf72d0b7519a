"""What a worker needs of Redis, tried out without leaving anything behind."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import redis

import redis_client
from config import Settings
from ops.verify import Check
from redis_client import execute
from redis_servers import RedisMode
from retry import describe
from stream_glob import compiled

_MOST_SKEW_SEC = 5.0


def redis_checks(settings: Settings, unique: str) -> Iterator[Check]:
    """A line for each thing that was tried. `unique`: for names that nobody else uses."""
    client = redis_client.connect(settings.redis_servers(), timeout_sec=5, name="sluice-check")
    with client:
        try:
            began = time.monotonic()
            client.ping()
            took = (time.monotonic() - began) * 1000
            info = _info(client)
            yield Check("redis", True, f"{_version(info)} answers in {took:.1f} ms")
            yield from _server(client, settings, info)
            yield _permissions(client, settings, unique)
        except redis.RedisError as error:
            yield Check("redis", False, f"not usable: {describe(error)}; check the settings REDIS_…")


def _info(client: redis.Redis) -> dict[str, Any]:
    try:
        return dict(client.info())
    except redis.exceptions.NoPermissionError:
        return {}


def _version(info: dict[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', 'of unknown version')}"


def _server(client: redis.Redis, settings: Settings, info: dict[str, Any]) -> Iterator[Check]:
    policy = info.get("maxmemory_policy")
    if policy is None:
        yield Check("policy", None, "INFO is not allowed, so nobody can tell whether Redis evicts")
    elif str(policy).startswith("allkeys-"):
        accepted = settings.redis_allow_eviction
        remedy = "accepted by REDIS_ALLOW_EVICTION" if accepted else "set it to noeviction"
        sentence = f"maxmemory-policy {policy} deletes unread streams when memory is short; {remedy}"
        yield Check("policy", None if accepted else False, sentence)
    else:
        yield Check("policy", True, f"maxmemory-policy {policy}")
    if info.get("role") == "slave":
        yield Check("role", False, "a replica, which takes no writes; connect to the primary")
    if info.get("aof_enabled") == 0:
        yield Check("persistence", None, "no append-only file: a crash of Redis loses unread entries")
    seconds, micros = client.time()
    skew = abs(time.time() - seconds - micros / 1e6)
    if skew > _MOST_SKEW_SEC:
        yield Check("clock", False, f"the clocks of Redis and of this machine differ by {skew:.0f} s")


def _permissions(client: redis.Redis, settings: Settings, unique: str) -> Check:
    """Each command is tried on a key that is not there, or in a form that Redis refuses after it has looked
    whether it may be used.
    """
    tried = list(_commands(settings, unique))
    with client.pipeline(transaction=False) as pipe:
        for command in tried:
            execute(pipe, *command)
        answers = pipe.execute(raise_on_error=False)
    refused: list[str] = []
    for command, answer in zip(tried, answers, strict=True):
        if isinstance(answer, redis.exceptions.NoPermissionError):
            refused.append(f"{command[0]} {command[1]}" if len(command) > 1 else str(command[0]))
        elif isinstance(answer, redis.RedisError) and redis_client.is_world(answer):
            return Check("permissions", False, f"Redis takes no writes: {redis_client.message(answer)}")
    if refused:
        rest = f" and {len(refused) - 6} more" if len(refused) > 6 else ""
        return Check("permissions", False, f"this user may not {', '.join(refused[:6])}{rest}")
    return Check("permissions", True, f"{len(tried)} commands that a worker needs are allowed")


def _commands(settings: Settings, unique: str) -> Iterator[tuple[str | int, ...]]:
    name = f"sluice-check-{unique}"
    yield from (("SCAN", 0, "COUNT", 1), ("DBSIZE",), ("TIME",), ("EVAL", "return 1", 0))
    yield ("SCRIPT", "LOAD", "return 1")
    streams = [*filter(None, [_example(settings.stream_pattern, name)]), *settings.event_streams()]
    for stream in streams:
        yield ("XREADGROUP", "GROUP", name, name, "COUNT", 1, "STREAMS", stream, ">")
        yield ("XAUTOCLAIM", stream, name, name, 0, "0", "COUNT", 1)
        yield ("XGROUP", "CREATE", stream, name, "0")  # without MKSTREAM: there is no such stream
        yield ("XACK", stream, name, "0-1")
        yield ("XPENDING", stream, name)
        yield ("XRANGE", stream, "-", "+", "COUNT", 1)
        yield ("XTRIM", stream, "MINID", "0")
        yield ("XINFO", "GROUPS", stream)
        yield ("XINFO", "STREAM", stream)
        yield ("TYPE", stream)
    dead_letters = settings.dead_letter_stream
    yield ("XADD", dead_letters, "0-0", "no", "such id")
    yield ("XREVRANGE", dead_letters, "+", "-", "COUNT", 1)
    yield ("XDEL", dead_letters, "0-1")
    key = f"sluice:{settings.consumer_group_name}:{name}"
    yield from (("HINCRBY", key, "n", 1), ("HGET", key, "n"), ("HLEN", key), ("HGETALL", key))
    yield from (("HSET", key, "n", 1), ("HDEL", key, "m"), ("PEXPIRE", key, 1000), ("DEL", key))
    yield from (("GET", key), ("SET", key, "v", "XX"))
    if settings.redis_mode is RedisMode.CLUSTER:
        yield from (("ROLE",), ("WAIT", 0, 0), ("EXISTS", key), ("ASKING",))


def _example(pattern: str, name: str) -> str | None:
    """A stream that the pattern matches and that is not there; None where it matches certain names only."""
    found = re.sub(
        r"\[\^?(.)[^\]]*\]", r"\1", pattern.replace("*", name, 1).replace("*", "").replace("?", "x")
    )
    return found if name in found and compiled(pattern).fullmatch(found) else None
