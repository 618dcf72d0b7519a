"""A rule as users write it: what is accepted, in sentences, and its words. Pure.

`accept` answers as the constraints of `thresholds` do (alembic/versions/0003_thresholds.py): what it
takes PostgreSQL takes, and what it refuses PostgreSQL would refuse.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ops.output import excerpt
from ops.quantities import MAX_SECONDS, Raw, duration_text, finite, number_text, shown
from thresholds import Kind, Severity

# Names rules that were not given an id. Never changes: a file that is imported again finds its rules.
NAMESPACE = uuid.UUID("5b5a1c0e-6a53-4f0e-9d4f-0f6d3e1b7c92")
MAX_NAME = 100
MAX_WINDOW_SEC = 86_400.0 * 31
MAX_COUNT = 2_147_483_647
COLUMNS = (
    "id",
    "device",
    "sensor",
    "kind",
    "value",
    "text",
    "window_sec",
    "hysteresis",
    "debounce_count",
    "debounce_sec",
    "severity",
    "enabled",
    "sensor_id",
)
REQUIRED = ("device", "sensor", "kind")
STATES = (Kind.EQUALS, Kind.DIFFERS)

_Choice = TypeVar("_Choice", Kind, Severity)
_YES = {"true", "t", "yes", "y", "on", "1"}
_NO = {"false", "f", "no", "n", "off", "0"}


class Problem(NamedTuple):
    """What is wrong with one column, as a sentence with its remedy."""

    column: str
    sentence: str


class Wrong(Exception):
    """What makes a rule unusable: at least one problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.column}: {problem.sentence}" for problem in problems))
        self.problems = problems


class Definition(NamedTuple):
    """A row of `thresholds`, in the order of `COLUMNS`. Units as in `thresholds.Rule`."""

    id: str
    device: str
    sensor: str
    kind: Kind
    value: float | None
    text: str | None
    window_sec: float | None
    hysteresis: float
    debounce_count: int
    debounce_sec: float
    severity: Severity
    enabled: bool
    sensor_id: str | None


def accept(cells: Mapping[str, Raw]) -> Definition:
    """The rule that `cells` describe, by the names of `COLUMNS`; None and absent are the default.

    Numbers may be given as text, times as durations. Raises `Wrong` with everything that is wrong.
    """
    reader = _Reader(cells)
    kind = reader.choice("kind", Kind, None)
    severity = reader.choice("severity", Severity, Severity.WARNING)
    device, sensor = reader.name("device"), reader.name("sensor")
    value, window = reader.limit(kind), reader.window(kind)
    text = reader.state(kind)
    hysteresis = reader.hysteresis(kind)
    count, seconds = reader.debounce(kind)
    enabled = reader.flag("enabled", default=True)
    sensor_id = reader.text("sensor_id") or None
    given = reader.name("id") if cells.get("id") is not None else None
    reader.unknown()
    if reader.problems or kind is None or severity is None:
        raise Wrong(reader.problems)
    return Definition(
        id=given or derived_id(device, sensor, kind, severity, value, text),
        device=device,
        sensor=sensor,
        kind=kind,
        value=value,
        text=text,
        window_sec=window,
        hysteresis=hysteresis,
        debounce_count=count,
        debounce_sec=seconds,
        severity=severity,
        enabled=enabled,
        sensor_id=sensor_id,
    )


def derived_id(
    device: str, sensor: str, kind: Kind, severity: Severity, value: float | None, text: str | None
) -> str:
    """The id of a rule that was given none: the same for the same rule with another limit."""
    parts = [device, sensor, kind.value, severity.value]
    if kind is Kind.RATE:
        parts.append("falls" if (value or 0.0) < 0 else "rises")
    if text is not None:
        parts.append(text)
    return str(uuid.uuid5(NAMESPACE, json.dumps(parts)))


class _Reader:
    """Takes one column after the other and keeps what is wrong. Answers something for what is wrong."""

    def __init__(self, cells: Mapping[str, Raw]) -> None:
        self._cells = cells
        self.problems: list[Problem] = []

    def _wrong(self, column: str, sentence: str) -> None:
        self.problems.append(Problem(column, sentence))

    def _given(self, column: str) -> Raw:
        return self._cells.get(column)

    def unknown(self) -> None:
        for column in self._cells:
            if column not in COLUMNS:
                self._wrong(excerpt(column), f"there is no such column; known are {', '.join(COLUMNS)}")

    def text(self, column: str) -> str | None:
        raw = self._given(column)
        if raw is None:
            return None
        if not isinstance(raw, str):
            self._wrong(column, f"is {excerpt(json.dumps(raw))}; it takes text, in quotes")
            return None
        if "\x00" in raw or any("\ud800" <= sign <= "\udfff" for sign in raw):
            self._wrong(column, "holds a character that cannot be stored (NUL, or not UTF-8)")
            return None
        return raw

    def name(self, column: str) -> str:
        before = len(self.problems)
        found = self.text(column)
        if len(self.problems) == before and not found:
            self._wrong(column, f"is missing; it takes 1 to {MAX_NAME} characters")
        if found and len(found) > MAX_NAME:
            self._wrong(column, f"has {len(found)} characters; it takes at most {MAX_NAME}")
        return found or ""

    def choice(self, column: str, choices: type[_Choice], default: _Choice | None) -> _Choice | None:
        raw = self._given(column)
        words = ", ".join(choices)
        if raw is None and default is None:
            self._wrong(column, f"is missing; it takes one of {words}")
        if raw is None:
            return default
        if isinstance(raw, str) and raw in list(choices):
            return choices(raw)
        self._wrong(column, f"is {shown(raw)}; it takes one of {words}")
        return None

    def flag(self, column: str, *, default: bool) -> bool:
        raw = self._given(column)
        if raw is None or isinstance(raw, bool):
            return default if raw is None else raw
        word = str(raw).lower()
        if word not in _YES | _NO:
            self._wrong(column, f"is {shown(raw)}; it takes true or false")
        return word in _YES

    def number(self, column: str, *, duration: bool = False) -> float | None:
        raw = self._given(column)
        if raw is None:
            return None
        try:
            return finite(raw, duration=duration)
        except ValueError as error:
            self._wrong(column, str(error))
            return math.nan  # not None: it is not missing too

    def _refuse_given(self, column: str, kind: Kind, takers: str) -> None:
        if self._given(column) is not None:
            self._wrong(column, f"means nothing for {kind}; it belongs to {takers}; leave it empty")

    def limit(self, kind: Kind | None) -> float | None:
        if kind in STATES:
            self._refuse_given("value", kind, "min, max, rate and silence")
            return None
        found = self.number("value", duration=kind is Kind.SILENCE)
        if kind is not None and found is None:
            what = "a number of seconds" if kind is Kind.SILENCE else "the limit, a number"
            self._wrong("value", f"is missing; {kind} takes {what}")
        if kind is Kind.RATE and found == 0:
            self._wrong(
                "value", "is 0; a rate takes a positive number (rising) or a negative one (falling)"
            )
        if kind is Kind.SILENCE and found is not None and (found <= 0 or found >= MAX_SECONDS):
            self._wrong("value", f"is {number_text(found)}; silence takes more than 0 and less than 1e9 s")
        return found

    def state(self, kind: Kind | None) -> str | None:
        if kind is None:
            return None
        if kind not in STATES:
            self._refuse_given("text", kind, "equals and differs")
            return None
        if self._given("text") is None:
            self._wrong("text", f"is missing; {kind} takes the state to compare with")
        return self.text("text")

    def window(self, kind: Kind | None) -> float | None:
        if kind is None:
            return None
        if kind is not Kind.RATE:
            self._refuse_given("window_sec", kind, "rate")
            return None
        found = self.number("window_sec", duration=True)
        if found is None:
            self._wrong("window_sec", "is missing; a rate takes the seconds over which it is measured")
        elif found <= 0 or found > MAX_WINDOW_SEC:
            self._wrong("window_sec", f"is {number_text(found)}; it takes more than 0 s, at most 31 days")
        return found

    def hysteresis(self, kind: Kind | None) -> float:
        found = self.number("hysteresis") or 0.0
        if found < 0:
            self._wrong("hysteresis", f"is {number_text(found)}; it takes 0 or more")
        elif found and kind in (*STATES, Kind.SILENCE):
            self._wrong("hysteresis", f"means nothing for {kind}; it belongs to min, max and rate")
        return found

    def debounce(self, kind: Kind | None) -> tuple[int, float]:
        count = self.number("debounce_count")
        seconds = self.number("debounce_sec", duration=True) or 0.0
        count = 1.0 if count is None else count
        if count < 1 or count > MAX_COUNT or (count == count and count != int(count)):
            self._wrong("debounce_count", f"is {number_text(count)}; it takes a whole number from 1 on")
        if seconds < 0 or seconds >= MAX_SECONDS:
            self._wrong("debounce_sec", f"is {number_text(seconds)}; it takes 0 to less than 1e9 s")
        if kind is Kind.SILENCE and count > 1:
            self._wrong("debounce_count", "means nothing for silence, which is a duration already")
        if kind is Kind.SILENCE and seconds > 0:
            self._wrong("debounce_sec", "means nothing for silence, which is a duration already")
        return (int(count) if count == count else 1), seconds


def condition(rule: Definition) -> str:
    """What a rule watches, in words: `max 30, clears at 28`."""
    if rule.kind in STATES:
        return f'{rule.kind} "{excerpt(rule.text or "")}"'
    value = rule.value or 0.0
    if rule.kind is Kind.SILENCE:
        return f"silence {duration_text(value)}"
    below = rule.kind is Kind.MIN or (rule.kind is Kind.RATE and value < 0)
    clears = f"{value + rule.hysteresis if below else value - rule.hysteresis:.12g}"
    words, unit = f"{rule.kind} {number_text(value)}", ""
    if rule.kind is Kind.RATE:
        unit = "/s"
        way = "falls" if below else "rises"
        words = (
            f"{way} faster than {number_text(abs(value))}/s over {duration_text(rule.window_sec or 0.0)}"
        )
    return f"{words}, clears at {clears}{unit}" if rule.hysteresis else words


def debounce(rule: Definition) -> str:
    """What must come before an alert opens, in words; empty where nothing must."""
    parts = [f"{rule.debounce_count} readings"] if rule.debounce_count > 1 else []
    parts += [duration_text(rule.debounce_sec)] if rule.debounce_sec else []
    return ", ".join(parts)


def line(rule: Definition) -> str:
    """One rule in one line."""
    parts = [f"device {excerpt(rule.device, MAX_NAME)}", f"sensor {excerpt(rule.sensor, MAX_NAME)}"]
    parts += [condition(rule), rule.severity.value]
    waits = debounce(rule)
    parts += [f"after {waits}"] if waits else []
    parts += [] if rule.enabled else ["disabled"]
    return f"{excerpt(rule.id, MAX_NAME)}: {', '.join(parts)}"
