"""What the log says of what a bridge carries, drops and does not understand: once a second at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import structlog

from metrics import BridgeStats
from mqtt.notes import Seldom

INTERVAL_SEC = 1.0


class Carried:
    """Tells the changes of the counts. Belongs to the bridge's thread."""

    def __init__(self, stats: BridgeStats, clock: Callable[[], float] = monotonic) -> None:
        self._stats = stats
        self._clock = clock
        self._seldom = Seldom(clock)
        self._told = BridgeStats()
        self._next_word = 0.0
        self.example = ""  # a topic that no template matches; set from paho's thread

    def tell(self, waiting: int, *, last: bool = False) -> None:
        """Log what has changed, when it is time. `waiting`: messages in the queues; `last`: now or never
        again.
        """
        if self._clock() < self._next_word and not last:
            return
        self._next_word = self._clock() + INTERVAL_SEC
        log = structlog.get_logger()
        stats, told = replace(self._stats), self._told
        if stats.messages_added != told.messages_added:
            log.info(
                "bridged",
                messages=stats.messages_added - told.messages_added,
                entries=stats.entries_added - told.entries_added,
                batches=stats.batches_processed - told.batches_processed,
                waiting=waiting,
            )
        if stats.messages_dropped != told.messages_dropped:
            log.warning("bridge_dropped", messages=stats.messages_dropped - told.messages_dropped)
        unmatched = stats.messages_unmatched - told.messages_unmatched
        if unmatched and self._seldom.may_say("unmatched"):
            log.warning(
                "bridge_unmatched",
                messages=unmatched,
                topic=self.example[:200],
                remedy="give TOPIC_TEMPLATES a template for it, or narrow BRIDGE_TOPICS",
            )
        else:
            stats.messages_unmatched = told.messages_unmatched
        self._told = stats

    def warn(self, event: str, what: str, waiting: int) -> None:
        """A warning at growing intervals."""
        if self._seldom.may_say(event):
            structlog.get_logger().warning(event, what=what, waiting=waiting)
