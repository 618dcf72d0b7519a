"""Values that sensors measured, for benchmarks: a day of an office room."""

from __future__ import annotations

import csv

from mqtt.feeds import SAMPLE

SENSORS = ("temperature", "humidity", "light", "co2", "humidity_ratio")


def temperatures() -> list[str]:
    """The day's temperatures, a text each, in order."""
    return [row[0] for row in measured()]


def measured() -> list[tuple[str, ...]]:
    """What each minute of the day brought: the texts of `SENSORS`, in their order."""
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return [tuple(row[name] for name in SENSORS) for row in csv.DictReader(file)]
