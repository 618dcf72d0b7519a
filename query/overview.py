"""What there is: series and devices of the registry, searched and cut into pages.

Both are asked of the registry alone, never of the readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql


class Registered(NamedTuple):
    """A series. `unit`: as the registry has it. `active` False: switched off."""

    device_id: str
    sensor_type: str
    unit: str | None
    active: bool


class DeviceRow(NamedTuple):
    """A device. `status`: online, offline, or None where it never said; `series`: how many it has."""

    device_id: str
    owner: str
    status: str | None
    status_time: datetime | None
    last_seen: datetime | None
    series: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesPage:
    """`page` is counted from 1; one beyond the last is answered as the last."""

    page: int
    pages: int
    total: int
    series: tuple[Registered, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePage:
    page: int
    pages: int
    total: int
    online: int
    offline: int
    devices: tuple[DeviceRow, ...]


_MATCHING = sql.SQL("(device_id || '/' || sensor_type) ilike all (%(words)s::text[])")
_SERIES_COUNT = sql.SQL("select count(*) from series where {matching}").format(matching=_MATCHING)
_SERIES = sql.SQL(
    """
    select device_id, sensor_type, unit, active from series where {matching}
    order by device_id, sensor_type limit %(most)s offset %(skipped)s
    """
).format(matching=_MATCHING)
_NAMED = """
    select device_id, sensor_type, unit, active from series
    where (device_id, sensor_type) in (select * from unnest(%(devices)s::text[], %(sensors)s::text[]))
"""
# A device is found by its own name, or by that of one of its series.
_DEVICE_MATCHING = sql.SQL(
    """
    (%(words)s::text[] = '{{}}' or device_id ilike all (%(words)s::text[])
        or device_id in (select s.device_id from series s
            where (s.device_id || '/' || s.sensor_type) ilike all (%(words)s::text[])))
    """
).format()
_DEVICE_COUNTS = sql.SQL(
    """
    select count(*), count(*) filter (where status = 'online'), count(*) filter (where status = 'offline')
    from devices where {matching}
    """
).format(matching=_DEVICE_MATCHING)
_DEVICES = sql.SQL(
    """
    select device_id, owner, status, status_time, last_seen,
        (select count(*) from series s where s.device_id = devices.device_id)
    from devices where {matching}
    order by device_id limit %(most)s offset %(skipped)s
    """
).format(matching=_DEVICE_MATCHING)


def series_page(
    connection: psycopg.Connection[Any], words: Sequence[str], page: int, per_page: int
) -> SeriesPage:
    """Registered series whose `device/sensor` holds every word, in any case, by name."""
    asked = {"words": [_anywhere(word) for word in words]}
    row = connection.execute(_SERIES_COUNT, asked).fetchone()
    total = int(row[0]) if row else 0
    page, pages = _placed(page, total, per_page)
    limits = {"most": per_page, "skipped": (page - 1) * per_page}
    found = connection.execute(_SERIES, asked | limits).fetchall()
    return SeriesPage(page=page, pages=pages, total=total, series=tuple(Registered(*one) for one in found))


def series_named(
    connection: psycopg.Connection[Any], series: Sequence[tuple[str, str]]
) -> tuple[Registered, ...]:
    """What is registered of these series, in their order; of one that is not, no unit."""
    asked = {"devices": [device for device, _ in series], "sensors": [sensor for _, sensor in series]}
    found = {row[:2]: Registered(*row) for row in connection.execute(_NAMED, asked)}
    return tuple(found.get(one, Registered(*one, None, True)) for one in series)


def device_page(
    connection: psycopg.Connection[Any], words: Sequence[str], page: int, per_page: int
) -> DevicePage:
    """Devices whose name, or a series of which, holds every word, by name."""
    asked = {"words": [_anywhere(word) for word in words]}
    total, online, offline = connection.execute(_DEVICE_COUNTS, asked).fetchone() or (0, 0, 0)
    page, pages = _placed(page, total, per_page)
    limits = {"most": per_page, "skipped": (page - 1) * per_page}
    devices = tuple(
        DeviceRow(device, owner, status, _utc(told), _utc(seen), series)
        for device, owner, status, told, seen, series in connection.execute(_DEVICES, asked | limits)
    )
    return DevicePage(page=page, pages=pages, total=total, online=online, offline=offline, devices=devices)


def _placed(page: int, total: int, per_page: int) -> tuple[int, int]:
    pages = max(1, -(-total // per_page))
    return min(page, pages), pages


def _anywhere(word: str) -> str:
    """A pattern of LIKE that finds `word`, whose own signs mean nothing."""
    for sign in ("\\", "%", "_"):
        word = word.replace(sign, f"\\{sign}")
    return f"%{word}%"


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC)
