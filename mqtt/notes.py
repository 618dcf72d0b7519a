"""What is said of a connection's troubles: noted by paho's thread, logged by the owner's, not too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

import structlog

from retry import FIRST_REPEAT_SEC, LONGEST_REPEAT_SEC

_REASONS = 50  # kept to tell repeats; there are fewer, but a message may hold something that changes
_LOSSES = ("mqtt_disconnected", "mqtt_refused", "mqtt_unreachable")


class Seldom:
    """Lets the same words through at once, and then at growing intervals: 10 s, doubled up to 10 min."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, float]] = {}  # words: when they may be said again, interval

    def may_say(self, words: str) -> bool:
        now = self._clock()
        again, interval = self._said.get(words, (now, 0.0))
        if now < again:
            return False
        calm = now - again > interval  # silent for longer than they were kept back: they are news again
        interval = FIRST_REPEAT_SEC if calm or not interval else min(2 * interval, LONGEST_REPEAT_SEC)
        if len(self._said) >= _REASONS:
            self._said.clear()
        self._said[words] = (now + interval, interval)
        return True


class Notes:
    """Events with a reason and a remedy. `add` may be called from any thread, `tell` from the owner's."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._seldom = Seldom(clock)
        self._kept: deque[tuple[str, str, str]] = deque(maxlen=_REASONS)
        self._told_up = False

    def add(self, event: str, reason: str, remedy: str) -> None:
        self._kept.append((event, reason, remedy))

    def tell(self) -> None:
        """Log what was noted and is worth saying."""
        while self._kept:
            event, reason, remedy = self._kept.popleft()
            if self._worth_saying(event, reason):
                _log(event, reason, remedy)

    def _worth_saying(self, event: str, reason: str) -> bool:
        """A loss at growing intervals, and a return after each loss that was told."""
        if event == "mqtt_connected":
            worth, self._told_up = not self._told_up, True
            return worth
        worth = self._seldom.may_say(f"{event} {reason}")
        if worth and event in _LOSSES:
            self._told_up = False
        return worth


def _log(event: str, reason: str, remedy: str) -> None:
    log = structlog.get_logger()
    words = {name: text for name, text in (("reason", reason), ("remedy", remedy)) if text}
    (log.info if event == "mqtt_connected" else log.warning)(event, **words)
