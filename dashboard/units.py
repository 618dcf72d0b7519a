"""In what a sensor measures, by its usual name, where neither registry nor metadata say it. Pure."""

from __future__ import annotations

import re

# Names as devices give them (lower case, words joined by _), and the unit that makers agree on: what
# Zigbee2MQTT exposes, members of Shelly's and Tasmota's status, ESPHome's device classes. Where they
# differ (energy is in Wh or kWh, voc in ppb or µg/m³) none is named.
_UNITS = {
    "temperature": "°C",
    "temp": "°C",
    "tc": "°C",
    "dew_point": "°C",
    "dewpoint": "°C",
    "device_temperature": "°C",
    "soil_temperature": "°C",
    "humidity": "%",
    "rh": "%",
    "soil_moisture": "%",
    "battery": "%",
    "battery_level": "%",
    "pressure": "hPa",
    "co2": "ppm",
    "eco2": "ppm",
    "tvoc": "ppb",
    "pm1": "µg/m³",
    "pm10": "µg/m³",
    "pm25": "µg/m³",
    "pm2_5": "µg/m³",
    "formaldehyde": "µg/m³",
    "light": "lx",
    "lux": "lx",
    "illuminance": "lx",
    "illuminance_lux": "lx",
    "voltage": "V",
    "current": "A",
    "power": "W",
    "apower": "W",
    "active_power": "W",
    "apparent_power": "VA",
    "reactive_power": "var",
    "frequency": "Hz",
    "noise": "dB",
    "sound": "dB",
    "rssi": "dBm",
    "wind_speed": "m/s",
    "wind_direction": "°",
    "rain": "mm",
    "rssi_dbm": "dBm",
    "snr": "dB",
    "uptime": "s",
}
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+")


def unit_of(sensor: str) -> str:
    """The unit of a sensor with such a name, or an empty text.

    Counts in the last part of a nested name (`environment.temperature`), without a number behind it
    (`temperature_2`), in any spelling (`windSpeed`, `wind-speed`).
    """
    last = re.split(r"[./:]", sensor)[-1]
    name = "_".join(part.lower() for part in _WORDS.split(last) if part)
    return _UNITS.get(name) or _UNITS.get(re.sub(r"_?\d+$", "", name), "")
