"""SenML packs (RFC 8428), in JSON and CBOR, to members. Pure.

Records are resolved one by one: base fields hold from their record on, a relative time counts from the
arrival. A bad record is rejected alone. A bad base field spoils the names or times of all that follows, so
with it the pack as a whole is refused.
"""

from __future__ import annotations

import json
import math
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

import cbor2

import values
from formats import Context, join
from schema import Bad, Member, Reason

VERSIONS = frozenset({*range(1, 11), 26})  # up to RFC 8428's, and that with the units of RFC 9100
MAX_DEPTH = 8
_RELATIVE_BELOW = 2**28  # seconds (RFC 8428, 4.5.3)
_LATEST = 10**11
_LONGEST_BASE = 2 * values.MAX_NAME  # it repeats in every name, and longer ones are refused anyway
MAX_UNIT = 100  # characters
_VALUES = ("v", "vs", "vb", "vd")
_WHAT_THEY_HOLD = frozenset({*_VALUES, "s"})
# RFC 8428, table 4
_LABELS = {-1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs"} | dict(
    enumerate(("n", "u", "v", "vs", "vb", "s", "t", "ut", "vd"))
)
# What the decoder would compute at once, in quadratic time or worse, or multiply by reference: times,
# numbers of any length, patterns, sets, shared values. SenML needs none but decimal fractions (4).
_REFUSED_TAGS = (
    *(0, 1, 2, 3, 5, 25, 28, 29, 30, 35, 36, 37, 100),
    *(256, 258, 260, 261, 1004, 43000, 55799),
)
_FIELDS = frozenset(_LABELS.values())
Record = dict[Any, Any]


def _refuse(*_: object) -> NoReturn:
    raise ValueError("a tag that SenML does not need")


_TAGS = dict.fromkeys(_REFUSED_TAGS, _refuse)


def is_pack(document: list[Any], named: bool) -> bool:
    """Whether a JSON array reads as SenML: objects with the RFC's fields only, of which one has a value,
    and one a name, unless the topic names the sensor (`named`).
    """
    valued = False
    for record in document:
        if not isinstance(record, dict):
            return False
        # A label that ends in _ is the RFC's way to say that it must be understood (4.4).
        if not _FIELDS.issuperset(label for label in record if label[-1:] != "_"):
            return False
        named = named or isinstance(record.get("n", record.get("bn")), str)
        valued = valued or not _WHAT_THEY_HOLD.isdisjoint(record)
    return named and valued


def decode_cbor(payload: bytes) -> list[Any]:
    """The records of a pack in CBOR, still under their numbers. Raises: `Bad`."""
    try:
        document = cbor2.loads(
            payload, max_depth=MAX_DEPTH, allow_duplicate_keys=False, semantic_decoders=_TAGS
        )
    # Decimal fractions are computed at once: theirs are the errors beside the first.
    except (cbor2.CBORDecodeError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        sentence = f"the payload is not CBOR that can be read: {type(error).__name__}"
        raise Bad(Reason.PAYLOAD_NOT_CBOR, sentence, values.excerpt(payload)) from None
    if not isinstance(document, list):
        raise Bad(
            Reason.PAYLOAD_UNEXPECTED, "the payload is CBOR, but no SenML pack", values.excerpt(payload)
        )
    return document


@dataclass(slots=True)
class _Base:
    """What base fields have said so far."""

    name: str = ""
    time: float = 0.0
    unit: object = None
    value: float = 0.0
    sum: float | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)  # by unit, each built once


def members(document: list[Any], context: Context) -> Iterator[Member]:
    """A value gives `name`, a sum `name.sum`; the unit is metadata. Lazy. Raises: `Bad`."""
    base = _Base()
    for raw in document:
        if not isinstance(raw, dict):
            yield Member(context.sensor, _malformed("the record is no object"))
            continue
        record = raw if all(isinstance(label, str) for label in raw) else _labelled(raw)
        _take_base(base, record)
        yield from _record(record, base, context)


def _labelled(raw: Record) -> Record:
    """Numbers to labels; what the RFC does not know are extensions that may be passed over."""
    return {
        label if isinstance(label, str) else _LABELS.get(label, "") if type(label) is int else "": value
        for label, value in raw.items()
    }


def _take_base(base: _Base, record: Record) -> None:
    if "bver" in record and _number(record["bver"]) not in VERSIONS:
        raise _malformed("the pack's version is neither one up to 10 nor 26")
    if "bn" in record:
        if not isinstance(record["bn"], str):
            raise _malformed("the base name is no text")
        base.name = record["bn"][:_LONGEST_BASE]
    if "bu" in record:
        base.unit = record["bu"]
    for label, attribute in (("bt", "time"), ("bv", "value"), ("bs", "sum")):
        if label in record:
            number = _number(record[label])
            if number is None or not math.isfinite(number):
                raise _malformed(f"the base field {label} is no number")
            setattr(base, attribute, number)


def _record(record: Record, base: _Base, context: Context) -> Iterator[Member]:
    name = record.get("n", "")
    if not isinstance(name, str):
        yield Member(join(context.sensor, base.name), _malformed("the name is no text"))
        return
    sensor = join(context.sensor, base.name + name)
    held = [label for label in _VALUES if label in record]
    unknown = [label for label in record if label.endswith("_")]
    if unknown:
        yield Member(sensor, _malformed("a field ends in _ and is not known: it must be understood"))
    elif len(held) > 1:
        yield Member(sensor, _malformed(f"the record has several values: {', '.join(held)}"))
    elif held or "s" in record:
        time = _time(record, base, context.arrival_us)
        unit = record.get("u", base.unit)
        if isinstance(unit, str) and len(unit) > MAX_UNIT:
            sentence = f"the unit has {len(unit)} characters, at most {MAX_UNIT} are stored"
            yield Member(sensor, _malformed(sentence))
            return
        metadata = _metadata(unit, base)
        if held:
            yield Member(sensor, _value(held[0], record, base), time, False, metadata)
        if "s" in record or base.sum is not None:
            total = _sum(record.get("s", 0), base.sum or 0.0, "s")
            yield Member(join(sensor, "sum"), total, time, False, metadata)
    elif not any(label.startswith("b") for label in record):
        yield Member(sensor, Bad(Reason.VALUE_MISSING, "the record has neither a value nor a sum"))


def _metadata(unit: object, base: _Base) -> bytes | None:
    if not isinstance(unit, str) or not unit:
        return None
    found = base.metadata.get(unit)
    if found is None:
        found = base.metadata[unit] = json.dumps({"unit": unit}).encode()
    return found


def _value(label: str, record: Record, base: _Base) -> object:
    value = record[label]
    if label == "v":
        return _sum(value, base.value, label)
    if label == "vb" and isinstance(value, bool):
        return value
    if label == "vs" and isinstance(value, str):
        return value
    if label == "vd" and isinstance(value, str):
        return value
    if label == "vd" and isinstance(value, bytes):  # as JSON has it: base64 of RFC 4648, 5, unpadded
        return urlsafe_b64encode(value).rstrip(b"=").decode()
    return _malformed(f"the field {label} is of the wrong kind")


def _sum(value: object, base: float, label: str) -> object:
    if value is None or value is values.BEYOND or value is values.REPEATED:
        return value  # each with a reason of its own
    number = _number(value)
    if number is None:
        return _malformed(f"the field {label} is no number")
    return number + base


def _number(value: object) -> float | None:
    """A JSON number, or one of CBOR's, among them decimal fractions. Beyond a double: infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN of Decimal
        return math.nan


def _time(record: Record, base: _Base, arrival_us: int) -> object:
    time = _number(record.get("t", 0.0))
    seconds = None if time is None else base.time + time
    if seconds is None or not math.isfinite(seconds) or abs(seconds) >= _LATEST:
        return math.nan  # malformed
    micros = round(seconds * 1_000_000)
    return values.Instant(micros + arrival_us if seconds < _RELATIVE_BELOW else micros)


def _malformed(sentence: str) -> Bad:
    return Bad(Reason.RECORD_MALFORMED, sentence)
