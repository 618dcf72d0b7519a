"""Payloads in the forms that makers document, written for these tests, and the readings that they hold.

Times are in milliseconds since 1970; None: the arrival counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import cbor2

from sparkplug import Payload

Value = float | str
NOON_MS = 1_768_478_400_000  # 2026-01-15T12:00:00Z


class Example(NamedTuple):
    """`told`: (device, sensor, time, value) of each reading, in order. `metadata`: by sensor."""

    name: str
    topic: str
    payload: bytes
    told: list[tuple[str, str, int | None, Value]]
    owner: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def of_device(device: str, time: int | None, **readings: Value) -> list[tuple[str, str, int | None, Value]]:
    return [(device, name, time, value) for name, value in readings.items()]


def all_of(
    device: str, time: int | None, readings: dict[str, Value]
) -> list[tuple[str, str, int | None, Value]]:
    return [(device, name, time, value) for name, value in readings.items()]


def sparkplug(*metrics: dict[str, Any], timestamp: int | None = NOON_MS) -> bytes:
    """A payload of metrics, as a publisher encodes it."""
    payload = Payload()
    if timestamp is not None:
        payload.timestamp = timestamp
    for metric in metrics:
        payload.metrics.add(**metric)
    encoded: bytes = payload.SerializeToString()
    return encoded


# https://tasmota.github.io/docs/MQTT/ and https://tasmota.github.io/docs/JSON-Status-Responses/
TASMOTA = _json(
    {
        "Time": "2026-01-15T13:00:00",
        "ENERGY": {
            "TotalStartTime": "2025-11-02T09:14:51",
            "Total": 41.207,
            "Yesterday": 0.611,
            "Power": 83,
            "Factor": 0.94,
            "Voltage": 231,
        },
        "DS18B20-1": {"Id": "3C01D607A41F", "Temperature": 19.4},
        "BME280": {"Temperature": 21.8, "Humidity": 44.1, "Pressure": 1009.7},
        "Switch1": "ON",
        "TempUnit": "C",
        "PressureUnit": "hPa",
    }
)
TASMOTA_READINGS: dict[str, Value] = {
    "ENERGY.Total": 41.207,
    "ENERGY.Yesterday": 0.611,
    "ENERGY.Power": 83.0,
    "ENERGY.Factor": 0.94,
    "ENERGY.Voltage": 231.0,
    "DS18B20-1.Temperature": 19.4,
    "BME280.Temperature": 21.8,
    "BME280.Humidity": 44.1,
    "BME280.Pressure": 1009.7,
    "Switch1": "ON",
}

# https://www.zigbee2mqtt.io/guide/usage/mqtt_topics_and_messages.html
# https://www.zigbee2mqtt.io/guide/configuration/mqtt.html for last_seen and the device's own data
ZIGBEE2MQTT = _json(
    {
        "state": "ON",
        "brightness": 187,
        "color": {"x": 0.412, "y": 0.377},
        "color_mode": "xy",
        "power_on_behavior": None,
        "action": "",
        "occupancy": False,
        "linkquality": 96,
        "last_seen": "2026-01-15T13:00:00+01:00",
        "update": {"state": "idle", "installed_version": 16777241, "latest_version": 16777241},
        "update_available": None,
        "device": {"friendlyName": "shelf", "ieeeAddr": "0x00158d00045a1c37", "networkAddress": 4711},
    }
)

# https://shelly-api-docs.shelly.cloud/gen2/General/Notifications
SHELLY = _json(
    {
        "src": "shellyplus2pm-5443b2a1c0de",
        "dst": "shellyplus2pm-5443b2a1c0de/events",
        "method": "NotifyStatus",
        "params": {
            "ts": NOON_MS / 1000,
            "switch:0": {
                "id": 0,
                "output": True,
                "source": "button",
                "apower": 41.3,
                "aenergy": {"total": 902.118, "by_minute": [612.5, 0.0], "minute_ts": 1768478340},
                "errors": [],
            },
            "temperature:100": {"id": 100, "tC": 21.4, "tF": 70.5},
            "input:1": {"id": 1, "percent": None},
        },
    }
)
SHELLY_READINGS: dict[str, Value] = {
    "switch:0.output": 1.0,
    "switch:0.source": "button",
    "switch:0.apower": 41.3,
    "switch:0.aenergy.total": 902.118,
    "switch:0.aenergy.by_minute.0": 612.5,
    "switch:0.aenergy.by_minute.1": 0.0,
    "temperature:100.tC": 21.4,
    "temperature:100.tF": 70.5,
}
SHELLY_EVENT = _json(
    {
        "src": "shellyplusi4-a8032ab1c2d4",
        "dst": "shellyplusi4-a8032ab1c2d4/events",
        "method": "NotifyEvent",
        "params": {
            "ts": NOON_MS / 1000 + 0.25,
            "events": [{"component": "input:2", "id": 2, "event": "double_push", "ts": NOON_MS / 1000}],
        },
    }
)

# https://www.chirpstack.io/docs/chirpstack/integrations/events.html
CHIRPSTACK = _json(
    {
        "deduplicationId": "8d0c7f0e-5f5a-4f6d-9a3e-2b6a7d6c1e55",
        "time": "2026-01-15T12:00:00.123456789+00:00",
        "deviceInfo": {"tenantName": "north", "applicationName": "cellar", "devEui": "70b3d57ed0061a2b"},
        "devAddr": "01ab23cd",
        "dr": 5,
        "fCnt": 118,
        "fPort": 2,
        "confirmed": False,
        "data": "AWcA1gJoWQ==",
        "object": {"temperatureSensor": {"1": 21.4}, "leak": False, "mode": "eco", "levels": [3, 4.5]},
        "rxInfo": [{"gatewayId": "0016c001f153b0aa", "uplinkId": 4217, "rssi": -71, "snr": 8.5}],
        "txInfo": {"frequency": 868300000},
    }
)

# https://www.thethingsindustries.com/docs/the-things-stack/concepts/data-formats/
THINGS_STACK = _json(
    {
        "end_device_ids": {
            "device_id": "cellar-3",
            "application_ids": {"application_id": "house"},
            "dev_eui": "70B3D57ED0061A2B",
        },
        "correlation_ids": ["as:up:01JHN1Z7M2"],
        "received_at": "2026-01-15T12:00:00.400Z",
        "uplink_message": {
            "f_port": 1,
            "f_cnt": 412,
            "frm_payload": "AWcA1g==",
            "decoded_payload": {"temperature": 21.4, "battery": {"volts": 3.1, "low": False}},
            "rx_metadata": [{"gateway_ids": {"gateway_id": "roof"}, "rssi": -93}],
            "received_at": "2026-01-15T12:00:00.100Z",
        },
    }
)

# RFC 8428, sections 4 to 6
SENML = [
    {"bn": "urn:dev:mac:0024befffe804ff1:", "bt": NOON_MS / 1000, "bu": "Cel", "n": "inner", "v": 21.4},
    {"n": "outer", "t": -2.5, "v": -3},
    {"n": "door", "u": "/", "vb": True},
    {"n": "state", "vs": "open"},
    {"n": "raw", "vd": "aGkgdGhlcmU"},
    {"n": "energy", "u": "J", "v": 7, "s": 4211},
]
SENML_CBOR = [
    {-2: "urn:dev:mac:0024befffe804ff1:", -3: NOON_MS // 1000, -4: "Cel", 0: "inner", 2: 21.4},
    {0: "outer", 6: -2.5, 2: -3},
    {0: "door", 1: "/", 4: True},
    {0: "state", 3: "open"},
    {0: "raw", 8: b"hi there"},
    {0: "energy", 1: "J", 2: 7, 5: 4211},
]


def _senml(device: str) -> list[tuple[str, str, int | None, Value]]:
    base = "urn:dev:mac:0024befffe804ff1:"
    return [
        (device, f"{base}inner", NOON_MS, 21.4),
        (device, f"{base}outer", NOON_MS - 2500, -3.0),
        (device, f"{base}door", NOON_MS, 1.0),
        (device, f"{base}state", NOON_MS, "open"),
        (device, f"{base}raw", NOON_MS, "aGkgdGhlcmU"),
        (device, f"{base}energy", NOON_MS, 7.0),
        (device, f"{base}energy.sum", NOON_MS, 4211.0),
    ]


_UNITS = {
    "urn:dev:mac:0024befffe804ff1:" + name: {"unit": unit}
    for name, unit in {
        "inner": "Cel",
        "outer": "Cel",
        "door": "/",
        "state": "Cel",
        "raw": "Cel",
        "energy": "J",
        "energy.sum": "J",
    }.items()
}

# https://sparkplug.eclipse.org/specification/, version 3.0, chapter 6
SPARKPLUG_DATA = sparkplug(
    {"name": b"Inputs/A", "timestamp": NOON_MS - 20, "datatype": 11, "boolean_value": True},
    {"name": b"Motor/Temperature", "timestamp": NOON_MS - 10, "datatype": 3, "int_value": 2**32 - 7},
    {"name": b"Motor/Mode", "datatype": 12, "string_value": "läuft".encode()},
    {"name": b"Motor/Torque", "datatype": 10, "double_value": 12.75},
    {"name": b"Motor/Hours", "datatype": 8, "long_value": 2**40},
    {"name": b"scratch", "datatype": 10, "double_value": 1.0, "is_transient": True},
)
SPARKPLUG_BIRTH = sparkplug(
    {"name": b"bdSeq", "datatype": 4, "long_value": 3},
    {"name": b"Node Control/Rebirth", "datatype": 11, "boolean_value": False},
    {"name": b"Uptime", "alias": 4, "datatype": 4, "long_value": 2**64 - 2},
)

EXAMPLES = [
    Example("number", "sensors/a1/level", b"17.5", [("a1", "level", None, 17.5)]),
    Example(
        "flat object",
        "devices/a2/telemetry",
        b'{"t": 21.5, "door": "open", "on": true, "ts": 1768478400}',
        of_device("a2", NOON_MS, t=21.5, door="open", on=1.0),
    ),
    Example(
        "nested object",
        "devices/a3/telemetry",
        b'{"a": {"b": [1, {"c": "x"}], "none": {}}, "z": 2, "timestamp": "2026-01-15T12:00:00Z"}',
        all_of("a3", NOON_MS, {"a.b.0": 1.0, "a.b.1.c": "x", "z": 2.0}),
    ),
    Example(
        "array",
        "devices/a4/telemetry",
        b"[20.5, true, [3]]",
        all_of("a4", None, {"0": 20.5, "1": 1.0, "2.0": 3.0}),
    ),
    Example(
        "time and values",
        "placebrain/home/devices/a5/telemetry",
        b'{"ts": 1768478400000, "values": {"t": 21.5, "deep": {"x": 1}}}',
        all_of("a5", NOON_MS, {"t": 21.5, "deep.x": 1.0}),
        "home",
    ),
    Example(
        "value with metadata",
        "pico/temp/a6",
        b'{"value": 21.5, "timestamp": 1768478400, "metadata": {"unit":  "C"}}',
        [("a6", "temp", NOON_MS, 21.5)],
        metadata={"temp": {"unit": "C"}},
    ),
    Example("tasmota", "tele/plug/SENSOR", TASMOTA, all_of("plug", NOON_MS, TASMOTA_READINGS)),
    Example(
        "zigbee2mqtt",
        "zigbee2mqtt/shelf",
        ZIGBEE2MQTT,
        all_of(
            "shelf",
            NOON_MS,
            {
                "state": "ON",
                "brightness": 187.0,
                "color.x": 0.412,
                "color.y": 0.377,
                "color_mode": "xy",
                "occupancy": 0.0,
                "linkquality": 96.0,
            },
        ),
    ),
    Example("shelly", "shelly-a/events/rpc", SHELLY, all_of("shelly-a", NOON_MS, SHELLY_READINGS)),
    Example(
        "shelly event",
        "shelly-b/events/rpc",
        SHELLY_EVENT,
        [("shelly-b", "input:2.event", NOON_MS, "double_push")],
    ),
    Example(
        "chirpstack",
        "application/5c0e/device/70b3d57ed0061a2b/event/up",
        CHIRPSTACK,
        all_of(
            "70b3d57ed0061a2b",
            NOON_MS + 123,
            {"temperatureSensor.1": 21.4, "leak": 0.0, "mode": "eco", "levels.0": 3.0, "levels.1": 4.5},
        ),
        "5c0e",
    ),
    Example(
        "things stack",
        "v3/house@ttn/devices/cellar-3/up",
        THINGS_STACK,
        all_of("cellar-3", NOON_MS + 100, {"temperature": 21.4, "battery.volts": 3.1, "battery.low": 0.0}),
        "house@ttn",
    ),
    Example("senml json", "devices/b1/telemetry", _json(SENML), _senml("b1"), metadata=_UNITS),
    Example("senml cbor", "devices/b2/telemetry", cbor2.dumps(SENML_CBOR), _senml("b2"), metadata=_UNITS),
    Example(
        "sparkplug data",
        "spBv1.0/plant/DDATA/press/motor",
        SPARKPLUG_DATA,
        [
            ("press/motor", "Inputs/A", NOON_MS - 20, 1.0),
            ("press/motor", "Motor/Temperature", NOON_MS - 10, -7.0),
            ("press/motor", "Motor/Mode", NOON_MS, "läuft"),
            ("press/motor", "Motor/Torque", NOON_MS, 12.75),
            ("press/motor", "Motor/Hours", NOON_MS, float(2**40)),
        ],
        "plant",
    ),
    Example(
        "sparkplug birth",
        "spBv1.0/plant/NBIRTH/press",
        SPARKPLUG_BIRTH,
        [("press", "Uptime", NOON_MS, -2.0)],
        "plant",
    ),
    Example("a retained message that is cleared", "zigbee2mqtt/gone", b"", []),
    Example(
        "a frame without data",
        "application/5c0e/device/70b3d57ed0061a2c/event/up",
        b'{"deduplicationId": "8d0c7f0e-5f5a-4f6d-9a3e-2b6a7d6c1e56", "fCnt": 119, "data": ""}',
        [],
        "5c0e",
    ),
]
