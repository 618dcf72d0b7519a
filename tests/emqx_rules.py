"""From an MQTT message to Redis commands, as EMQX with the files of deploy/emqx makes them.

Follows EMQX 6.3: emqx_rule_events, emqx_placeholder, emqx_utils_conv, emqx_bridge_redis_connector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyhocon import ConfigFactory

from tests.emqx_eval import Columns, apply, encode_json, matches
from tests.emqx_sql import UNDEFINED, Unknown, parse_rule

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "emqx"


# HOCON


def load(*names: str) -> dict[str, Any]:
    """The files of deploy/emqx one after the other, as `emqx ctl conf load --merge` overlays them."""
    merged: dict[str, Any] = {}
    for name in names:
        text = (FOLDER / f"{name}.hocon").read_text(encoding="utf-8")
        _overlay(merged, ConfigFactory.parse_string(text).as_plain_ordered_dict())
    return merged


def _overlay(onto: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict):
            _overlay(onto.setdefault(key, {}), value)
        else:
            onto[key] = value


# Templates

_PLACEHOLDER = re.compile(r"\$\{([^}]+)\}")


def text_of(value: Any) -> bytes:
    """A value in a `command_template`, as emqx_utils_conv:bin/1 writes it."""
    if isinstance(value, bytes):
        return value
    if value is UNDEFINED:
        return b"undefined"
    if value is None:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        whole, _, decimals = f"{value:.10f}".partition(".")
        return f"{whole}.{decimals.rstrip('0') or '0'}".encode()
    return encode_json(value)


def render(template: str, selected: Columns) -> bytes:
    """One argument of a command. Raises: `Unknown` for `${.}` and paths."""
    found = b""
    for position, part in enumerate(_PLACEHOLDER.split(template)):
        if position % 2 and not re.fullmatch(r"[a-z0-9_]+", part):
            raise Unknown(f"the placeholder {part}")
        found += text_of(selected.get(part, UNDEFINED)) if position % 2 else part.encode()
    return found


def render_log(template: str, selected: Columns) -> bytes:
    """A line of a disk_log action: every variable as JSON, null where it is missing."""
    found = b""
    for position, part in enumerate(_PLACEHOLDER.split(template)):
        value = selected.get(part)
        found += encode_json(value) if position % 2 else part.encode()
    return found


# A message's way


class Handed(NamedTuple):
    """What one rule handed to one action, `type:name`."""

    action: str
    selected: Columns


def published(topic: str, payload: bytes, received_ms: int) -> dict[str, Any]:
    """The columns of a message, as far as the rules use them."""
    return {
        "topic": topic.encode(),
        "payload": payload,
        "publish_received_at": received_ms,
        "timestamp": received_ms + 1,
        "id": b"%032X" % received_ms,  # a new one for each PUBLISH
        "qos": 1,
    }


def handed_over(config: Mapping[str, Any], topic: str, payload: bytes, received_ms: int) -> list[Handed]:
    """What all rules make of a message; a rule applies once, however many of its filters match."""
    columns = published(topic, payload, received_ms)
    found = []
    for settings in config["rule_engine"]["rules"].values():
        rule = parse_rule(settings["sql"])
        if matches_any(topic, rule.filters):
            for selected in apply(rule, columns):
                found += [Handed(action, selected) for action in settings["actions"]]
    return found


def commands(config: Mapping[str, Any], topic: str, payload: bytes, received_ms: int) -> list[list[bytes]]:
    """The commands that reach Redis for a message."""
    found = []
    for action, selected in handed_over(config, topic, payload, received_ms):
        kind, _, name = action.partition(":")
        template = config["actions"][kind][name]["parameters"]["command_template"]
        found.append([render(argument, selected) for argument in template])
    return found


def matches_any(topic: str, filters: Sequence[str]) -> bool:
    return any(matches(topic, pattern) for pattern in filters)
