"""Sparkplug B payloads to members. Pure.

What is read of a payload is described here by the numbers of its fields (Sparkplug 3.0, 6.4); protobuf
passes over the others. Texts are described as bytes, which look the same on the wire, so that one that is
not UTF-8 is rejected alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

import values
from formats import CLOCK_SET_US, Context, join
from schema import Bad, Member, Reason

_TYPES = FieldDescriptorProto
_PAYLOAD = (
    ("timestamp", 1, _TYPES.TYPE_UINT64),
    ("metrics", 2, _TYPES.TYPE_MESSAGE),
    ("uuid", 4, _TYPES.TYPE_BYTES),
)
_METRIC = (
    ("name", 1, _TYPES.TYPE_BYTES),
    ("alias", 2, _TYPES.TYPE_UINT64),
    ("timestamp", 3, _TYPES.TYPE_UINT64),
    ("datatype", 4, _TYPES.TYPE_UINT32),
    ("is_transient", 6, _TYPES.TYPE_BOOL),
    ("is_null", 7, _TYPES.TYPE_BOOL),
)
_VALUE = (
    ("int_value", 10, _TYPES.TYPE_UINT32),
    ("long_value", 11, _TYPES.TYPE_UINT64),
    ("float_value", 12, _TYPES.TYPE_FLOAT),
    ("double_value", 13, _TYPES.TYPE_DOUBLE),
    ("boolean_value", 14, _TYPES.TYPE_BOOL),
    ("string_value", 15, _TYPES.TYPE_BYTES),
    ("dataset_value", 17, _TYPES.TYPE_BYTES),  # a message of its own, and so is the next: neither is read
    ("template_value", 18, _TYPES.TYPE_BYTES),
)
_WIDTHS = {"int_value": 32, "long_value": 64}
_SIGNED = {1: 8, 2: 16, 3: 32, 4: 64}  # Int8 to Int64 (Sparkplug 3.0, 6.4.16), in bits
_COMPRESSED = b"SPBV1.0_COMPRESSED"
_NO_READINGS = ("Node Control/", "Device Control/")
_DATA_SET, _TEMPLATE = 16, 19  # data types (Sparkplug 3.0, 6.4.16)


def _described() -> Any:
    """The class of payloads, in a pool of its own: the process's may hold Sparkplug's whole description."""
    file = FileDescriptorProto(name="sparkplug_b_read.proto", package="sluice", syntax="proto2")
    metric = file.message_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    _add_fields(metric, _METRIC)
    for field in _add_fields(metric, _VALUE):
        field.oneof_index = 0
    for field in _add_fields(file.message_type.add(name="Payload"), _PAYLOAD):
        if field.type == _TYPES.TYPE_MESSAGE:
            field.label, field.type_name = _TYPES.LABEL_REPEATED, ".sluice.Metric"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("sluice.Payload"))


def _add_fields(message: DescriptorProto, fields: tuple[tuple[str, int, Any], ...]) -> list[Any]:
    return [
        message.field.add(name=name, number=number, type=kind, label=_TYPES.LABEL_OPTIONAL)
        for name, number, kind in fields
    ]


Payload = _described()


def members(payload: bytes, context: Context) -> Iterator[Member]:
    """Each metric under its name; births and data alike. Lazy. Raises: `Bad`."""
    try:
        document = Payload.FromString(payload)
    except DecodeError:
        sentence = "the payload is not a Sparkplug B payload in protobuf"
        raise Bad(Reason.PAYLOAD_NOT_PROTOBUF, sentence, values.excerpt(payload)) from None
    if document.uuid == _COMPRESSED:
        raise Bad(Reason.PAYLOAD_UNEXPECTED, "the payload is compressed: switch that off at the edge node")
    if not document.metrics and not document.timestamp:  # what the specification asks of every payload
        raise Bad(
            Reason.PAYLOAD_UNEXPECTED,
            "the payload holds neither metrics nor a timestamp of Sparkplug B",
            values.excerpt(payload),
        )
    return _metrics(document, context.sensor)


def _metrics(document: Any, sensor: str) -> Iterator[Member]:
    for metric in document.metrics:
        if metric.is_transient or metric.name == b"bdSeq" or _says_nothing(metric):
            continue
        micros = (metric.timestamp or document.timestamp) * 1000
        time = values.Instant(micros) if micros >= CLOCK_SET_US else None
        try:
            name = values.text(metric.name, "metric's name")
            if name.startswith(_NO_READINGS):
                continue
            yield Member(join(sensor, name), _value(metric), time)
        except Bad as bad:
            yield Member(join(sensor, values.excerpt(metric.name[:50])), bad, time)


def _says_nothing(metric: Any) -> bool:
    """Null and "" say that there is no value; data sets and templates hold no single one."""
    kind = metric.WhichOneof("value")
    if kind is None:
        return metric.is_null or metric.datatype in (_DATA_SET, _TEMPLATE)
    if kind == "string_value":
        return metric.is_null or not metric.string_value
    return metric.is_null or kind in ("dataset_value", "template_value")


def _value(metric: Any) -> object:
    """Raises: `Bad`."""
    if not metric.name:
        raise Bad(
            Reason.METRIC_WITHOUT_NAME,
            "the metric has an alias only: let the edge node send names with its data, or a decoder that "
            "keeps births put them in",
            str(metric.alias),
        )
    kind = metric.WhichOneof("value")
    if kind is None:
        raise Bad(
            Reason.VALUE_UNSUPPORTED,
            "the metric holds no number, boolean or text; arrays and bytes are not read",
        )
    raw = getattr(metric, kind)
    if kind in _WIDTHS:
        return _integer(raw, _WIDTHS[kind], metric.datatype)
    return values.text(raw, "value") if kind == "string_value" else raw


def _integer(raw: int, width: int, datatype: int) -> int:
    """`raw` has no sign on the wire: a negative number comes in two's complement of its own type, or of
    the field's width. Raises: `Bad`.
    """
    bits = _SIGNED.get(datatype)
    if bits is None:
        if not datatype and raw >> (width - 1):
            raise Bad(
                Reason.VALUE_SIGN_UNKNOWN,
                "the metric has no datatype, so this may be a large number or a negative one: "
                "let the edge node send datatypes with its data",
                str(raw),
            )
        return raw
    narrow = raw & ((1 << bits) - 1)
    negative = narrow >> (bits - 1)
    if raw not in (narrow, (1 << width) - (1 << bits) + narrow if negative else narrow):
        raise Bad(Reason.VALUE_OUT_OF_RANGE, f"the number does not fit its datatype, Int{bits}", str(raw))
    return narrow - (1 << bits) if negative else narrow
