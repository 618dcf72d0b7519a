"""MQTT payloads to members: decoding, what is recognised, and which room reads what. Pure.

It only takes apart: names, values and times are validated afterwards, member by member, so that one bad
member never takes its neighbours with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import tzinfo
from typing import Any

import msgspec

import senml
import sparkplug
import values
from formats import FORMATS, Context, Object, nested
from schema import Bad, Member, PayloadFormat, Reason

FORMATS_OF_MAKERS = frozenset(PayloadFormat) - {PayloadFormat.AUTO, PayloadFormat.SENML}
_AUTO = PayloadFormat.AUTO
_DECODER = msgspec.json.Decoder()
_RAW_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TIMES = ("ts", "timestamp")
_MEMBER = re.compile(rb'"[ \t\r\n]*:')
_STATES = ("status", "state", "online")
_WORDS = {
    "online": True,
    "connected": True,
    "true": True,
    "1": True,
    "alive": True,
    "awake": True,
    "asleep": True,
    "offline": False,
    "disconnected": False,
    "false": False,
    "0": False,
    "dead": False,
}
_LONGEST_STATE = 100
_CONTAINERS = frozenset({dict, list})
_OF_ONE_VALUE = {"value", "metadata", *_TIMES}


def members(
    payload: bytes,
    sensor: str,
    form: PayloadFormat = _AUTO,
    arrival_us: int = 0,
    zone: tzinfo | None = None,
) -> Iterator[Member]:
    """The members of a payload, lazily. `sensor` is what the topic says, or empty.

    None at all is an answer: of a maker's format, a payload may have nothing to say.

    `arrival_us`: microseconds since 1970 UTC, from which relative times count. `zone`: that of devices
    whose times tell none. Raises: `Bad` when the payload as a whole cannot be read, here or on the way.
    """
    if form is not _AUTO:
        return _of_format(payload, form, Context(sensor, arrival_us, zone))
    head = payload.lstrip(b" \t\r\n")[:1]
    if head == b"{" or head == b"[":
        document = _decode(payload)
        if isinstance(document, dict):
            return _of_object(document, payload, sensor)
        if isinstance(document, list):
            return _of_array(document, Context(sensor, arrival_us))
    if head > b"\x80" and head <= b"\x9f":  # an array in CBOR; no text begins so
        return senml.members(senml.decode_cbor(payload), Context(sensor, arrival_us))
    if not head:
        raise Bad(Reason.PAYLOAD_EMPTY, "the payload is empty")
    return iter((Member(sensor, payload, None, True),))


def _of_format(payload: bytes, form: PayloadFormat, context: Context) -> Iterator[Member]:
    if not payload and form in FORMATS_OF_MAKERS:  # how a retained message is cleared
        return iter(())
    if form is PayloadFormat.SPARKPLUG_B:
        return sparkplug.members(payload, context)
    head = payload.lstrip(b" \t\r\n")[:1]
    if not head:
        raise Bad(Reason.PAYLOAD_EMPTY, "the payload is empty")
    if form is PayloadFormat.SENML and head not in (b"{", b"["):
        return senml.members(senml.decode_cbor(payload), context)
    document = _decode(payload) if head in (b"{", b"[") else None
    if form is PayloadFormat.SENML and isinstance(document, list):
        return senml.members(document, context)
    read = FORMATS.get(form)
    if read is None or not isinstance(document, dict):
        raise Bad(
            Reason.PAYLOAD_UNEXPECTED,
            f"the payload is not of the format {form}, as PAYLOAD_FORMATS says of its topic",
            values.excerpt(payload),
        )
    return read(document, context)


def _of_object(document: Object, payload: bytes, sensor: str) -> Iterator[Member]:
    """`{"ts": …, "values": {"name": value, …}}`, one value with its time, or `{"name": value, …}`."""
    time = document.get("ts") if "ts" in document else document.get("timestamp")
    inner = document.get("values")
    if isinstance(inner, dict):
        return _named(inner, sensor, time, ())
    if "value" in document and document.keys() <= _OF_ONE_VALUE:
        value = document["value"]
        if value.__class__ not in _CONTAINERS and "metadata" not in document:
            return iter((Member(sensor or "value", value, time),))
        metadata = document.get("metadata")
        if metadata is None or metadata is values.REPEATED or isinstance(metadata, dict):
            return _one_value(document, payload, sensor or "value", time)
    return _named(document, sensor, time, _TIMES)


def _named(named: Object, sensor: str, time: object, left_out: tuple[str, ...]) -> Iterator[Member]:
    prefix = f"{sensor}." if sensor else ""
    for name, value in named.items():
        if name in left_out:
            continue
        full = prefix + name if name else sensor
        if value.__class__ in _CONTAINERS:
            yield from nested(value, full, time, parts=2)
        else:
            yield Member(full, value, time)


def _one_value(document: Object, payload: bytes, sensor: str, time: object) -> Iterator[Member]:
    """`{"value": …, "timestamp": …, "metadata": {…}}`; a nested value has the sensor before its names."""
    metadata = None
    if document.get("metadata") is values.REPEATED:
        yield Member(sensor, values.REPEATED)
        return
    if document.get("metadata") is not None:
        try:
            metadata = bytes(_RAW_DECODER.decode(payload)["metadata"])
        except (msgspec.DecodeError, UnicodeDecodeError):
            metadata = b"NaN"  # JSON only by courtesy, and what `jsonb` refuses
    for member in _named({"": document["value"]}, sensor, time, ()):
        yield member._replace(metadata=metadata)


def _of_array(document: list[Any], context: Context) -> Iterator[Member]:
    if senml.is_pack(document, bool(context.sensor)):
        return senml.members(document, context)
    if document and all(map(_is_moment, document)):
        return _of_moments(document, context.sensor)
    return nested(document, context.sensor, None)


def _is_moment(element: object) -> bool:
    if not isinstance(element, dict) or not isinstance(element.get("values"), dict):
        return False
    return "ts" in element or "timestamp" in element


def _of_moments(document: list[Any], sensor: str) -> Iterator[Member]:
    """`[{"ts": …, "values": {…}}, …]`: several moments in one message, as ThingsBoard takes them."""
    for element in document:
        yield from _named(element["values"], sensor, _time(element), ())


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
    found = len(_MEMBER.findall(payload))
    if found > _names(document) and found > _all_names(document):
        return _decode_leniently(payload)
    return document


def _names(document: object) -> int:
    """Names of members, one level down: when the text has more, it is nested or one may occur twice."""
    if not isinstance(document, dict):
        return 0
    return len(document) + sum(len(inner) for inner in document.values() if isinstance(inner, dict))


def _all_names(document: object) -> int:
    """Names of members at all levels. Not by recursion, since depth comes from outside."""
    count = 0
    nodes = [document]
    for node in nodes:  # grows on the way
        below: Iterable[object] = ()
        if isinstance(node, dict):
            count += len(node)
            below = node.values()
        elif isinstance(node, list):
            below = node
        nodes += [one for one in below if one.__class__ in _CONTAINERS]
    return count


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


def _time(document: dict[str, object]) -> object:
    for name in _TIMES:
        if name in document:
            return document[name]
    return None
