"""An alert as an MQTT message: its topic and its JSON. Pure."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from math import isfinite

TOPIC_NAMES = ("place_id", "device_id", "sensor_type", "severity")
LONGEST_NAME = 200  # of a value in a topic: all of it together must stay below MQTT's 65,535 bytes
LONGEST_TEXT = 1000  # of a state in the JSON: one that a broker finds too large would hold up all others

_PLACEHOLDER = re.compile(r"\{(" + "|".join(TOPIC_NAMES) + r")\}")
# Levels and wildcards; what MQTT 5 (1.5.4) forbids or lets a server refuse: control characters,
# surrogates and the code points that are no characters.
_UNFIT = re.compile(
    "[/+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)


class Event(StrEnum):
    """What is told of an alert, in the order in which it happens."""

    CREATED = "created"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class DueAlert:
    """A row of the outbox. The fields are the columns of `alerts`, in the order they are selected."""

    id: uuid.UUID
    created_due: bool
    resolved_due: bool
    sensor_id: str | None
    threshold_id: str
    device_id: str
    place_id: str
    sensor_type: str
    value: float | None
    value_text: str | None
    threshold_value: float | None
    threshold_text: str | None
    threshold_type: str
    severity: str
    created_at: datetime | None
    resolved_at: datetime | None

    @property
    def due(self) -> list[Event]:
        """The events to be published, oldest first."""
        flags = ((Event.CREATED, self.created_due), (Event.RESOLVED, self.resolved_due))
        return [event for event, is_due in flags if is_due]


def topic_of(template: str, alert: DueAlert) -> str:
    """`template` with the alert's names put in: a topic that any broker takes, whatever the names hold."""
    topic = _PLACEHOLDER.sub(lambda found: _level(getattr(alert, found[1])), template)
    # Topics that begin with a dollar sign are the broker's own; no name of a device or place leads there.
    return topic if template.startswith("$") or not topic.startswith("$") else f"_{topic[1:]}"


def _level(value: str) -> str:
    return _UNFIT.sub("_", value[:LONGEST_NAME]) or "unknown"


def payload_of(alert: DueAlert, event: Event) -> bytes:
    """The message: one JSON object in UTF-8. A number that JSON cannot hold becomes null."""
    message = {
        "id": str(alert.id),
        "event_type": event.value,
        "sensor_id": alert.sensor_id,
        "threshold_id": alert.threshold_id,
        "device_id": alert.device_id,
        "place_id": alert.place_id,
        "key": alert.sensor_type,
        "value": _value(alert.value, alert.value_text),
        "threshold_value": _value(alert.threshold_value, alert.threshold_text),
        "threshold_type": alert.threshold_type,
        "severity": alert.severity,
        "created_at": _rfc3339(alert.created_at),
        # Told late, `created` may come from a row that is resolved by now: that is the next message.
        "resolved_at": _rfc3339(alert.resolved_at) if event is Event.RESOLVED else None,
    }
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _value(number: float | None, text: str | None) -> float | str | None:
    if number is None:
        return None if text is None else text[:LONGEST_TEXT]
    return number if isfinite(number) else None


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
