"""MQTT payloads to members, and topics to names: one function a format, one line in `FORMATS`. Pure.

A format looks at a decoded JSON document and answers the members it finds, or None when the document
is not its own. It only takes apart: names, values and times are validated afterwards, member by member,
so that one bad member never takes its neighbours with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

import values
from schema import Bad, Reason

_DECODER = msgspec.json.Decoder()
_TIMES = ("ts", "timestamp")
_MEMBER = re.compile(rb'"[ \t\r\n]*:')
_STATES = ("status", "state", "online")
_WORDS = {
    "online": True,
    "connected": True,
    "true": True,
    "1": True,
    "offline": False,
    "disconnected": False,
    "false": False,
    "0": False,
}
_LONGEST_STATE = 100
MAX_OWNER = 200


class Member(NamedTuple):
    """One value of a message, still unvalidated. `time` is None where the message gives none.

    `scalar` marks a bare payload: its `value` is the bytes as received.
    """

    sensor: str
    value: object
    time: object = None
    scalar: bool = False


Format = Callable[[object, str], "Iterator[Member] | None"]


def ts_values(document: object, sensor: str) -> Iterator[Member] | None:
    """`{"ts": …, "values": {"name": value, …}}`, as ThingsBoard and PlaceBrain devices send."""
    if not isinstance(document, dict) or not isinstance(document.get("values"), dict):
        return None
    time = _time(document)
    return (Member(_join(sensor, str(name)), value, time) for name, value in document["values"].items())


def single_value(document: object, sensor: str) -> Iterator[Member] | None:
    """`{"value": …, "timestamp": …}` on a topic that names the sensor."""
    if not sensor or not isinstance(document, dict) or "value" not in document:
        return None
    if set(document) - {"value", *_TIMES}:
        return None
    return iter((Member(sensor, document["value"], _time(document)),))


def flat_object(document: object, sensor: str) -> Iterator[Member] | None:
    """`{"name": value, …}`; members `ts` and `timestamp` are the time of all the others."""
    if not isinstance(document, dict):
        return None
    time = _time(document)
    return (
        Member(_join(sensor, str(name)), value, time)
        for name, value in document.items()
        if name not in _TIMES
    )


FORMATS: Sequence[Format] = (ts_values, single_value, flat_object)


def members(payload: bytes, sensor: str, formats: Sequence[Format] = FORMATS) -> Iterator[Member]:
    """The members of a payload. `sensor` is what the topic says, or empty.

    Raises: `Bad` when the payload as a whole cannot be read.
    """
    head = payload.lstrip(b" \t\r\n")[:1]
    if not head:
        raise Bad(Reason.PAYLOAD_EMPTY, "the payload is empty")
    if head not in (b"{", b"["):
        return iter((Member(sensor, payload, scalar=True),))
    document = _decode(payload)
    for known in formats:
        found = known(document, sensor)
        if found is not None:
            return found
    raise Bad(
        Reason.VALUE_UNSUPPORTED, "the payload is a JSON array; an object is read", values.excerpt(payload)
    )


def status(payload: bytes) -> tuple[bool, object]:
    """Whether a device is online, and the time that the payload gives, still unvalidated, or None.

    A word, or an object that says it in `status`, `state` or `online`: the first of these that is there
    decides. Raises: `Bad`, always for STATUS_UNKNOWN.
    """
    word: object = payload.decode("utf-8", "replace") if len(payload) <= _LONGEST_STATE else None
    time: object = None
    if payload.lstrip(b" \t\r\n")[:1] == b"{":
        try:
            document = _decode(payload)
        except Bad as bad:
            raise Bad(Reason.STATUS_UNKNOWN, bad.sentence, values.excerpt(payload)) from None
        if isinstance(document, dict):
            word = next((document[name] for name in _STATES if name in document), None)
            time = _time(document)
    online = bool(word) if isinstance(word, int) and word in (0, 1) else None
    if isinstance(word, str):
        online = _WORDS.get(word.strip().lower())
    if online is None:
        raise Bad(
            Reason.STATUS_UNKNOWN, "the payload says neither online nor offline", values.excerpt(payload)
        )
    return online, time


def _decode(payload: bytes) -> object:
    try:
        document = _DECODER.decode(payload)
    except RecursionError:
        raise Bad(Reason.PAYLOAD_NOT_JSON, "the payload is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(payload)
    if len(_MEMBER.findall(payload)) > _names(document):
        return _decode_leniently(payload)
    return document


def _names(document: object) -> int:
    """Names of members, one level down: when the text has more, one may occur twice."""
    if not isinstance(document, dict):
        return 0
    return len(document) + sum(len(inner) for inner in document.values() if isinstance(inner, dict))


def _decode_leniently(payload: bytes) -> object:
    """What the strict decoder refuses as a whole or answers in silence, told member by member.

    Many encoders write NaN and Infinity, which are not JSON; numbers may be beyond a double; a name may
    occur twice. Python's decoder is several times slower, so it is not the first choice.
    """
    try:
        return json.loads(
            values.text(payload, "payload"),
            parse_float=_number,
            parse_int=lambda digits: int(digits) if len(digits) < 400 else values.BEYOND,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError):
        raise Bad(Reason.PAYLOAD_NOT_JSON, "the payload is not JSON", values.excerpt(payload)) from None


def _number(digits: str) -> object:
    number = float(digits)
    return number if math.isfinite(number) else values.BEYOND


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        found[name] = values.REPEATED if name in found else value
    return found


def _time(document: dict[object, object]) -> object:
    for name in _TIMES:
        if name in document:
            return document[name]
    return None


def _join(sensor: str, name: str) -> str:
    return f"{sensor}.{name}" if sensor and name else name or sensor


class Named(NamedTuple):
    """What a topic names. `sensor` and `owner` are empty where it names none; `status`: whose status."""

    device: str
    sensor: str = ""
    owner: str = ""
    status: bool = False


class Topics:
    """Turns a topic into names by the first template that matches, those of statuses last.

    A template's `{name}` stands for one level; `{device_id}` or `{device_code}` names the device,
    `{sensor_type}` or `{feed_key}` the sensor, `{place_id}`, `{user_id}` or `{owner}` whose it is, any
    other name is passed over.
    """

    def __init__(self, templates: Sequence[str], status_templates: Sequence[str] = ()) -> None:
        self._patterns = [(self._pattern(template), False) for template in templates]
        self._patterns += [(self._pattern(template), True) for template in status_templates]

    def _pattern(self, template: str) -> re.Pattern[str]:
        return re.compile("/".join(self._level(level) for level in template.split("/")))

    @staticmethod
    def _level(level: str) -> str:
        name = re.fullmatch(r"\{([a-z_]+)\}", level)
        if not name:
            return re.escape(level)
        if name[1] in ("device_id", "device_code"):
            return "(?P<device>[^/]*)"
        if name[1] in ("sensor_type", "feed_key"):
            return "(?P<sensor>[^/]*)"
        if name[1] in ("place_id", "user_id", "owner"):
            return "(?P<owner>[^/]*)"
        return "[^/]*"

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
                return Named(groups.get("device") or "", groups.get("sensor") or "", owner, status)
        raise Bad(
            Reason.TOPIC_UNKNOWN, "no entry of TOPIC_TEMPLATES or STATUS_TEMPLATES matches the topic", topic
        )
