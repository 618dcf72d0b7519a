"""What simulated devices measure: rows of a CSV file, or random walks."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple, Protocol

from mqtt.scenario import Unfit

Value = tuple[str, float]  # as a payload says it, and as the table should hold it
Row = tuple[Value, ...]
MOST_ROWS = 1_000_000
SAMPLE = Path(__file__).parent / "data" / "occupancy.csv"  # a day of an office room


class Feed(Protocol):
    """Where values come from. `sensors`: their names, in the order of a row."""

    @property
    def sensors(self) -> tuple[str, ...]: ...

    def row(self, device: int, number: int) -> Row:
        """What a device measures in its row of this number. Devices and rows count from 0, upwards."""
        ...


def text_of(value: float) -> str:
    """The shortest JSON number that reads back as exactly this value."""
    return repr(value).removesuffix(".0")


class Recorded:
    """Rows that were measured once. Each device begins at another one, and goes round."""

    def __init__(self, sensors: Sequence[str], rows: Sequence[Row], devices: int) -> None:
        self.sensors = tuple(sensors)
        self._rows = rows
        self._devices = devices

    def row(self, device: int, number: int) -> Row:
        return self._rows[(number + device * len(self._rows) // self._devices) % len(self._rows)]


class _Walk(NamedTuple):
    """A sensor's random walk: where it is at home, how far it steps, its bounds, and its resolution."""

    sensor: str
    home: float
    step: float
    least: float
    most: float
    digits: int


_WALKS = (
    _Walk("temperature", 21.0, 0.1, -20.0, 60.0, 1),
    _Walk("humidity", 45.0, 0.4, 5.0, 95.0, 1),
    _Walk("co2", 600.0, 12.0, 400.0, 5000.0, 0),
)
_PULL = 0.01  # of the way home at each step


class Generated:
    """Random walks: each device starts somewhere else and is drawn slowly to an indoor climate."""

    sensors = tuple(walk.sensor for walk in _WALKS)

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at: dict[int, tuple[int, list[float]]] = {}  # device: row number, values

    def row(self, device: int, number: int) -> Row:
        known, values = self._at.get(device, (-1, []))
        if number != known:
            gauss = self._rng.gauss
            values = values or [walk.home + 20 * gauss(0, walk.step) for walk in _WALKS]
            values = [
                min(walk.most, max(walk.least, value + _PULL * (walk.home - value) + gauss(0, walk.step)))
                for walk, value in zip(_WALKS, values, strict=True)
            ]
            self._at[device] = (number, values)
        rounded = [round(value, walk.digits) for walk, value in zip(_WALKS, values, strict=True)]
        return tuple((text_of(value), value) for value in rounded)


def recorded(path: Path, devices: int) -> Recorded:
    """A CSV file's columns of numbers. Raises: `Unfit`, in one line with the file and the line.

    A first column that the header does not name (a running number) and columns that hold no number in
    the first row (dates) are left out. Names become lower case: `HumidityRatio` is `humidity_ratio`.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            rows = [
                line for line, _ in zip((line for line in lines if line), range(MOST_ROWS), strict=False)
            ]
    except OSError as error:
        raise Unfit(f"{path} cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise Unfit(f"{path} is not CSV: {error}") from None
    if not rows:
        raise Unfit(f"{path} has no rows; it takes CSV with a header and numbers below it")
    shift = 1 if len(rows[0]) == len(header) + 1 else 0
    taken = [
        index for index in range(len(header)) if index + shift < len(rows[0])
        and _finite(rows[0][index + shift]) is not None
    ]  # fmt: skip
    sensors = [_sensor(header[index]) for index in taken]
    if not sensors or len(set(sensors)) < len(sensors) or not all(map(_NAME.fullmatch, sensors)):
        raise Unfit(
            f"{path} has the sensors {', '.join(sensors)[:100] or 'none'}; it takes columns of numbers, "
            "each with a name of its own of letters, digits, . _ and -"
        )
    return Recorded(sensors, [_row(path, n, line, taken, shift) for n, line in enumerate(rows, 2)], devices)


_NAME = re.compile(r"[\w.-]{1,100}")


def _sensor(title: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", title.strip()).lower()


def _row(path: Path, number: int, line: Sequence[str], taken: Sequence[int], shift: int) -> Row:
    values = [_finite(line[index + shift]) if index + shift < len(line) else None for index in taken]
    found = tuple((text_of(value), value) for value in values if value is not None)
    if len(found) < len(values):
        raise Unfit(f"{path}: row {number} has a cell that is no number; it takes numbers in every row")
    return found


def _finite(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if isfinite(value) else None
