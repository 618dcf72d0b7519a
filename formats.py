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
CLOCK_SET_US = 978_307_200_000_000  # the beginning of 2001
# At the top. `…Unit` is left out there too: see `tasmota`.
_TASMOTA_LEFT_OUT = frozenset({"Time", "Epoch"})
_TASMOTA_ANYWHERE = frozenset({"Id", "TotalStartTime"})
_ZIGBEE_LEFT_OUT = frozenset({"last_seen", "elapsed", "device", "update", "update_available"})
_SHELLY_ANYWHERE = frozenset({"minute_ts"})
# Of these components: clocks, versions to be had, addresses of people's networks. Those are no readings.
_SHELLY_LEFT_OUT = {
    "sys": frozenset({"time", "unixtime", "mac", "available_updates"}),
    "wifi": frozenset({"sta_ip", "sta_ip6", "ssid", "bssid"}),
    "eth": frozenset({"ip", "ip6"}),
}
_CHIRPSTACK = frozenset({"deduplicationId", "deviceInfo"})

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
    sparse: bool = False,
    parts: int = 1,
) -> Iterator[Member]:
    """The members of an object or array, names joined with a dot, elements of an array by their index.

    `left_out`: names that are no readings, at any level. `sparse`: null and "" say that there is no value,
    and are no members. What lies deeper than `MAX_NESTING` is rejected, each by itself. Lazy: who stops
    early has built nothing for the rest.
    """
    prefix = prefix[:_LONGEST_PREFIX]
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in left_out:
            continue
        name = join(prefix, str(key))
        if not isinstance(value, dict | list):
            if not (sparse and (value is None or value == "")):
                yield Member(name, value, time)
        elif value and parts == MAX_NESTING:
            sentence = f"the value is nested deeper than {MAX_NESTING} levels"
            yield Member(name, Bad(Reason.VALUE_UNSUPPORTED, sentence), time)
        elif value:
            yield from nested(value, name, time, left_out, sparse, parts + 1)


def clock(time: object) -> object:
    """A time before 2001 is no time: a device whose clock was never set, or one that takes seconds for
    milliseconds. What is no time at all stays as it is, to be refused with every member.
    """
    if time is None:
        return None
    try:
        micros = values.json_time(time)
    except Bad as bad:
        return None if bad.reason is Reason.TIMESTAMP_BEFORE_1970 else time
    return None if micros < CLOCK_SET_US else values.Instant(micros)


def tasmota(document: Object, context: Context) -> Iterator[Member]:
    """`tele/<topic>/SENSOR`: an object for each sensor, numbers in it. Units are not converted.

    `Time` has no zone: it counts only where the zone of the devices is set.
    """
    time = document.get("Epoch", document.get("Time"))
    if isinstance(time, str) and _LOCAL_TIME.fullmatch(time):
        time = _local(time, context.zone) if context.zone else None
    told = {
        name: value
        for name, value in document.items()
        if name not in _TASMOTA_LEFT_OUT and not name.endswith("Unit")
    }
    return nested(told, context.sensor, clock(time), _TASMOTA_ANYWHERE, sparse=True)


def _local(time: str, zone: tzinfo) -> object:
    """Unix time. In the hour that comes twice when clocks go back, the first of both."""
    try:
        return datetime.fromisoformat(time).replace(tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        return time  # no day of the calendar: refused as it stands


def zigbee2mqtt(document: Object, context: Context) -> Iterator[Member]:
    """`zigbee2mqtt/<name>`: what the device exposes. Null and "" stand for what is not known (yet)."""
    told = {name: value for name, value in document.items() if name not in _ZIGBEE_LEFT_OUT}
    return nested(told, context.sensor, clock(document.get("last_seen")), sparse=True)


def shelly(document: Object, context: Context) -> Iterator[Member]:
    """`<device>/events/rpc` of Gen2 and later: what changed, or all there is, by component.

    A `NotifyEvent` becomes a text `component.event`, and what it brings along `component.data.…`. Null
    announces that a key is gone.
    """
    method, params = document.get("method"), document.get("params")
    if isinstance(params, dict):
        time = clock(params.get("ts"))
        if method in ("NotifyStatus", "NotifyFullStatus"):
            return _shelly_status(params, context.sensor, time)
        if method == "NotifyEvent" and isinstance(params.get("events"), list):
            return _shelly_events(params["events"], context.sensor, time)
    raise _unexpected("no NotifyStatus, NotifyFullStatus or NotifyEvent of a Shelly")


def _shelly_status(params: Object, sensor: str, time: object) -> Iterator[Member]:
    for component, status in params.items():
        told = status
        if component == "ts":
            continue
        if isinstance(status, dict):
            left_out = _SHELLY_LEFT_OUT.get(component, frozenset())
            told = {name: value for name, value in status.items() if name != "id" and name not in left_out}
        yield from nested({component: told}, sensor, time, _SHELLY_ANYWHERE, sparse=True)


def _shelly_events(events: list[Any], sensor: str, time: object) -> Iterator[Member]:
    for event in events:
        component = event.get("component") if isinstance(event, dict) else None
        if not isinstance(component, str):
            odd = Bad(Reason.VALUE_UNSUPPORTED, "the event names no component")
            yield Member(join(sensor, "event"), odd)
            continue
        own = clock(event.get("ts"))
        told = {name: event[name] for name in ("event", "data") if name in event}
        yield from nested({component: told}, sensor, time if own is None else own, sparse=True)


def chirpstack(document: Object, context: Context) -> Iterator[Member]:
    """`application/…/device/…/event/up` of version 4: what the codec made of the frame, in `object`."""
    decoded = document.get("object")
    if not isinstance(decoded, dict):
        if not document.get("data") and not _CHIRPSTACK.isdisjoint(document):
            return iter(())  # a frame without data, which a device sends to be heard
        raise Bad(
            Reason.PAYLOAD_WITHOUT_READINGS,
            "the uplink has no `object`: set a codec in ChirpStack's device profile",
        )
    return nested(decoded, context.sensor, clock(document.get("time")), sparse=True)


def things_stack(document: Object, context: Context) -> Iterator[Member]:
    """`v3/…/devices/…/up`: what the payload formatter made of the frame, in `decoded_payload`."""
    uplink = document.get("uplink_message")
    if not isinstance(uplink, dict):
        raise _unexpected("no uplink of The Things Stack")
    decoded = uplink.get("decoded_payload")
    if not isinstance(decoded, dict):
        if not uplink.get("frm_payload"):
            return iter(())
        raise Bad(
            Reason.PAYLOAD_WITHOUT_READINGS,
            "the uplink has no `decoded_payload`: set a payload formatter in The Things Stack",
        )
    time = uplink.get("received_at", document.get("received_at"))
    return nested(decoded, context.sensor, clock(time), sparse=True)


def _unexpected(what: str) -> Bad:
    return Bad(Reason.PAYLOAD_UNEXPECTED, f"the payload is {what}, as PAYLOAD_FORMATS says of its topic")


FORMATS: Mapping[PayloadFormat, Format] = {
    PayloadFormat.TASMOTA: tasmota,
    PayloadFormat.ZIGBEE2MQTT: zigbee2mqtt,
    PayloadFormat.SHELLY: shelly,
    PayloadFormat.CHIRPSTACK: chirpstack,
    PayloadFormat.THINGS_STACK: things_stack,
}
