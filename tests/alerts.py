"""What the tests of alerts share: rules in the table, and a reference that knows nothing of workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from schema import Reading
from tests.support import Database

_MICROS = "(extract(epoch from {}) * 1000000)::bigint"
COLUMNS = (
    "threshold_id, device_id, sensor_type, status, value, value_text, last_value, peak_value, violations, "
    + ", ".join(_MICROS.format(moment) for moment in ("first_time", "created_at", "resolved_at"))
)


class Told(NamedTuple):
    """One alert, as a row of the table and as the reference tells it. Times in microseconds."""

    rule: str
    device: str
    sensor: str
    status: str
    value: float | None
    text: str | None
    last: float | None
    peak: float | None
    violations: int
    first: int
    created: int | None
    resolved: int | None


def add_rule(database: Database, **columns: Any) -> str:
    """Insert a rule as a user's SQL would. Answers its id."""
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "device_pattern": "kitchen",
        "sensor_pattern": "temperature",
    } | columns
    names = ", ".join(values)
    marks = ", ".join(["%s"] * len(values))
    database.rows(f"insert into thresholds ({names}) values ({marks})", *values.values())
    return str(values["id"])


def alerts(database: Database) -> list[Told]:
    """All alerts, in the order in which each began."""
    found = database.rows(
        f"select {COLUMNS} from alerts order by first_time, threshold_id, device_id, number"
    )
    return [Told(*row) for row in found]


def reference(rules: Sequence[dict[str, Any]], arrived: Iterable[Sequence[Reading]]) -> list[Told]:
    """The alerts after a plain single pass over what was stored, transaction by transaction.

    Written apart from the program: each rule and series by itself, from the definitions in docs/alerts.md.
    """
    open_now: dict[tuple[str, str, str], dict[str, Any]] = {}
    told: list[Told] = []
    stored: dict[tuple[str, str], list[Reading]] = {}
    for transaction in arrived:
        for one in transaction:  # a rate sees what its own transaction has stored too
            stored.setdefault((one.device_id, one.sensor_type), []).append(one)
        newest: dict[tuple[str, str], tuple[int, bytes]] = {}
        own = {one.key for one in transaction}
        for series, readings in stored.items():
            others = [(r.timestamp_us, r.message_id) for r in readings if r.key not in own]
            newest[series] = max(others, default=(-1, b""))
        for one in sorted(transaction, key=lambda reading: reading.key):
            series = one.device_id, one.sensor_type
            if (one.timestamp_us, one.message_id) < newest[series]:
                continue  # late
            for rule in rules:
                if (rule["device_pattern"], rule["sensor_pattern"]) == series:
                    _step(rule, one, stored[series], open_now, told)
    told += [_told(key, state) for key, state in open_now.items()]
    return sorted(told, key=lambda alert: (alert.first, alert.rule, alert.device))


def _step(
    rule: dict[str, Any],
    one: Reading,
    past: Sequence[Reading],
    open_now: dict[tuple[str, str, str], dict[str, Any]],
    told: list[Told],
) -> None:
    key = rule["id"], one.device_id, one.sensor_type
    said = _measure(rule, one, past)
    if said is None:
        return
    measured, violated, clear = said
    state = open_now.get(key)
    if violated and state is None:
        state = open_now[key] = {"n": 0, "first": one.timestamp_us, "peak": measured, "created": None}
    if state is None:
        return
    state["last"] = measured
    if violated:
        state["n"] += 1
        if measured is not None:
            extreme = min if rule["kind"] == "min" or rule.get("value", 0) < 0 else max
            state["peak"] = extreme(state["peak"], measured)
        served = one.timestamp_us - state["first"] >= rule.get("debounce_sec", 0) * 1e6
        if state["created"] is None:
            state |= {"value": measured, "text": one.value_text if rule["kind"] == "equals" else None}
            if state["n"] >= rule.get("debounce_count", 1) and served:
                state["created"] = one.timestamp_us
            elif state["n"] > 1:
                state |= {"value": state["opened_value"], "text": state["opened_text"]}
            if state["n"] == 1:
                state |= {"opened_value": measured, "opened_text": state["text"]}
    elif state["created"] is None:
        del open_now[key]
    elif clear:
        told.append(_told(key, open_now.pop(key), one.timestamp_us))


def _measure(
    rule: dict[str, Any], one: Reading, past: Sequence[Reading]
) -> tuple[float | None, bool, bool] | None:
    """What is measured, whether it violates, whether it clears; None when the rule has nothing to say."""
    if rule["kind"] == "equals":
        return None if one.value_text is None else (None, one.value_text == rule["value_text"], True)
    if one.value is None:
        return None
    measured, margin = one.value, rule.get("hysteresis", 0)
    if rule["kind"] == "rate":
        begin = one.timestamp_us - rule["window_sec"] * 1_000_000
        window = [r for r in past if begin <= r.timestamp_us < one.timestamp_us and r.value is not None]
        if not window:
            return None
        first = min(window, key=lambda r: (r.timestamp_us, r.message_id))
        measured = (one.value - first.value) * 1_000_000 / (one.timestamp_us - first.timestamp_us)  # type: ignore[operator]
    if rule["kind"] == "min" or (rule["kind"] == "rate" and rule["value"] < 0):
        return measured, measured < rule["value"], rule["value"] - measured <= -margin
    return measured, measured > rule["value"], measured - rule["value"] <= -margin


def _told(key: tuple[str, str, str], state: dict[str, Any], resolved: int | None = None) -> Told:
    status = "resolved" if resolved else "active" if state["created"] else "pending"
    return Told(
        *key,
        status,
        state["value"],
        state["text"],
        state["last"],
        state["peak"],
        state["n"],
        state["first"],
        state["created"],
        resolved,
    )
