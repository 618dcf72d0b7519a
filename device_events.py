"""One entry of an event stream to a device event. Pure.

Whatever bytes arrive, `parse_event` answers or raises `schema.Bad`, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

import values
from schema import Bad, DeviceEvent, Entry, EventKind, Reason

MAX_DEVICES = 10_000
MAX_ID = 100
_BOUNDS = ("min", "max")
_SEVERITIES = ("warning", "critical")
_WILDCARDS = frozenset("*?")

Members = Mapping[str, object]


def parse_event(entry: Entry, kind: EventKind) -> DeviceEvent:
    """The event that `entry` tells, in either of its two forms: flat fields, or one JSON field `data`.

    Members that are not known are passed over. What the event names is limited as readings are, so that
    it can name what they name; how many bytes the entry may have is for the caller to limit.
    Raises: `Bad`, always for EVENT_MALFORMED.
    """
    try:
        members = _members(entry)
        moment = values.entry_id_parts(entry.id)
        if kind is EventKind.DEVICE_DELETED:
            return DeviceEvent(kind, moment, _devices(members))
        return _threshold(kind, moment, members)
    except Bad as bad:
        raise Bad(Reason.EVENT_MALFORMED, bad.sentence, bad.value) from None


def _members(entry: Entry) -> Members:
    fields = dict(zip(entry.fields[::2], entry.fields[1::2], strict=False))
    if not fields:
        _refuse("the event has no fields")
    if 2 * len(fields) != len(entry.fields):
        _refuse("a field name occurs twice in the event")
    data = fields.get(b"data")
    if data is None:
        return {name.decode("utf-8", "backslashreplace"): value for name, value in fields.items()}
    document = _json(data, "data")
    if not isinstance(document, dict):
        _refuse("the field data is JSON, but not an object", data)
    return document


def _json(raw: bytes, what: str) -> object:
    """Events are rare, so Python's own decoder will do: it shows a name that occurs twice."""
    try:
        return json.loads(values.text(raw, what), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        _refuse(f"the field {what} is not JSON", raw)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        found[name] = values.REPEATED if name in found else value
    return found


def _threshold(kind: EventKind, moment: tuple[int, int], members: Members) -> DeviceEvent:
    device = values.device_name(_text(members, "device_id"))
    threshold_id = _identifier(_text(members, "threshold_id"), "threshold_id")
    if kind is EventKind.THRESHOLD_DELETED:
        return DeviceEvent(kind, moment, (device,), threshold_id)
    sensor = values.sensor_name(_text(members, "key"))
    for name, value in (("device_id", device), ("key", sensor)):
        if _WILDCARDS & set(value):  # in a rule they would stand for other devices and sensors too
            _refuse(f"the {name} holds a * or a ?, which a rule would take for a pattern", value.encode())
    return DeviceEvent(
        kind,
        moment,
        (device,),
        threshold_id,
        sensor,
        _one_of(members, "threshold_type", _BOUNDS),
        _number(members),
        _one_of(members, "severity", _SEVERITIES),
        _sensor_id(members),
    )


def _devices(members: Members) -> tuple[str, ...]:
    """Each device once. Of `device_id` or of `device_ids`: with both, what to lose would be guessed at."""
    if "device_ids" not in members:
        return (values.device_name(_text(members, "device_id")),)
    if "device_id" in members:
        _refuse("the event has both device_id and device_ids")
    listed = _list(members["device_ids"])
    if not listed:
        _refuse("device_ids is empty")
    if len(listed) > MAX_DEVICES:
        _refuse(f"device_ids has {len(listed)} members, at most {MAX_DEVICES} are taken")
    return tuple(dict.fromkeys(_device(one) for one in listed))


def _list(value: object) -> list[object]:
    if isinstance(value, bytes):
        if value.lstrip(b" \t\r\n")[:1] == b"[":
            value = _json(value, "device_ids")
        else:
            parts = values.text(value, "device_ids").split(",") if value.strip() else []
            return [part.strip() for part in parts]
    if not isinstance(value, list):
        _refuse("device_ids is not an array")
    return value


def _device(value: object) -> str:
    if not isinstance(value, str):
        _refuse("a member of device_ids is not a text")
    return values.device_name(value)


def _text(members: Members, name: str) -> str:
    value = members.get(name)
    if isinstance(value, bytes):
        return values.text(value, name)
    if value is None:
        _refuse(f"the event has no {name}")
    if value is values.REPEATED:
        _refuse(f"the event has the member {name} twice")
    if not isinstance(value, str):
        _refuse(f"{name} is not a text")
    return value


def _identifier(text: str, name: str) -> str:
    """1 to 100 characters, none of them for control, that PostgreSQL can hold."""
    if not text or text.isspace():
        _refuse(f"{name} is empty")
    if len(text) > MAX_ID:
        _refuse(f"{name} has {len(text)} characters, at most {MAX_ID} are taken")
    if any(sign < " " or "\x7f" <= sign <= "\x9f" for sign in text):
        _refuse(f"{name} holds a control character")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        _refuse(f"{name} holds half a surrogate pair")
    return text


def _sensor_id(members: Members) -> str | None:
    """How others call the sensor; it may be absent, null or empty."""
    if members.get("sensor_id") in (None, "", b""):
        return None
    return _identifier(_text(members, "sensor_id"), "sensor_id")


def _one_of(members: Members, name: str, known: tuple[str, ...]) -> str:
    text = _text(members, name)
    if text not in known:
        _refuse(f"{name} is neither {known[0]} nor {known[1]}", text.encode("utf-8", "replace"))
    return text


def _number(members: Members) -> float:
    """A finite number, also as text. The words of `values` say value, which is what it is called here."""
    value = members.get("value")
    if value is None:
        _refuse("the event has no value")
    if isinstance(value, bool):
        _refuse("the value is a boolean; a number is taken")
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    if isinstance(value, bytes):
        return values.number(value)
    number, _ = values.member(value)
    if number is None:
        _refuse("the value is not a number")
    return number


def _refuse(sentence: str, raw: bytes = b"") -> NoReturn:
    raise Bad(Reason.EVENT_MALFORMED, sentence, values.excerpt(raw))
