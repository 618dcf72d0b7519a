"""The registry: which series and devices there are, their newest values, and which are switched off.

What comes in is noted in memory and written about once a second, each series once, in a transaction of
its own and in the order of the key: in the transaction of the readings, or in another order, workers
deadlock. A series or a status that is new is written before its entries are acknowledged, so a crash brings
it again. Of known series a crash may cost the newest values of the last second: the sweep repairs them.

The tables hold whatever was ever heard of, memory what is heard of now: a series that is forgotten here is
written once more as if it were new, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from time import monotonic

import database
import registry_sql as statements
from database import BoundedConnection
from schema import Answer, DeviceStatus, Reading, Reason, Rejection, RowFate
from thresholds import Series

_SERIES = itemgetter(0, 1)
FLUSH_SEC = 0.8
LONGEST_SEC = 60.0  # behind, where writing takes so long that more often would cost too much
SHARE = 0.04  # of a worker's time, at most, that writing the registry may take
FORGET_SEC = 86_400.0  # after which series that are silent are forgotten
_MOST_KNOWN = 2_000_000
_MOST_OWNERS = 400_000
_MOST_LOADED = 100_000  # of the table, those that were heard of last: a second, on a slow machine


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
        self._dirty: dict[Series, Reading] = {}
        self._statuses: dict[str, DeviceStatus] = {}
        self._new_owners: set[str] = set()
        self._devices: set[str] = set()
        self._fresh: set[Series] = set()  # noted, and not in the table when this was last looked at
        self._next_flush = 0.0
        self._next_load = 0.0

    def load(self, connection: BoundedConnection) -> None:
        """Read the series and owners that were heard of lately, and all series that are switched off.
        Of the others `learn` asks where that matters.
        """
        self._known = set(connection.execute(statements.SERIES_HEARD, {"most": _MOST_LOADED}).fetchall())
        self._devices = {device for device, _ in self._known}
        self._next_load = self._clock() + FORGET_SEC
        self._inactive = set(connection.execute(statements.INACTIVE).fetchall())
        self._load_owners(connection)

    def verify(self, connection: BoundedConnection) -> None:
        """Repair what a missed notification left wrong, learn owners that others have noted, and once a day
        forget who is silent.
        """
        if not self._accept_unknown or self._clock() >= self._next_load:
            self.load(connection)
            return
        self._inactive = set(connection.execute(statements.INACTIVE).fetchall())
        self._load_owners(connection)

    def _load_owners(self, connection: BoundedConnection) -> None:
        """Owners of whom nothing was stored since are forgotten: nothing of theirs is to be written."""
        self._new_owners &= self._statuses.keys() | {device for device, _ in self._dirty}
        mine = {device: self._owners[device] for device in self._new_owners if device in self._owners}
        found = connection.execute(statements.OWNERS_HEARD, {"most": _MOST_LOADED}).fetchall()
        self._owners = dict(found) | mine

    def refresh(self, connection: BoundedConnection, payloads: Iterable[str]) -> None:
        """Read the series that the payloads of notifications name: a JSON array of device and sensor each.
        Anything else says that everything is to be read: any role may notify.
        """
        said = [database.texts(payload) for payload in set(payloads)]
        named = {(some[0], some[1]) for some in said if some is not None and len(some) == 2}
        if len(named) < len(said):
            self.load(connection)
        else:
            self.learn(connection, sorted(named))

    def learn(self, connection: BoundedConnection, series: Sequence[Series]) -> None:
        """Ask the table about these series."""
        asked = {"devices": [device for device, _ in series], "sensors": [sensor for _, sensor in series]}
        found = connection.execute(statements.THESE_SERIES, asked).fetchall()
        self._known.difference_update(series)
        self._inactive.difference_update(series)
        self._known.update((device, sensor) for device, sensor, _ in found)
        self._inactive.update((device, sensor) for device, sensor, active in found if not active)
        for gone in set(series) - self._known:  # deleted: what was noted of it must not make it anew
            self._dirty.pop(gone, None)
            self._fresh.discard(gone)

    def heard(self, connection: BoundedConnection) -> int:
        """How many devices were heard of in the last day, by any worker."""
        found = connection.execute(statements.DEVICES_HEARD).fetchone()
        return int(found[0]) if found else 0

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
        """The owner or place of a device, or an empty text where it is not known here."""
        return self._owners.get(device, "")

    def note_owner(self, device: str, owner: str) -> None:
        if self._owners.get(device) != owner:
            if len(self._owners) >= _MOST_OWNERS:
                self._owners.clear()
            self._owners[device] = owner
            self._new_owners.add(device)

    def note_status(self, status: DeviceStatus) -> None:
        """Remember a status message; it has to be written before its entry is acknowledged."""
        before = self._statuses.get(status.device_id)
        if before is None or status.time_us >= before.time_us:
            self._statuses[status.device_id] = status
        if status.owner:
            self.note_owner(status.device_id, status.owner)

    def note(self, stored: Sequence[Reading]) -> None:
        """Remember the newest of each series; `stored` is sorted by key, and in the table."""
        newest: dict[Series, Reading] = dict(zip(map(_SERIES, stored), stored, strict=True))
        dirty = self._dirty
        for series, reading in newest.items():
            last = dirty.get(series)
            if last is None or reading[2] >= last[2]:
                dirty[series] = reading
        new = newest.keys() - self._known
        if new:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
                self._devices.clear()
            self._known |= new
            self._fresh |= new

    def forget_device(self, device: str) -> None:
        """This device is being deleted: write nothing of it any more."""
        self._owners.pop(device, None)
        self._new_owners.discard(device)
        self._statuses.pop(device, None)
        for series in [series for series in self._dirty if series[0] == device]:
            del self._dirty[series]
            self._fresh.discard(series)

    @property
    def urgent(self) -> bool:
        """Whether something has to be written before the entries in hand are acknowledged."""
        return bool(self._fresh or self._statuses)

    @property
    def due_at(self) -> float:
        """When, by the clock, to write next; infinity while there is nothing to write."""
        return self._next_flush if self._dirty or self._statuses else float("inf")

    def flush(self, connection: BoundedConnection, *, urgent: bool = False) -> None:
        """Write what was noted, or of it what is urgent. To be committed by the caller, who then calls
        `flushed`.
        """
        series = sorted(self._fresh & self._dirty.keys() if urgent else self._dirty)
        if series:
            connection.execute(statements.UPSERT_SERIES, self._series_columns(series))
        named = {device for device, _ in series}
        devices = sorted((named - self._devices if urgent else named) | self._statuses.keys())
        if devices:
            connection.execute(statements.UPSERT_DEVICES, self._device_columns(devices))

    def flushed(self, took: float, *, urgent: bool = False) -> None:
        """What `flush` wrote has committed; it took so many seconds."""
        if urgent:
            fresh = {device for device, _ in self._fresh}
            self._new_owners -= (fresh - self._devices) | self._statuses.keys()
            self._devices |= fresh
            for series in self._fresh:
                self._dirty.pop(series, None)
        else:
            self._devices.update(device for device, _ in self._dirty)
            self._new_owners.difference_update(self._statuses, (device for device, _ in self._dirty))
            self._dirty.clear()
            self._next_flush = self._clock() + min(LONGEST_SEC, max(FLUSH_SEC, took / SHARE))
        self._fresh.clear()
        self._statuses.clear()

    def _changed_owner(self, device: str) -> str:
        """What is to be written: another worker may know better what was written before."""
        return self._owners.get(device, "") if device in self._new_owners else ""

    def _device_columns(self, devices: Sequence[str]) -> dict[str, list[object]]:
        statuses = [self._statuses.get(device) for device in devices]
        return {
            "devices": list(devices),
            "owners": [self._changed_owner(device) for device in devices],
            "statuses": [one and ("online" if one.online else "offline") for one in statuses],
            "times": [one and statements.moment(one.time_us) for one in statuses],
        }

    def _series_columns(self, series: Sequence[Series]) -> dict[str, list[object]]:
        newest = [self._dirty[name] for name in series]
        return {
            "devices": [device for device, _ in series],
            "sensors": [sensor for _, sensor in series],
            "owners": [self._changed_owner(device) for device, _ in series],
            "times": [statements.moment(reading.timestamp_us) for reading in newest],
            "values": [reading.value for reading in newest],
            "texts": [reading.value_text for reading in newest],
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
