"""Readings in PostgreSQL's binary COPY format. Pure.

The format: https://www.postgresql.org/docs/current/sql-copy.html (binary format). All of a batch is
encoded before COPY is opened, so that nothing can go wrong, or stop, between the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

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
_ORDINAL = struct.Struct(">ii")


def encode(readings: Iterable[Reading]) -> bytes:
    """COPY data for `COLUMNS`."""
    return b"".join(_rows(readings, numbered=False))


def encode_numbered(readings: Iterable[Reading]) -> bytes:
    """COPY data for `ORDINAL` and `COLUMNS`: each row begins with its place in `readings`."""
    return b"".join(_rows(readings, numbered=True))


def _rows(readings: Iterable[Reading], *, numbered: bool) -> Iterable[bytes]:
    yield _HEADER
    prefixes: dict[tuple[str, str], bytes] = {}
    width = struct.pack(">h", len(COLUMNS) + numbered)
    for ordinal, (device, sensor, micros, message, value, text, metadata) in enumerate(readings):
        series = prefixes.get((device, sensor))
        if series is None:
            series = _text(device) + _text(sensor)
            if not numbered:
                series = width + series
            prefixes[device, sensor] = series
        if numbered:
            yield width + _ORDINAL.pack(4, ordinal)
        yield series
        moment = micros - _EPOCH_2000_US
        if value is not None and metadata is None:
            yield _NUMBER_ROW.pack(8, moment, 16, message, 8, value, -1, -1)
            continue
        yield _KEY.pack(8, moment, 16, message)
        yield _NULL if value is None else _NUMBER.pack(8, value)
        yield _NULL if text is None else _text(text)
        # jsonb's binary form is its version, 1, before the text
        yield _NULL if metadata is None else _LENGTH.pack(len(metadata) + 1) + b"\x01" + metadata
    yield _TRAILER


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return _LENGTH.pack(len(encoded)) + encoded
