"""Rows in COPY's binary format, against the format's description."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import adapt
from psycopg.adapt import PyFormat
from psycopg.types.json import Jsonb

import rows
from schema import Reading

HEAD = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TAIL = b"\xff\xff"
LETTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=100)
NUMBERS = st.builds(
    Reading,
    device_id=NAMES,
    sensor_type=NAMES,
    timestamp_us=st.integers(0, 4_000_000_000_000_000),
    message_id=st.binary(min_size=16, max_size=16),
    value=st.floats(allow_nan=False, allow_infinity=False),
    value_text=st.none(),
    metadata=st.one_of(st.none(), st.just(b'{"a":1}')),
)
READINGS = st.one_of(
    NUMBERS, st.builds(lambda reading, text: reading._replace(value=None, value_text=text), NUMBERS, NAMES)
)


def psycopg_s(value: object) -> bytes:
    """One field as psycopg writes it, length first."""
    if value is None:
        return struct.pack(">i", -1)
    dumped = bytes(adapt.Transformer().get_dumper(value, PyFormat.BINARY).dump(value) or b"")
    return struct.pack(">i", len(dumped)) + dumped


def expected(reading: Reading) -> bytes:
    moment = datetime.fromtimestamp(reading.timestamp_us // 1_000_000, UTC).replace(
        microsecond=reading.timestamp_us % 1_000_000
    )
    metadata = Jsonb({"a": 1}, dumps=lambda _: '{"a":1}') if reading.metadata else None
    values = (
        reading.device_id,
        reading.sensor_type,
        moment,
        UUID(bytes=reading.message_id),
        reading.value,
        reading.value_text,
        metadata,
    )
    return b"".join(map(psycopg_s, values))


@given(st.lists(READINGS, max_size=5))
def test_rows_are_written_as_psycopg_writes_them(readings: list[Reading]) -> None:
    width = struct.pack(">h", 7)
    assert rows.encode(readings) == HEAD + b"".join(width + expected(r) for r in readings) + TAIL


@given(st.lists(READINGS, max_size=5))
def test_numbered_rows_begin_with_their_place(readings: list[Reading]) -> None:
    width = struct.pack(">h", 8)
    body = b"".join(width + struct.pack(">ii", 4, n) + expected(r) for n, r in enumerate(readings))
    assert rows.encode_numbered(readings) == HEAD + body + TAIL


@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1.7976931348623157e308])
def test_doubles_keep_every_bit(value: float) -> None:
    encoded = rows.encode([Reading("d", "t", 0, bytes(16), value)])
    assert struct.pack(">d", value) in encoded
