"""Rules, what they say of a reading, and the state machine of an alert. Pure; no server, no clock.

An alert belongs to one rule and one series. It is pending while the rule's debounce is not yet served,
active from then on, and resolved once the value has cleared. Readings move it in the order of their
time, those of the same time in the order of their message: what is older than the newest reading that
decided is late, and moves nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from math import inf
from typing import NamedTuple

# Names alerts: an alert's id says which rule, series and first reading it came from, so that whoever
# decides it names it the same.
NAMESPACE = uuid.UUID("7d0b3e0c-53f1-4d3e-9b57-2c1c60a45d11")
WILDCARDS = ("*", "?")

Series = tuple[str, str]


class Kind(StrEnum):
    """What a rule watches. Stable: stored, and written by users."""

    MIN = "min"  # value below the limit
    MAX = "max"  # value above the limit
    RATE = "rate"  # rises faster than a positive limit, or falls faster than a negative one, a second
    SILENCE = "silence"  # no reading for this many seconds
    EQUALS = "equals"  # the state is this text
    DIFFERS = "differs"  # the state is another text


class Severity(StrEnum):
    WARNING = "warning"
    CRITICAL = "critical"


class Verdict(Enum):
    """What one reading says to one rule."""

    NOTHING = 0  # a state to a rule about numbers, a first reading to a rate
    CLEAR = 1
    BETWEEN = 2  # no violation, but within the hysteresis: an active alert stays
    VIOLATED = 3


class Status(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    RESOLVED = "resolved"
    DROPPED = "dropped"  # was pending, and cleared before its debounce was served: never an alert


class Sample(NamedTuple):
    """A reading as a rule sees it: `value` is the measured number, or for a rate the rate a second."""

    time_us: int
    message_id: bytes
    value: float | None
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One threshold. Patterns are globs with `*` and `?`; without either they name one device or sensor.

    `value` is the limit in the sensor's unit, a second for rates, and seconds for silence; `text` the
    state of EQUALS and DIFFERS. `window_sec`: over which a rate is measured. `hysteresis`: how far back
    behind the limit a value must come to clear. An alert opens at the `debounce_count`-th violating
    reading in a row, and not before `debounce_sec` seconds of readings.
    """

    id: str
    device_pattern: str
    sensor_pattern: str
    kind: Kind
    severity: Severity = Severity.WARNING
    value: float | None = None
    text: str | None = None
    window_sec: float | None = None
    hysteresis: float = 0.0
    debounce_count: int = 1
    debounce_sec: float = 0.0
    sensor_id: str | None = None

    @property
    def exact(self) -> bool:
        """Whether this rule names one series."""
        return not any(sign in self.device_pattern + self.sensor_pattern for sign in WILDCARDS)

    @property
    def bounds(self) -> tuple[float, float]:
        """Values from the first to the second violate nothing: for the quick look at many readings."""
        if self.kind is Kind.MAX:
            return -inf, self.value or 0.0
        if self.kind is Kind.MIN:
            return self.value or 0.0, inf
        return -inf, inf

    def judge(self, value: float | None, text: str | None = None) -> Verdict:
        """What a measured number (a rate, to a rule about rates) or a state says to this rule."""
        if self.kind in (Kind.EQUALS, Kind.DIFFERS):
            if text is None:
                return Verdict.NOTHING
            same = text == self.text
            return Verdict.VIOLATED if same == (self.kind is Kind.EQUALS) else Verdict.CLEAR
        if self.kind is Kind.SILENCE:
            return Verdict.CLEAR
        if value is None or self.value is None:
            return Verdict.NOTHING
        rising = self.kind is Kind.MAX or (self.kind is Kind.RATE and self.value > 0)
        beyond = value - self.value if rising else self.value - value
        if beyond > 0:
            return Verdict.VIOLATED
        return Verdict.CLEAR if beyond <= -self.hysteresis else Verdict.BETWEEN

    def worse(self, one: float | None, other: float | None) -> float | None:
        """The more extreme of two values, in the direction in which this rule is violated."""
        if one is None or other is None:
            return other if one is None else one
        low = self.kind is Kind.MIN or (self.kind is Kind.RATE and (self.value or 0.0) < 0)
        return min(one, other) if low else max(one, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One excursion of one series beyond one rule. Times are microseconds since 1970 UTC.

    `value` and `text` are those of the reading that made it active, `created_us` its time; until then
    `created_us` is None. `first_us` is the first violation, `last_us` and `last_message` name the newest
    reading that was considered.
    """

    id: uuid.UUID
    rule_id: str
    series: Series
    status: Status
    first_us: int
    last_us: int
    last_message: bytes
    value: float | None
    text: str | None
    last_value: float | None
    last_text: str | None
    peak: float | None
    violations: int = 1
    created_us: int | None = None
    resolved_us: int | None = None

    def is_late(self, sample: Sample) -> bool:
        return (sample.time_us, sample.message_id) <= (self.last_us, self.last_message)


def alert_id(rule_id: str, series: Series, time_us: int, message_id: bytes) -> uuid.UUID:
    return uuid.uuid5(NAMESPACE, f"{rule_id}\n{series[0]}\n{series[1]}\n{time_us}\n{message_id.hex()}")


def advance(rule: Rule, series: Series, alert: Alert | None, samples: Iterable[Sample]) -> list[Alert]:
    """Move one rule's alert on one series along `samples`, which are in order of time and message.

    `alert` is the one that is pending or active, or None. Where it is None the caller leaves out samples
    that are older than readings it has seen before. Answers the alerts as they are afterwards, oldest
    first: at most the last is still open. One that was given and ended before it was active comes back
    DROPPED; one that came and went within these samples does not come at all.
    """
    ended: list[Alert] = []
    known = alert
    for sample in samples:
        if alert is not None and alert.is_late(sample):
            continue
        verdict = rule.judge(sample.value, sample.text)
        if alert is None:
            if verdict is Verdict.VIOLATED:
                alert = _opened(rule, series, sample)
            continue
        alert = _moved(rule, alert, sample, verdict)
        if alert.status is Status.RESOLVED or (alert.status is Status.DROPPED and known is not None):
            ended.append(alert)
        if alert.status in (Status.RESOLVED, Status.DROPPED):
            alert = known = None
    if alert is not None:
        ended.append(alert)
    return ended


def _opened(rule: Rule, series: Series, sample: Sample) -> Alert:
    alert = Alert(
        id=alert_id(rule.id, series, sample.time_us, sample.message_id),
        rule_id=rule.id,
        series=series,
        status=Status.PENDING,
        first_us=sample.time_us,
        last_us=sample.time_us,
        last_message=sample.message_id,
        value=sample.value,
        text=sample.text,
        last_value=sample.value,
        last_text=sample.text,
        peak=sample.value,
    )
    return _activated(rule, alert, sample)


def _activated(rule: Rule, alert: Alert, sample: Sample) -> Alert:
    """Active, if the debounce is served by now."""
    if alert.violations < rule.debounce_count:
        return alert
    if sample.time_us - alert.first_us < rule.debounce_sec * 1_000_000:
        return alert
    return replace(
        alert, status=Status.ACTIVE, value=sample.value, text=sample.text, created_us=sample.time_us
    )


def _moved(rule: Rule, alert: Alert, sample: Sample, verdict: Verdict) -> Alert:
    alert = replace(alert, last_us=sample.time_us, last_message=sample.message_id)
    if verdict is Verdict.NOTHING:
        return alert
    if verdict is not Verdict.VIOLATED:
        alert = replace(alert, last_value=sample.value, last_text=sample.text)
        if alert.status is Status.PENDING:
            return replace(alert, status=Status.DROPPED)
        if verdict is Verdict.CLEAR:
            return replace(alert, status=Status.RESOLVED, resolved_us=sample.time_us)
        return alert
    alert = replace(
        alert,
        last_value=sample.value,
        last_text=sample.text,
        peak=rule.worse(alert.peak, sample.value),
        violations=alert.violations + 1,
    )
    return _activated(rule, alert, sample) if alert.status is Status.PENDING else alert
