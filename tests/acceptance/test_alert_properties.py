"""Any readings, in any order, over any number of workers that crash: the alerts of a plain single pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from alerting import Judged
from db_writer import DatabaseWriter
from schema import Reading
from tests.alerts import add_rule, alerts, reference
from tests.support import Database, is_long
from tests.writing import YESTERDAY_US, Rig, batch_of, rig

RULES: list[dict[str, Any]] = [
    {"id": "warm", "kind": "max", "value": 5.0, "hysteresis": 2.0},
    {"id": "hot", "kind": "max", "value": 7.0, "severity": "critical", "debounce_count": 2},
    {"id": "cold", "kind": "min", "value": 2.0, "debounce_sec": 3.0},
    {"id": "quick", "kind": "rate", "value": 1.0, "window_sec": 4.0, "hysteresis": 0.5},
    {"id": "falls", "kind": "rate", "value": -2.0, "window_sec": 3.0, "debounce_count": 2},
    {"id": "stuck", "kind": "equals", "value_text": "stuck"},
]
DEVICES = ("hall", "kitchen")
WORKERS = 4

values = st.one_of(st.integers(0, 9).map(float), st.sampled_from(["stuck", "fine"]))
# A reading a second, some of them late or with the time of another, and gaps between.
messages = st.tuples(st.sampled_from(DEVICES), st.sampled_from([0, 0, 0, 0, -1, -2, -5, -9, 3]), values)
# Which worker takes the batch, how many readings, which of the earlier ones are delivered again, and how it
# ends: well, before COMMIT, or after COMMIT and before the acknowledgement, which brings it again.
steps = st.tuples(
    st.integers(0, WORKERS - 1),
    st.integers(1, 6),
    st.lists(st.integers(0, 1000), max_size=3),
    st.sampled_from(["well", "well", "well", "before", "after"]),
)


class Crash(Exception):
    """The worker is gone: its transaction with it."""


class Workers:
    """Writers of which any may crash and be started anew, and what they have stored, in order."""

    def __init__(self, database: Database, stack: ExitStack) -> None:
        self._database = database
        self._stack = stack
        self._rigs = [self._start() for _ in range(WORKERS)]
        self.stored: list[list[Reading]] = []
        self._keys: set[tuple[str, str, int, bytes]] = set()

    def _start(self) -> Rig:
        return self._stack.enter_context(rig(self._database))

    def take(self, number: int, readings: list[Reading], end: str, *, again: bool) -> None:
        """One batch by one worker. `again`: parts of it may be in the table already."""
        one = self._rigs[number]
        batch = batch_of(readings, redelivered=again)
        if end == "before":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(DatabaseWriter, "_judge", _judge_and_crash)
                with pytest.raises(Crash):
                    one.writer.write(batch)
            self._restart(number)
            return
        one.writer.write(batch)
        new = {reading.key: reading for reading in readings if reading.key not in self._keys}
        self.stored.append(list(new.values()))
        self._keys |= new.keys()
        if end == "after":
            self._restart(number)

    def _restart(self, number: int) -> None:
        self._rigs[number].writer._session.drop()  # as the end of a process does, with nothing written
        self._rigs[number] = self._start()


_judge = DatabaseWriter._judge


def _judge_and_crash(self: DatabaseWriter, *arguments: Any) -> Judged:
    _judge(self, *arguments)
    raise Crash


@pytest.fixture
def ruled(database: Database) -> Database:
    for rule in RULES:
        for device in DEVICES:
            add_rule(database, **rule | {"id": f"{rule['id']}-{device}", "device_pattern": device})
    return database


@settings(
    max_examples=60 if is_long() else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
    phases=[Phase.generate],  # an example takes a third of a second: shrinking one would outlast the test
)
@given(st.lists(messages, min_size=30, max_size=60), st.lists(steps, min_size=8, max_size=25))
def test_the_alerts_equal_those_of_a_plain_single_pass(
    ruled: Database, sent: list[tuple[str, int, Any]], schedule: list[tuple[int, int, list[int], str]]
) -> None:
    ruled.rows("truncate sensor_readings, alerts, series, devices")
    readings = [_reading(number, *message) for number, message in enumerate(sent)]
    with ExitStack() as stack:
        workers = Workers(ruled, stack)
        waiting, delivered = list(readings), list[Reading]()
        turn = 0
        while waiting:
            number, count, repeats, end = schedule[turn % len(schedule)]
            end = end if turn < len(schedule) else "well"
            turn += 1
            batch, rest = waiting[:count], waiting[count:]
            again = [delivered[n % len(delivered)] for n in repeats if delivered]
            workers.take(number, batch + again, end, again=bool(again))
            if end == "before":
                continue  # pending still: the next worker gets it
            if end == "after":
                workers.take((number + 1) % WORKERS, batch, "well", again=True)
            delivered += batch
            waiting = rest
        rules = [
            rule
            | {"id": f"{rule['id']}-{device}", "device_pattern": device, "sensor_pattern": "temperature"}
            for rule in RULES
            for device in DEVICES
        ]
        assert alerts(ruled) == reference(rules, workers.stored)


def _reading(number: int, device: str, late: int, value: float | str) -> Reading:
    # messages sort otherwise than they arrive
    message = (number * 7919 % 10007).to_bytes(16, "big")
    moment = YESTERDAY_US + (number // 2 + late + 10) * 1_000_000
    if isinstance(value, str):
        return Reading(device, "temperature", moment, message, None, value)
    return Reading(device, "temperature", moment, message, value)
