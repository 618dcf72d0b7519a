"""Holds docs/alerts.md to the code: its timelines, and the columns it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import metadata_for
from ops.rules import COLUMNS
from thresholds import Alert, Kind, Rule, Sample, Status, advance

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "alerts.md").read_text(encoding="utf-8")
TIMELINE = re.compile(
    r"^max (?P<limit>\d+), (?P<what>\w+) (?P<number>\d+)\n"
    r"reading +(?P<readings>.+)\nalert +(?P<alerts>.+)$",
    re.MULTILINE,
)


@pytest.mark.parametrize("shown", list(TIMELINE.finditer(PAGE)), ids=lambda match: str(match["what"]))
def test_a_timeline_is_what_the_state_machine_does(shown: re.Match[str]) -> None:
    number = int(shown["number"])
    rule = Rule(
        id="r",
        device_pattern="d",
        sensor_pattern="s",
        kind=Kind.MAX,
        value=float(shown["limit"]),
        hysteresis=number if shown["what"] == "hysteresis" else 0,
        debounce_count=number if shown["what"] == "debounce" else 1,
    )
    states: list[str] = []
    alert: Alert | None = None
    for second, value in enumerate(shown["readings"].split()):
        moved = advance(rule, ("d", "s"), alert, [Sample(second * 1_000_000, bytes(16), float(value))])
        alert = moved[-1] if moved and moved[-1].status in (Status.PENDING, Status.ACTIVE) else None
        states.append(alert.status.value if alert else "-")
    assert states == shown["alerts"].split()


def test_both_timelines_are_there() -> None:
    assert len(TIMELINE.findall(PAGE)) == 2


def test_every_column_of_an_alert_and_of_a_file_is_on_the_page() -> None:
    alerts = metadata_for("sensor_readings").tables["alerts"]
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert set(alerts.columns.keys()) <= named
    assert set(COLUMNS) <= named
    assert {kind.value for kind in Kind} <= named
