"""The enabled rules in memory, found by series. Pure.

What a reading costs here is one dict access for each run of readings of a series, with rules or without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from schema import Reading
from thresholds import WILDCARDS, Kind, Rule, Series, Verdict

_CACHED_SERIES = 400_000


class Watched(NamedTuple):
    """The rules of one series, and what they have in common: values from `low` to `high` violate none.

    `other` tells that rules about rates or states are among them, for which values say nothing.
    """

    rules: tuple[Rule, ...]
    low: float
    high: float
    other: bool


class Run(NamedTuple):
    """Readings of one watched series, in the order of their key."""

    series: Series
    watched: Watched
    readings: Sequence[Reading]

    def violates(self, rule: Rule) -> bool:
        """Whether any of these readings by itself violates `rule`, which is not about rates."""
        return any(rule.judge(one.value, one.value_text) is Verdict.VIOLATED for one in self.readings)

    def beyond(self) -> bool:
        """Whether any value lies beyond the bounds of all rules together."""
        low, high = self.watched.low, self.watched.high
        for one in self.readings:  # a loop: this is asked of every reading of a watched series
            value = one[4]
            if value is not None and (value > high or value < low):
                return True
        return False


class Pattern(NamedTuple):
    devices: re.Pattern[str]
    sensors: re.Pattern[str]
    rule: Rule


class Rules:
    """The enabled rules in memory. Looking up a series costs one dict access, with or without rules."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.replace_all(rules)

    def replace_all(self, rules: Iterable[Rule]) -> None:
        self._by_id = {rule.id: rule for rule in rules}
        self._exact: dict[Series, dict[str, Rule]] = {}
        # Rules with wildcards, by the name that has none: only those with two are tried on every series.
        self._patterns: dict[tuple[str, str], dict[str, Pattern]] = {}
        self._watched: dict[Series, Watched | None] = {}
        for rule in self._by_id.values():
            self._index(rule)

    def put(self, rule: Rule) -> None:
        self.remove(rule.id)
        self._by_id[rule.id] = rule
        self._index(rule)

    def remove(self, rule_id: str) -> None:
        rule = self._by_id.pop(rule_id, None)
        if rule is None:
            return
        if rule.exact:
            series = (rule.device_pattern, rule.sensor_pattern)
            del self._exact[series][rule_id]
            self._watched.pop(series, None)
        else:
            del self._patterns[_literals(rule)][rule_id]
            self._watched.clear()

    def get(self, rule_id: str) -> Rule | None:
        return self._by_id.get(rule_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def of(self, series: Series) -> Watched | None:
        """The rules that watch this series, or None."""
        try:
            return self._watched[series]
        except KeyError:
            return self._look(series)

    def quiet(self, readings: Sequence[Reading]) -> bool:
        """Whether no value violates a rule, and no rule about rates or states watches any of the series.

        Costs a comparison a reading where those of a series follow one another.
        """
        if not self._by_id:
            return True
        device = sensor = ""
        low, high = -inf, inf
        for reading in readings:
            if reading[1] is not sensor or reading[0] is not device:
                device, sensor = reading[0], reading[1]
                watched = self.of((device, sensor))
                if watched is None:
                    low, high = -inf, inf
                elif watched.other:
                    return False
                else:
                    low, high = watched.low, watched.high
            value = reading[4]
            if value is not None and (value > high or value < low):
                return False
        return True

    def runs(self, readings: Sequence[Reading]) -> Iterator[Run]:
        """`readings`, sorted by key, cut into series; those that no rule watches are left out."""
        if not self._by_id:
            return
        begin, count = 0, len(readings)
        while begin < count:
            device, sensor = readings[begin][:2]
            end = begin + 1
            while end < count and readings[end][1] == sensor and readings[end][0] == device:
                end += 1
            watched = self.of((device, sensor))
            if watched is not None:
                yield Run((device, sensor), watched, readings[begin:end])
            begin = end

    def _index(self, rule: Rule) -> None:
        if rule.exact:
            series = (rule.device_pattern, rule.sensor_pattern)
            self._exact.setdefault(series, {})[rule.id] = rule
            self._watched.pop(series, None)
        else:
            found = Pattern(_glob(rule.device_pattern), _glob(rule.sensor_pattern), rule)
            self._patterns.setdefault(_literals(rule), {})[rule.id] = found
            self._watched.clear()

    def _look(self, series: Series) -> Watched | None:
        found = list(self._exact.get(series, {}).values())
        device, sensor = series
        for literals in {(device, ""), ("", sensor), ("", "")}:
            for devices, sensors, rule in self._patterns.get(literals, {}).values():
                if devices.fullmatch(device) and sensors.fullmatch(sensor):
                    found.append(rule)
        watched = None
        if found:
            bounds = [rule.bounds for rule in found]
            watched = Watched(
                rules=tuple(found),
                low=max(low for low, _ in bounds),
                high=min(high for _, high in bounds),
                other=any(rule.kind in (Kind.RATE, Kind.EQUALS, Kind.DIFFERS) for rule in found),
            )
        if len(self._watched) >= _CACHED_SERIES:
            self._watched.clear()
        self._watched[series] = watched
        return watched


def _literals(rule: Rule) -> tuple[str, str]:
    """The device and the sensor that a rule names, each empty where it is a pattern."""
    parts = rule.device_pattern, rule.sensor_pattern
    device, sensor = ("" if any(sign in part for sign in WILDCARDS) else part for part in parts)
    return device, sensor


def _glob(pattern: str) -> re.Pattern[str]:
    """A glob as SQL's LIKE reads it too: `*` any text, `?` any one character, all else itself.

    What stands between two stars is found at its first place and never looked for again: trying all places
    would take time exponential in the stars, and any user may write a rule.
    """
    first, *rest = (
        "".join("." if sign == "?" else re.escape(sign) for sign in part) for part in pattern.split("*")
    )
    if not rest:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1] if part)
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)
