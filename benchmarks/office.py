"""Values that a sensor measured, for benchmarks: a day of an office room."""

from __future__ import annotations

import csv

from mqtt.feeds import SAMPLE


def temperatures() -> list[str]:
    """The day's temperatures, a text each, in order."""
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return [row["temperature"] for row in csv.DictReader(file)]
