"""The registry: which series and devices there are, their newest values, and which are switched off.

What comes in is noted in memory and written about twice a second, each series once, in a transaction of
its own and in the order of the key: in the transaction of the readings, or in another order, workers
deadlock. A series or a status that is new is written before its entries are acknowledged, so a crash brings
it again. Of known series a crash may cost the newest values of the last second: the sweep repairs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import NamedTuple

import registry_sql as statements
from database import BoundedConnection
from schema import Answer, DeviceStatus, Reading, Reason, Rejection, RowFate
from thresholds import Series

FLUSH_SEC = 0.5
LONGEST_SEC = 5.0  # behind, where writing takes so long that more often would cost too much
SHARE = 0.04  # of a worker's time, at most, that writing the registry may take
_MOST_KNOWN = 2_000_000


class _Last(NamedTuple):
    time_us: int
    value: float | None
    text: str | None
    noted: float


class Registry:
    """What one worker knows of series and devices, and what it still has to write down.

    Belongs to the thread of its connection. `accept_unknown` False: readings of series that are not
    registered are rejected. Methods that take a connection run in the caller's transaction.
    """

    def __init__(self, *, accept_unknown: bool = True, clock: Callable[[], float] = monotonic) -> None:
        self._accept_unknown = accept_unknown
        self._clock = clock
        self._known: set[Series] = set()
        self._inactive: set[Series] = set()
        self._owners: dict[str, str] = {}
        self._dirty: dict[Series, _Last] = {}
        self._statuses: dict[str, DeviceStatus] = {}
        self._new_owners: set[str] = set()
        self._urgent = False
        self._next_flush = 0.0

    def load(self, connection: BoundedConnection) -> None:
        """Read all series and owners."""
        found = connection.execute(statements.ALL_SERIES).fetchall()
        self._known = {(device, sensor) for device, sensor, _ in found}
        self._inactive = {(device, sensor) for device, sensor, active in found if not active}
        self._owners = dict(connection.execute(statements.OWNERS).fetchall())

    def verify(self, connection: BoundedConnection) -> None:
        """Repair what a missed notification left wrong."""
        if not self._accept_unknown:
            self.load(connection)
            return
        self._inactive = set(connection.execute(statements.INACTIVE).fetchall())

    def refresh(self, connection: BoundedConnection, payloads: Iterable[str]) -> None:
        """Read the series that the payloads of notifications name: a JSON array of device and sensor."""
        self.learn(connection, sorted({(device, sensor) for device, sensor in map(json.loads, payloads)}))

    def learn(self, connection: BoundedConnection, series: Sequence[Series]) -> None:
        """Ask the table about these series."""
        asked = {"devices": [device for device, _ in series], "sensors": [sensor for _, sensor in series]}
        found = connection.execute(statements.THESE_SERIES, asked).fetchall()
        self._known.difference_update(series)
        self._inactive.difference_update(series)
        self._known.update((device, sensor) for device, sensor, _ in found)
        self._inactive.update((device, sensor) for device, sensor, active in found if not active)

    def unknown(self, readings: Iterable[Reading]) -> list[Series]:
        """The series of these readings that are to be rejected unless the table knows them by now."""
        if self._accept_unknown:
            return []
        return sorted({(one.device_id, one.sensor_type) for one in readings} - self._known)

    def refused(self, readings: Sequence[Reading]) -> dict[int, Answer]:
        """Those of `readings`, by index, that are not to be stored, and what becomes of them."""
        refused: dict[int, Answer] = {}
        if self._accept_unknown and not self._inactive:
            return refused
        for index, reading in enumerate(readings):
            series = (reading.device_id, reading.sensor_type)
            if series in self._inactive:
                refused[index] = RowFate.SKIPPED
            elif not self._accept_unknown and series not in self._known:
                refused[index] = _unknown(reading)
        return refused

    def owner_of(self, device: str) -> str:
        """The owner or place of a device, or an empty text."""
        return self._owners.get(device, "")

    def note_owner(self, device: str, owner: str) -> None:
        if self._owners.get(device) != owner:
            self._owners[device] = owner
            self._new_owners.add(device)

    def note_status(self, status: DeviceStatus) -> None:
        """Remember a status message; it has to be written before its entry is acknowledged."""
        before = self._statuses.get(status.device_id)
        if before is None or status.time_us >= before.time_us:
            self._statuses[status.device_id] = status
        if status.owner:
            self.note_owner(status.device_id, status.owner)
        self._urgent = True

    def note(self, stored: Sequence[Reading]) -> None:
        """Remember the newest of each series; `stored` is sorted by key, and in the table."""
        noted = self._clock()
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        before: Reading | None = None
        for reading in reversed(stored):
            if before and before[1] == reading[1] and before[0] == reading[0]:
                continue
            before = reading
            series = reading[:2]
            last = self._dirty.get(series)
            if last is None or reading.timestamp_us >= last.time_us:
                self._dirty[series] = _Last(reading.timestamp_us, reading.value, reading.value_text, noted)
            else:
                self._dirty[series] = last._replace(noted=noted)
            if series not in self._known:
                self._known.add(series)
                self._urgent = True

    def forget_device(self, device: str) -> None:
        """This device is being deleted: write nothing of it any more."""
        self._owners.pop(device, None)
        self._new_owners.discard(device)
        self._statuses.pop(device, None)
        for series in [series for series in self._dirty if series[0] == device]:
            del self._dirty[series]

    @property
    def urgent(self) -> bool:
        """Whether something has to be written before the entries in hand are acknowledged."""
        return self._urgent

    @property
    def due_at(self) -> float:
        """When, by the clock, to write next; infinity while there is nothing to write."""
        return self._next_flush if self._dirty or self._statuses else float("inf")

    def flush(self, connection: BoundedConnection) -> None:
        """Write what was noted. To be committed by the caller, who then calls `flushed`."""
        now = self._clock()
        series = sorted(self._dirty)
        if series:
            connection.execute(
                statements.UPSERT_SERIES, _series_columns(series, self._dirty, self._changed_owner, now)
            )
        devices = dict.fromkeys(self._statuses, 0.0)
        for name in series:
            devices[name[0]] = max(devices.get(name[0], 0.0), self._dirty[name].noted)
        if devices:
            connection.execute(statements.UPSERT_DEVICES, self._device_columns(devices, now))

    def flushed(self, took: float) -> None:
        """What `flush` wrote has committed; it took so many seconds."""
        self._new_owners.difference_update(self._statuses, (device for device, _ in self._dirty))
        self._dirty.clear()
        self._statuses.clear()
        self._urgent = False
        self._next_flush = self._clock() + min(LONGEST_SEC, max(FLUSH_SEC, took / SHARE))

    def _changed_owner(self, device: str) -> str:
        """What is to be written: another worker may know better what was written before."""
        return self._owners.get(device, "") if device in self._new_owners else ""

    def _device_columns(self, devices: dict[str, float], now: float) -> dict[str, list[object]]:
        names = sorted(devices)
        statuses = [self._statuses.get(name) for name in names]
        return {
            "devices": list(names),
            "owners": [self._changed_owner(name) for name in names],
            "ages": [now - devices[name] if devices[name] else 0.0 for name in names],
            "statuses": [one and ("online" if one.online else "offline") for one in statuses],
            "times": [one and statements.moment(one.time_us) for one in statuses],
        }


def _series_columns(
    series: Sequence[Series], dirty: dict[Series, _Last], owner_of: Callable[[str], str], now: float
) -> dict[str, list[object]]:
    lasts = [dirty[name] for name in series]
    return {
        "devices": [device for device, _ in series],
        "sensors": [sensor for _, sensor in series],
        "owners": [owner_of(device) for device, _ in series],
        "ages": [now - last.noted for last in lasts],
        "times": [statements.moment(last.time_us) for last in lasts],
        "values": [last.value for last in lasts],
        "texts": [last.text for last in lasts],
    }


def _unknown(reading: Reading) -> Rejection:
    return Rejection(
        Reason.UNKNOWN_SERIES,
        "the series is not registered, and UNKNOWN_SERIES is reject; "
        "`main.py series activate` registers it",
        reading.device_id,
        reading.sensor_type,
        str(reading.value if reading.value is not None else reading.value_text)[:200],
    )
