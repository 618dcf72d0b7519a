"""What is sent to browsers, as JSON: `{"type": …, "data": …}`. docs/dashboard.md describes each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from dashboard.units import unit_of
from live import News
from query.queries import AlertRow, DevicePage, Registered, Row, SeriesPage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode


def message(kind: str, data: object) -> str:
    return _encode({"type": kind, "data": data}).decode()


def history(rows: Iterable[Row]) -> str:
    return message("history", [_row(row) for row in rows])


def reading(news: News) -> str:
    row = {
        "device_id": news.device_id,
        "sensor_type": news.sensor_type,
        "timestamp": _EPOCH + timedelta(microseconds=news.timestamp_us),
        "value": news.value,
        "value_text": news.value_text,
    }
    return message("reading", row)


def page(found: SeriesPage) -> str:
    data = {
        "page": found.page,
        "pages": found.pages,
        "total": found.total,
        "series": [_series(one) for one in found.series],
    }
    return message("page", data)


def devices(found: DevicePage) -> str:
    return message("devices", _plain(found))


def alerts(active: Sequence[AlertRow], total: int, resolved: Sequence[AlertRow]) -> str:
    data = {
        "active": [alert(one) for one in active],
        "active_total": total,
        "resolved": [alert(one) for one in resolved],
    }
    return message("alerts", data)


def alert(row: AlertRow) -> dict[str, object]:
    return {
        "id": str(row.id),
        "device_id": row.device_id,
        "sensor_type": row.key,
        "place_id": row.place_id,
        "kind": row.threshold_type.value,
        "severity": row.severity.value,
        "status": row.status.value,
        "value": row.value,
        "value_text": row.value_text,
        "threshold_value": row.threshold_value,
        "threshold_text": row.threshold_text,
        "unit": unit_of(row.key),
        "created_at": row.created_at,
        "resolved_at": row.resolved_at,
    }


def state(now: datetime, *, database: bool, listening: bool, login: bool) -> str:
    """Sent whenever it changes, and all the time as a sign of life.

    `time` is the server's clock; `login`: whether people log in, and so out.
    """
    return message("state", {"time": now, "database": database, "listening": listening, "login": login})


def pipeline(data: Mapping[str, object]) -> str:
    return message("pipeline", data)


def error(sentence: str) -> str:
    return message("error", {"message": sentence})


def _row(row: Row) -> dict[str, object]:
    plain = row._asdict()
    if plain["unit"] is None:
        del plain["unit"]
    return plain


def _series(one: Registered) -> dict[str, object]:
    return {
        "device_id": one.device_id,
        "sensor_type": one.sensor_type,
        "unit": one.unit if one.unit is not None else unit_of(one.sensor_type),
        "unit_known": one.unit is not None,
        "active": one.active,
    }


def _plain(found: DevicePage) -> dict[str, Any]:
    return {
        "page": found.page,
        "pages": found.pages,
        "total": found.total,
        "online": found.online,
        "offline": found.offline,
        "devices": [one._asdict() for one in found.devices],
    }
