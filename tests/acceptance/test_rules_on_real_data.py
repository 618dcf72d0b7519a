"""Rules on a day of a real office room: what a plain loop over the day says, the worker says too."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
import redis

from mqtt.feeds import SAMPLE
from tests.acceptance.feeding import Stopwatch
from tests.alerts import add_rule, alerts
from tests.support import Daemon, Database, add, everything_settled, wait_until

StartDaemon = Callable[..., Daemon]
OFFICE = {"device_pattern": "office"}
CO2 = OFFICE | {"sensor_pattern": "co2", "kind": "max", "value": 800}


class Minute(NamedTuple):
    """One row of the day, its time in microseconds since 1970."""

    time_us: int
    values: dict[str, float]
    state: str


class Excursion(NamedTuple):
    first: int
    created: int
    resolved: int | None
    value: float | None
    last: float | None
    peak: float | None
    violations: int


def day() -> Iterator[Minute]:
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            moment = datetime.fromisoformat(row.pop("date")).replace(tzinfo=UTC)
            values = {name: float(text) for name, text in row.items()}
            state = "occupied" if values["occupancy"] else "empty"
            yield Minute(round(moment.timestamp()) * 1_000_000, values, state)


DAY = list(day())


def excursions(
    samples: Iterable[tuple[int, float | None, bool, bool]],
    extreme: Callable[[float, float], float] = max,
    debounce_count: int = 1,
    debounce_sec: float = 0,
) -> list[Excursion]:
    """A plain loop over (time, measured, whether it violates, whether it clears)."""
    found: list[Excursion] = []
    first, created, value, last, peak, n = 0, 0, None, None, None, 0
    for time_us, measured, violates, clears in samples:
        if n and not violates:
            last = measured
        if violates:
            first = first if n else time_us
            n += 1
            last = measured
            peak = measured if peak is None or measured is None else extreme(peak, measured)
            if not created and n >= debounce_count and time_us - first >= debounce_sec * 1e6:
                created, value = time_us, measured
        elif created and clears:
            found.append(Excursion(first, created, time_us, value, last, peak, n))
            created, peak, n = 0, None, 0
        elif not created:
            peak, n = None, 0
    if created:
        found.append(Excursion(first, created, None, value, last, peak, n))
    return found


def above(sensor: str, limit: float, margin: float = 0) -> list[tuple[int, float, bool, bool]]:
    values = [(one.time_us, one.values[sensor]) for one in DAY]
    return [(time_us, value, value > limit, value <= limit - margin) for time_us, value in values]


def below(sensor: str, limit: float, margin: float = 0) -> list[tuple[int, float, bool, bool]]:
    values = [(one.time_us, one.values[sensor]) for one in DAY]
    return [(time_us, value, value < limit, value >= limit + margin) for time_us, value in values]


def speeds(sensor: str, window_sec: int) -> list[tuple[int, float]]:
    """How fast each value has come from the oldest one of its window, a second; the first has no speed."""
    found = []
    for n, one in enumerate(DAY):
        window = [past for past in DAY[:n] if past.time_us >= one.time_us - window_sec * 1_000_000]
        if window:
            change = one.values[sensor] - window[0].values[sensor]
            found.append((one.time_us, change * 1_000_000 / (one.time_us - window[0].time_us)))
    return found


def states(violates: Callable[[str], bool]) -> list[tuple[int, None, bool, bool]]:
    return [(one.time_us, None, violates(one.state), not violates(one.state)) for one in DAY]


def rising(limit: float, margin: float) -> list[tuple[int, float, bool, bool]]:
    return [(at, speed, speed > limit, speed <= limit - margin) for at, speed in speeds("temperature", 600)]


def falling(limit: float) -> list[tuple[int, float, bool, bool]]:
    return [(at, speed, speed < limit, speed >= limit) for at, speed in speeds("light", 300)]


# Name, the rule, what the loop says.
CASES: list[tuple[str, dict[str, Any], list[Excursion]]] = [
    ("plain", CO2, excursions(above("co2", 800))),
    ("margin", CO2 | {"hysteresis": 20}, excursions(above("co2", 800, 20))),
    ("patient", CO2 | {"debounce_count": 5}, excursions(above("co2", 800), debounce_count=5)),
    ("slow", CO2 | {"debounce_sec": 300}, excursions(above("co2", 800), debounce_sec=300)),
    (
        "both",
        CO2 | {"hysteresis": 20, "debounce_count": 5},
        excursions(above("co2", 800, 20), debounce_count=5),
    ),
    (
        "dry",
        OFFICE | {"sensor_pattern": "humidity", "kind": "min", "value": 21},
        excursions(below("humidity", 21), min),
    ),
    (
        "dry with margin",
        OFFICE | {"sensor_pattern": "humidity", "kind": "min", "value": 21, "hysteresis": 0.3},
        excursions(below("humidity", 21, 0.3), min),
    ),
    (
        "warms",
        OFFICE
        | {"sensor_pattern": "temperature", "kind": "rate", "value": 0.0005, "window_sec": 600}
        | {"hysteresis": 0.0002},
        excursions(rising(0.0005, 0.0002)),
    ),
    (
        "darkens",
        OFFICE | {"sensor_pattern": "light", "kind": "rate", "value": -0.5, "window_sec": 300},
        excursions(falling(-0.5), min),
    ),
    (
        "in use",
        OFFICE | {"sensor_pattern": "room", "kind": "equals", "value_text": "occupied"},
        excursions(states(lambda state: state == "occupied")),
    ),
    (
        "not empty for long",
        OFFICE | {"sensor_pattern": "room", "kind": "differs", "value_text": "empty", "debounce_count": 10},
        excursions(states(lambda state: state != "empty"), debounce_count=10),
    ),
]


def entries(minutes: Sequence[Minute]) -> list[dict[str, str]]:
    """Each row as a whole MQTT message, and its state as a second one."""
    found = []
    for one in minutes:
        measured = json.dumps({"ts": one.time_us // 1000, "values": one.values})
        state = json.dumps({"ts": one.time_us // 1000, "values": {"room": one.state}})
        found += [{"topic": "devices/office/telemetry", "payload": said} for said in (measured, state)]
    return found


@pytest.mark.parametrize("batch_size", [70, 5000])
def test_a_real_day_gives_the_alerts_that_a_plain_loop_finds(
    batch_size: int, database: Database, client: redis.Redis, redis_url: str, daemon: StartDaemon
) -> None:
    for name, rule, _ in CASES:
        add_rule(database, id=name, **rule)
    add(client, "mqtt_stream:shard:0", entries(DAY))
    daemon(database, redis_url, batch_size=batch_size)
    wait_until(lambda: everything_settled(client, 2 * len(DAY)), 60)
    told = [one for one in alerts(database) if one.status != "pending"]
    counts = {}
    for name, _, expected in CASES:
        found = [
            Excursion(a.first, a.created or 0, a.resolved, a.value, a.last, a.peak, a.violations)
            for a in told
            if a.rule == name
        ]
        assert found == expected, name
        counts[name] = len(found)
    print(f"\n{counts}")
    assert min(counts.values()) > 0
    assert counts["plain"] > counts["patient"] > counts["both"]
    assert counts["plain"] > counts["margin"]
    assert counts["dry"] > counts["dry with margin"]


def test_a_gap_cut_into_a_real_day_is_one_silence_of_what_was_cut(
    database: Database, client: redis.Redis, redis_url: str, daemon: StartDaemon
) -> None:
    """The day runs fast, a minute in 10 ms; what is cut is one device's afternoon."""
    add_rule(database, id="dead", kind="silence", value=1.5, device_pattern="*", sensor_pattern="co2")
    daemon(database, redis_url).wait_for("worker_started")
    cut = range(len(DAY) // 5, len(DAY) * 4 // 5)
    watch, sent = Stopwatch(), 0
    for number, one in enumerate(DAY):
        while watch.seconds < number / 100:
            threading.Event().wait(0.005)
        for device in ("office", "store") if number not in cut else ("store",):
            fields = {"value": str(one.values["co2"]), "timestamp": str(one.time_us)}
            add(client, f"mqtt_stream:{device}:co2", [fields])
            sent += 1
        if number == cut[-1]:
            wait_until(lambda: database.rows("select 1 from alerts"), 10, "an alert within the gap")
            first = database.rows("select device_id, status, value from alerts")
    wait_until(lambda: everything_settled(client, sent))
    ended = database.rows("select device_id, status, value, last_value from alerts")
    assert [row[:2] for row in first] == [("office", "active")]
    assert [row[:2] for row in ended] == [("office", "resolved")]
    ((_, _, told_after, lasted),) = ended
    gap = len(cut) / 100
    print(f"\na gap of {gap:.1f} s, told after {told_after:.1f} s, over after {lasted:.1f} s")
    assert 1.5 < told_after < lasted
    assert gap - 0.7 < lasted < gap + 5
