"""Every kind of bad input of the contract, as entries, with the reason that each must be given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from schema import Reason

Fields = dict[str | bytes, str | bytes]
NOW = 1_767_225_600  # 2026-01-01, a time that every entry here may have


class Bad(NamedTuple):
    """`fields` is given a running number, so that no two entries are the same."""

    reason: Reason
    fields: Callable[[int], Fields]
    stream: str = "mqtt_stream:dev-{0}:t"


def _value(value: str | bytes) -> Callable[[int], Fields]:
    return lambda n: {"value": value, "timestamp": str(NOW + n), "n": str(n)}


def _time(text: str) -> Callable[[int], Fields]:
    return lambda n: {"value": str(n), "timestamp": text}


def _metadata(text: str | bytes) -> Callable[[int], Fields]:
    return lambda n: {"value": str(n), "timestamp": str(NOW + n), "metadata": text}


def _message(topic: str | None, payload: str | bytes) -> Callable[[int], Fields]:
    def fields(n: int) -> Fields:
        found: Fields = {"payload": payload, "n": str(n)}
        return {"topic": topic, **found} if topic is not None else found

    return fields


TELEMETRY = "devices/packed/telemetry"
KINDS = (
    Bad(Reason.VALUE_MISSING, lambda n: {"timestamp": str(NOW + n)}),
    Bad(Reason.VALUE_EMPTY, _value("")),
    Bad(Reason.VALUE_UNDEFINED, _value("undefined")),
    Bad(Reason.VALUE_NULL, _value("null")),
    Bad(Reason.VALUE_NAN, _value("NaN")),
    Bad(Reason.VALUE_INFINITE, _value("-inf")),
    Bad(Reason.VALUE_INFINITE, _value("Infinity")),
    Bad(Reason.VALUE_NOT_A_NUMBER, _value("21.5C")),
    Bad(Reason.VALUE_HEXADECIMAL, _value("0x1F")),
    Bad(Reason.VALUE_UNDERSCORE, _value("1_000")),
    Bad(Reason.VALUE_SEPARATOR, _value("1,000.5")),
    Bad(Reason.VALUE_OUT_OF_RANGE, _value("1e999")),
    Bad(Reason.INVALID_UTF8, _value(b"\xff\xfe")),
    Bad(Reason.NUL_CHARACTER, _value('"a\\u0000b"')),
    Bad(Reason.STREAM_KEY_TOO_FEW_PARTS, _value("1"), "mqtt_stream:alone-{0}"),
    Bad(Reason.STREAM_KEY_EMPTY_PART, _value("1"), "mqtt_stream:dev-{0}:"),
    Bad(Reason.STREAM_KEY_EMPTY_PART, _value("1"), "mqtt_stream::t-{0}"),
    Bad(Reason.DEVICE_ID_TOO_LONG, _value("1"), f"mqtt_stream:{'d' * 101}{{0}}:t"),
    Bad(Reason.SENSOR_TYPE_TOO_LONG, _value("1"), f"mqtt_stream:dev-{{0}}:{'s' * 101}"),
    Bad(Reason.DEVICE_ID_EMPTY, _message("devices//telemetry", '{"a": 1}'), "mqtt_stream:shard:{0}"),
    Bad(Reason.SENSOR_TYPE_EMPTY, _message(TELEMETRY, '{"": 1}'), "mqtt_stream:shard:{0}"),
    Bad(Reason.TIMESTAMP_MALFORMED, _time("yesterday")),
    Bad(Reason.TIMESTAMP_MALFORMED, _time("2026-01-01T24:00:00Z")),
    Bad(Reason.TIMESTAMP_MALFORMED, _time("2026-W01-1")),
    Bad(Reason.TIMESTAMP_BEFORE_1970, _time("1969-12-31T23:59:59Z")),
    Bad(Reason.TIMESTAMP_IN_FUTURE, _time("2199-01-01T00:00:00Z")),
    Bad(Reason.METADATA_NOT_JSON, _metadata("{unit: C}")),
    Bad(Reason.METADATA_NOT_OBJECT, _metadata("[1]")),
    Bad(Reason.METADATA_TOO_DEEP, _metadata('{"a":' * 1000 + "1" + "}" * 1000)),
    Bad(Reason.METADATA_TOO_LARGE, _metadata(json.dumps({"a": "x" * 9000}))),
    Bad(Reason.TOO_MANY_FIELDS, lambda n: {f"f{i}": str(n) for i in range(100)}),
    Bad(Reason.ENTRY_TOO_LARGE, _value("9" * 20_001)),
    Bad(Reason.TOPIC_MISSING, _message(None, "1"), "mqtt_stream:shard:{0}"),
    Bad(Reason.TOPIC_UNKNOWN, _message("no/such/topic/at/all", "1"), "mqtt_stream:shard:{0}"),
    Bad(Reason.PAYLOAD_EMPTY, _message(TELEMETRY, ""), "mqtt_stream:shard:{0}"),
    Bad(Reason.PAYLOAD_NOT_JSON, _message(TELEMETRY, '{"a": 1'), "mqtt_stream:shard:{0}"),
    Bad(Reason.PAYLOAD_WITHOUT_READINGS, _message(TELEMETRY, "{}"), "mqtt_stream:shard:{0}"),
    Bad(Reason.VALUE_UNSUPPORTED, _message(TELEMETRY, "[" * 9 + "1" + "]" * 9), "mqtt_stream:shard:{0}"),
    Bad(Reason.PAYLOAD_UNEXPECTED, _message("tele/d/SENSOR", "[1]"), "mqtt_stream:shard:{0}"),
    Bad(Reason.RECORD_MALFORMED, _message(TELEMETRY, '[{"n": "a", "v": "1"}]'), "mqtt_stream:shard:{0}"),
)
