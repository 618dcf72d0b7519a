"""What a worker keeps in memory of the database's own tables: rules, and the registry.

Triggers announce each change; what was announced is read before the next batch is judged. Notifications can
be lost (a failover), and a pooler does not pass them: so everything is looked at again on every new
connection and every RULES_RELOAD_SEC. While the database is away, what is in memory stays in force.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import structlog

import database
from database import BoundedConnection
from registry import Registry
from rule_store import RuleStore

THRESHOLDS = "sluice_thresholds"
SERIES = "sluice_series"


class Knowledge:
    """Keeps the rules and the registry up to date. Belongs to the thread of its connection."""

    def __init__(
        self,
        store: RuleStore,
        registry: Registry,
        reload_sec: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._registry = registry
        self._reload_sec = reload_sec
        self._clock = clock
        self._connection: BoundedConnection | None = None
        self._loaded = False
        self._next_look = 0.0

    def refresh(self, connection: BoundedConnection) -> None:
        """Take up what has changed. In no transaction at the begin and the end. Raises psycopg errors."""
        if connection is not self._connection:
            self._attach(connection)
            return
        said: dict[str, list[str]] = {}
        for notice in connection.notifies(timeout=0):
            said.setdefault(notice.channel, []).append(notice.payload)
        if THRESHOLDS in said:
            self._store.refresh(connection, said[THRESHOLDS])
        if SERIES in said:
            self._registry.refresh(connection, said[SERIES])
        if self._clock() >= self._next_look:
            self._look(connection)
        connection.commit()

    def look_again(self) -> None:
        """Look at everything at the next `refresh`."""
        self._next_look = 0.0

    def _attach(self, connection: BoundedConnection) -> None:
        """A new connection: listen first, then look, so that no change falls between the two.

        Behind a pooler it would be a session of the pooler's that listens, for whomever it serves next.
        """
        pooled = database.is_pooled(connection)
        if not pooled:
            connection.execute(f"listen {THRESHOLDS}; listen {SERIES}")
            connection.commit()
        elif self._connection is None:
            structlog.get_logger().info("rules_by_looking", reason="a pooler", seconds=self._reload_sec)
        self._look(connection)
        connection.commit()
        self._connection = connection

    def _look(self, connection: BoundedConnection) -> None:
        if self._loaded:
            self._store.verify(connection)
            self._registry.verify(connection)
        else:
            self._store.load(connection)
            self._registry.load(connection)
        self._loaded = True
        self._next_look = self._clock() + self._reload_sec
