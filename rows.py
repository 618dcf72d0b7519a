"""Readings in PostgreSQL's binary COPY format. Pure.

The format: https://www.postgresql.org/docs/current/sql-copy.html (binary format). All of a batch is
encoded before COPY is opened, so that nothing can go wrong, or stop, between the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from schema import Reading

COLUMNS = ("device_id", "sensor_type", "timestamp", "message_id", "value", "value_text", "metadata")
ORDINAL = "n"

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = struct.pack(">h", -1)
_EPOCH_2000_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01
_NULL = struct.pack(">i", -1)
_KEY = struct.Struct(">iqi16s")
_NUMBER_ROW = struct.Struct(">iqi16sidii")  # timestamp, message_id, value, and two NULLs
_NUMBER = struct.Struct(">id")
_LENGTH = struct.Struct(">i")
_ORDINAL = struct.Struct(">hii")  # how many columns, and the first


def encode(readings: Iterable[Reading]) -> bytes:
    """COPY data for `COLUMNS`. Quick where readings of a series follow one another."""
    parts = [_HEADER]
    add = parts.append
    width = struct.pack(">h", len(COLUMNS))
    pack = _NUMBER_ROW.pack
    last_device, last_sensor, series = "", "", b""
    for device, sensor, micros, message, value, text, metadata in readings:
        if device is not last_device or sensor is not last_sensor:
            last_device, last_sensor, series = device, sensor, width + _name(device) + _name(sensor)
        add(series)
        if value is not None and metadata is None:
            add(pack(8, micros - _EPOCH_2000_US, 16, message, 8, value, -1, -1))
        else:
            add(_odd_row(micros, message, value, text, metadata))
    add(_TRAILER)
    return b"".join(parts)


def encode_numbered(readings: Iterable[Reading]) -> bytes:
    """COPY data for `ORDINAL` and `COLUMNS`: each row begins with its place in `readings`."""
    parts = [_HEADER]
    add = parts.append
    width = len(COLUMNS) + 1
    begin, pack = _ORDINAL.pack, _NUMBER_ROW.pack
    last_device, last_sensor, series = "", "", b""
    for ordinal, (device, sensor, micros, message, value, text, metadata) in enumerate(readings):
        if device is not last_device or sensor is not last_sensor:
            last_device, last_sensor, series = device, sensor, _name(device) + _name(sensor)
        add(begin(width, 4, ordinal))
        add(series)
        if value is not None and metadata is None:
            add(pack(8, micros - _EPOCH_2000_US, 16, message, 8, value, -1, -1))
        else:
            add(_odd_row(micros, message, value, text, metadata))
    add(_TRAILER)
    return b"".join(parts)


def _odd_row(
    micros: int, message: bytes, value: float | None, text: str | None, metadata: bytes | None
) -> bytes:
    """What follows the series in a row, whatever it holds."""
    return b"".join(
        (
            _KEY.pack(8, micros - _EPOCH_2000_US, 16, message),
            _NULL if value is None else _NUMBER.pack(8, value),
            _NULL if text is None else _text(text),
            # jsonb's binary form is its version, 1, before the text
            _NULL if metadata is None else _LENGTH.pack(len(metadata) + 1) + b"\x01" + metadata,
        )
    )


@lru_cache(maxsize=16_384)
def _name(value: str) -> bytes:
    """As `_text`; names come again and again."""
    return _text(value)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return _LENGTH.pack(len(encoded)) + encoded
