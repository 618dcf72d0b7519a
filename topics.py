"""MQTT topics to names and to the format of their payloads. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from schema import Bad, PayloadFormat, Reason

MAX_OWNER = 200
_PARTS = {
    "device_id": "device",
    "device_code": "device",
    "node_id": "node",
    "sensor_type": "sensor",
    "feed_key": "sensor",
    "place_id": "owner",
    "user_id": "owner",
    "owner": "owner",
}
MAKERS = (
    ("tele/+/SENSOR", PayloadFormat.TASMOTA),
    ("zigbee2mqtt/+", PayloadFormat.ZIGBEE2MQTT),
    ("+/events/rpc", PayloadFormat.SHELLY),
    ("application/+/device/+/event/up", PayloadFormat.CHIRPSTACK),
    ("v3/+/devices/+/up", PayloadFormat.THINGS_STACK),
    ("spBv1.0/#", PayloadFormat.SPARKPLUG_B),
)


class Named(NamedTuple):
    """What a topic names. `sensor` and `owner` are empty where it names none; `status`: whose status."""

    device: str
    sensor: str = ""
    owner: str = ""
    status: bool = False
    form: PayloadFormat = PayloadFormat.AUTO


class Topics:
    """Turns a topic into names by the first template that matches, those of statuses last.

    A template's `{name}` stands for one level; `{device_id}` or `{device_code}` names the device,
    `{node_id}` a node that the device belongs to (the device is then `node/device`), `{sensor_type}` or
    `{feed_key}` the sensor, `{place_id}`, `{user_id}` or `{owner}` whose it is, any other name is passed
    over. `formats`: topic filters of MQTT and the format of what comes on them, first match wins; those of
    `MAKERS` stand behind them.
    """

    def __init__(
        self,
        templates: Sequence[str],
        status_templates: Sequence[str] = (),
        formats: Sequence[tuple[str, PayloadFormat]] = (),
    ) -> None:
        self._patterns = [(self._pattern(template), False) for template in templates]
        self._patterns += [(self._pattern(template), True) for template in status_templates]
        self._formats = [(topic_filter(pattern), form) for pattern, form in (*formats, *MAKERS)]

    def _pattern(self, template: str) -> re.Pattern[str]:
        return re.compile("/".join(self._level(level) for level in template.split("/")))

    @staticmethod
    def _level(level: str) -> str:
        name = re.fullmatch(r"\{([a-z_]+)\}", level)
        if not name:
            return re.escape(level)
        part = _PARTS.get(name[1])
        return f"(?P<{part}>[^/]*)" if part else "[^/]*"

    def match(self, topic: str) -> Named:
        """Names of any length, but for the owner's. Raises: `Bad`."""
        for pattern, status in self._patterns:
            found = pattern.fullmatch(topic)
            if found:
                groups = found.groupdict()
                owner = groups.get("owner") or ""
                if len(owner) > MAX_OWNER:
                    raise Bad(
                        Reason.TOPIC_UNKNOWN,
                        f"the topic's owner has {len(owner)} characters, at most {MAX_OWNER} are stored",
                        topic,
                    )
                return Named(_device(groups), groups.get("sensor") or "", owner, status, self.form(topic))
        raise Bad(
            Reason.TOPIC_UNKNOWN, "no entry of TOPIC_TEMPLATES or STATUS_TEMPLATES matches the topic", topic
        )

    def form(self, topic: str) -> PayloadFormat:
        """The format of what comes on a topic."""
        return next((form for known, form in self._formats if known.fullmatch(topic)), PayloadFormat.AUTO)


def _device(groups: dict[str, str | None]) -> str:
    """An empty device stays empty, and an empty node is refused with it: neither names anything."""
    device = groups.get("device") or ""
    if "node" not in groups:
        return device
    return f"{groups['node']}/{device}" if device and groups["node"] else ""


def topic_filter(pattern: str) -> re.Pattern[str]:
    """A topic filter of MQTT as a pattern of whole topics: `+` is one level, a last `#` the rest."""
    levels = pattern.split("/")
    rest = levels[-1] == "#"
    literal = "/".join(
        "[^/]*" if level == "+" else re.escape(level) for level in levels[: -1 if rest else None]
    )
    if not rest:
        return re.compile(literal)
    return re.compile(f"{literal}(?:/.*)?" if len(levels) > 1 else ".*", re.DOTALL)
