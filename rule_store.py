"""The rules from the table `thresholds` into memory: all at once, by what changed, or not at all.

Each change gives a row a new version, so the number of rows and the sum of a hash of their ids and versions
tell whether anything was missed, without reading the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import structlog
from psycopg import sql

import database
from database import BoundedConnection
from rules import Rules
from thresholds import Kind, Rule, Severity

_SELECT = sql.SQL(
    """
    select id, version, enabled, device_pattern, sensor_pattern, kind, severity, value, value_text,
        window_sec, hysteresis, debounce_count, debounce_sec, sensor_id
    from thresholds
    """
)
_THESE = _SELECT + sql.SQL(" where id = any(%(ids)s)")
# `_mark` computes the same for one row.
_FINGERPRINT = """
    select count(*), coalesce(sum(('x' || left(md5(id || ' ' || version), 8))::bit(32)::bigint), 0)::bigint
    from thresholds
"""


class RuleStore:
    """Keeps `rules` as the table has them. Each call is for the caller's transaction and only reads."""

    def __init__(self) -> None:
        self.rules = Rules()
        self._marks: dict[str, int] = {}

    def load(self, connection: BoundedConnection) -> None:
        """Read all rules."""
        found = connection.execute(_SELECT).fetchall()
        self._marks = {row[0]: _mark(row[0], row[1]) for row in found}
        self.rules.replace_all(_rule(row) for row in found if row[2])
        structlog.get_logger().info("rules_loaded", rules=len(self.rules))

    def verify(self, connection: BoundedConnection) -> None:
        """Read all rules again if a change was missed."""
        found = connection.execute(_FINGERPRINT).fetchone()
        if found != (len(self._marks), sum(self._marks.values())):
            self.load(connection)

    def refresh(self, connection: BoundedConnection, payloads: Iterable[str]) -> None:
        """Read what the payloads of notifications name: a JSON array of ids each. Anything else, as `*`,
        says that everything is to be read: any role may notify.
        """
        said = [database.texts(payload) for payload in set(payloads)]
        if None in said:
            self.load(connection)
            return
        ids = sorted({rule_id for some in said for rule_id in some or ()})
        found = {row[0]: row for row in connection.execute(_THESE, {"ids": ids}).fetchall()}
        for rule_id in ids:
            row = found.get(rule_id)
            if row is None:
                self._marks.pop(rule_id, None)
            else:
                self._marks[rule_id] = _mark(rule_id, row[1])
            if row is not None and row[2]:
                self.rules.put(_rule(row))
            else:
                self.rules.remove(rule_id)
        structlog.get_logger().info("rules_changed", changed=len(ids), rules=len(self.rules))


def _mark(rule_id: str, version: int) -> int:
    """32 bits that are others with every version of every rule."""
    digest = hashlib.md5(f"{rule_id} {version}".encode(), usedforsecurity=False)
    return int.from_bytes(digest.digest()[:4], "big")


def _rule(row: tuple[Any, ...]) -> Rule:
    (rule_id, _, _, device, sensor, kind, severity, value, text, window, hysteresis, count, sec, of) = row
    return Rule(
        id=rule_id,
        device_pattern=device,
        sensor_pattern=sensor,
        kind=Kind(kind),
        severity=Severity(severity),
        value=value,
        text=text,
        window_sec=window,
        hysteresis=hysteresis,
        debounce_count=count,
        debounce_sec=sec,
        sensor_id=of,
    )
