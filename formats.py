"""The JSON of makers to members: one function a format, one line in `FORMATS`. Pure.

A format takes apart a decoded object: names, values and times are validated afterwards, member by member,
so that one bad member never takes its neighbours with it. It raises `Bad` where the object as a whole is
not what its maker documents. docs/payloads.md says of each what it leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

import values
from schema import Bad, Member, PayloadFormat, Reason

MAX_NESTING = 8
# A prefix repeats in the name of every member below it. Longer ones are refused anyway, so they are cut.
_LONGEST_PREFIX = 2 * values.MAX_NAME
_LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?", re.ASCII)
_CLOCK_SET = 1_000_000_000  # Unix seconds, in 2001
_TASMOTA_LEFT_OUT = frozenset({"Time", "Epoch", "Id", "TotalStartTime"})
_ZIGBEE_LEFT_OUT = frozenset({"last_seen", "elapsed", "device", "update", "update_available"})
_SHELLY_LEFT_OUT = frozenset({"id", "ts", "minute_ts"})

Object = dict[str, Any]


class Context(NamedTuple):
    """What a format may need beside the payload: the topic's sensor or "", when it arrived, whose clock."""

    sensor: str = ""
    arrival_us: int = 0
    zone: tzinfo | None = None


Format = Callable[[Object, Context], Iterator[Member]]


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else name or prefix


def nested(
    node: Object | list[Any],
    prefix: str,
    time: object,
    left_out: frozenset[str] = frozenset(),
    blank: tuple[object, ...] = (),
    parts: int = 1,
) -> Iterator[Member]:
    """The members of an object or array, names joined with a dot, elements of an array by their index.

    `left_out`: names that are no readings, at any level. `blank`: values that mean "none". What lies deeper
    than `MAX_NESTING` is rejected, each by itself. Lazy: who stops early has built nothing for the rest.
    """
    prefix = prefix[:_LONGEST_PREFIX]
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in left_out:
            continue
        name = join(prefix, str(key))
        if not isinstance(value, dict | list):
            if not any(value is none or value == none for none in blank):
                yield Member(name, value, time)
        elif value and parts == MAX_NESTING:
            sentence = f"the value is nested deeper than {MAX_NESTING} levels"
            yield Member(name, Bad(Reason.VALUE_UNSUPPORTED, sentence), time)
        elif value:
            yield from nested(value, name, time, left_out, blank, parts + 1)


def tasmota(document: Object, context: Context) -> Iterator[Member]:
    """`tele/<topic>/SENSOR`: an object for each sensor, numbers in it. Units are not converted.

    `Time` has no zone: it counts only where the zone of the devices is set.
    """
    units = {name for name in document if name.endswith("Unit")}
    time = document.get("Epoch", document.get("Time"))
    if isinstance(time, str) and _LOCAL_TIME.fullmatch(time):
        time = _local(time, context.zone) if context.zone else None
    return nested(document, context.sensor, _clock(time), _TASMOTA_LEFT_OUT | units)


def _local(time: str, zone: tzinfo) -> object:
    """Unix time. In the hour that comes twice when clocks go back, the first of both."""
    try:
        return datetime.fromisoformat(time).replace(tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        return time  # no day of the calendar: refused as it stands


def zigbee2mqtt(document: Object, context: Context) -> Iterator[Member]:
    """`zigbee2mqtt/<name>`: what the device exposes. Null and "" stand for what is not known (yet)."""
    return nested(document, context.sensor, document.get("last_seen"), _ZIGBEE_LEFT_OUT, (None, ""))


def shelly(document: Object, context: Context) -> Iterator[Member]:
    """`<device>/events/rpc` of Gen2 and later: what changed, or all there is, by component.

    A `NotifyEvent` becomes a text `component.event`. Null announces that a key is gone.
    """
    method, params = document.get("method"), document.get("params")
    if isinstance(params, dict):
        time = _clock(params.get("ts"))
        if method in ("NotifyStatus", "NotifyFullStatus"):
            return nested(params, context.sensor, time, _SHELLY_LEFT_OUT, (None,))
        if method == "NotifyEvent" and isinstance(params.get("events"), list):
            return (_shelly_event(event, context.sensor, time) for event in params["events"])
    raise _unexpected("no NotifyStatus, NotifyFullStatus or NotifyEvent of a Shelly")


def _shelly_event(event: object, sensor: str, time: object) -> Member:
    if not isinstance(event, dict) or not isinstance(event.get("component"), str):
        return Member(join(sensor, "event"), Bad(Reason.VALUE_UNSUPPORTED, "the event names no component"))
    own = _clock(event.get("ts"))
    return Member(
        join(sensor, event["component"] + ".event"), event.get("event"), time if own is None else own
    )


def _clock(time: object) -> object:
    """Without the time from the network a device counts seconds from its start, or from 1970: no time."""
    return None if isinstance(time, int | float) and time < _CLOCK_SET else time


def chirpstack(document: Object, context: Context) -> Iterator[Member]:
    """`application/…/device/…/event/up` of version 4: what the codec made of the frame, in `object`."""
    if not isinstance(document.get("object"), dict):
        raise Bad(
            Reason.PAYLOAD_WITHOUT_READINGS,
            "the uplink has no `object`: set a codec in ChirpStack's device profile",
        )
    return nested(document["object"], context.sensor, document.get("time"))


def things_stack(document: Object, context: Context) -> Iterator[Member]:
    """`v3/…/devices/…/up`: what the payload formatter made of the frame, in `decoded_payload`."""
    uplink = document.get("uplink_message")
    if not isinstance(uplink, dict):
        raise _unexpected("no uplink of The Things Stack")
    if not isinstance(uplink.get("decoded_payload"), dict):
        raise Bad(
            Reason.PAYLOAD_WITHOUT_READINGS,
            "the uplink has no `decoded_payload`: set a payload formatter in The Things Stack",
        )
    time = uplink.get("received_at", document.get("received_at"))
    return nested(uplink["decoded_payload"], context.sensor, time)


def _unexpected(what: str) -> Bad:
    return Bad(Reason.PAYLOAD_UNEXPECTED, f"the payload is {what}, as PAYLOAD_FORMATS says of its topic")


FORMATS: Mapping[PayloadFormat, Format] = {
    PayloadFormat.TASMOTA: tasmota,
    PayloadFormat.ZIGBEE2MQTT: zigbee2mqtt,
    PayloadFormat.SHELLY: shelly,
    PayloadFormat.CHIRPSTACK: chirpstack,
    PayloadFormat.THINGS_STACK: things_stack,
}
