"""A flood of dead letters: when so much is bad that something else than the data is wrong, letters wait.

A firmware that makes every payload unreadable should not empty a stream into dead letters, and a handful
of broken devices among thousands should stop nobody. So two things have to come together: dead letters as
many in a row, or as great a part of the last minute, as the settings say; and from as great a part of the
devices.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

import structlog

from fates import places_of_letters
from metrics import Stats
from schema import Outcome, Settled

WINDOW_SEC = 60.0
FIRST_REPEAT_SEC = 10.0
LONGEST_REPEAT_SEC = 600.0
ASK_SEC = 5.0  # how often the number of devices is asked for, at most
_MOST_SOURCES = 200_000

Source = str | bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class FloodOptions:
    """`count` 0: nothing is a flood. `remedy`: what an operator can do, in a sentence."""

    count: int = 1000
    share: float = 0.5
    remedy: str = ""


class Flood:
    """Watches what becomes of one worker's entries. Belongs to its thread.

    `devices` answers how many devices there are whose entries this worker reads, about; `accepted` whether
    an operator lets the letters through. Both may ask a server, and are called only where letters are many.
    """

    def __init__(
        self,
        options: FloodOptions,
        stats: Stats,
        *,
        devices: Callable[[], float],
        accepted: Callable[[], bool],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._stats = stats
        self._devices = devices
        self._accepted = accepted
        self._clock = clock
        self._minute: deque[tuple[float, int, int]] = deque()  # when, entries, bad ones among them
        self._entries = self._letters = 0  # of that minute
        self._in_a_row = 0
        self._row_began = 0.0
        self._sources: dict[Source, float] = {}  # what bad entries came from, and when last
        self._bad_sources = 0
        self._known_devices, self._asked_at = 0.0, -inf
        self._held: Counter[tuple[str, bytes]] = Counter()  # reason and stream of what waits
        self._began: float | None = None
        self._next_word = self._interval = 0.0

    @property
    def on(self) -> bool:
        """Whether the worker should read nothing new."""
        return self._began is not None

    def sift(self, outcome: Outcome) -> Outcome:
        """What of this outcome may be settled: all of it, or, in a flood, all but the dead letters, whose
        entries stay pending. To be called with every outcome, before it is settled.
        """
        settled = outcome.settled
        places = places_of_letters(settled) if self._options.count else []
        bad = [place for place in places if place not in outcome.partly] if places else places
        self._note(settled, bad)
        if not self.on and not (bad and self._too_many() and not self._accepted()):
            return outcome
        for place in places:
            rejection, entry = settled[place].rejection, settled[place].entry
            self._held[rejection.reason if rejection else "", entry.stream] += 1
        self._stats.messages_held += len(places)
        if not self.on:
            self._begin()
        return replace(
            outcome, settled=[one for one in settled if one.rejection is None], readings_rejected=0
        )

    def over(self) -> bool:
        """To be asked again and again in a flood: says so in the log, at growing intervals, and answers
        whether it is over: then what was held is to be delivered again.
        """
        now = self._clock()
        if self._began is None:
            return True
        if self._accepted():
            log = structlog.get_logger()
            log.warning("dead_letter_flood_accepted", held=self._held.total(), seconds=self._seconds(now))
            self._began = None
            self._held.clear()
            return True
        if now >= self._next_word:
            self._say(now)
        return False

    def _note(self, settled: Sequence[Settled], bad: Sequence[int]) -> None:
        now = self._clock()
        while self._minute and self._minute[0][0] < now - WINDOW_SEC:
            _, entries, letters = self._minute.popleft()
            self._entries -= entries
            self._letters -= letters
        if self._minute and now - self._minute[-1][0] < 1.0:  # one a second is enough
            began, entries, letters = self._minute.pop()
        else:
            began, entries, letters = now, 0, 0
        self._minute.append((began, entries + len(settled), letters + len(bad)))
        self._entries += len(settled)
        self._letters += len(bad)
        self._note_row(len(settled), bad, now)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.clear()
        for place in bad:
            self._sources[_source(settled[place])] = now

    def _note_row(self, entries: int, bad: Sequence[int], now: float) -> None:
        """How many bad entries come in a row, up to the end of these."""
        trailing = 0
        for place in reversed(bad):
            if place != entries - 1 - trailing:
                break
            trailing += 1
        if not trailing and entries:
            self._in_a_row = 0
        elif trailing < entries or not self._in_a_row:
            self._in_a_row, self._row_began = trailing, now
        else:
            self._in_a_row += trailing

    def _too_many(self) -> bool:
        most, share = self._options.count, self._options.share
        row = self._in_a_row >= most
        if not row and not (self._letters >= most and self._letters >= share * self._entries):
            return False
        now = self._clock()
        since = min(self._row_began, now - WINDOW_SEC) if row else now - WINDOW_SEC
        self._bad_sources = sum(last >= since for last in self._sources.values())
        if now - self._asked_at >= ASK_SEC:
            self._known_devices, self._asked_at = self._devices(), now
        return self._bad_sources >= share * max(self._bad_sources, self._known_devices)

    def _begin(self) -> None:
        self._began = self._clock()
        self._interval = FIRST_REPEAT_SEC
        self._say(self._began)

    def _say(self, now: float) -> None:
        self._next_word = now + self._interval
        self._interval = min(2 * self._interval, LONGEST_REPEAT_SEC)
        (reason, stream), count = self._held.most_common(1)[0]
        structlog.get_logger().error(
            "dead_letter_flood",
            reason=reason,
            stream=stream.decode(errors="replace"),
            held=self._held.total(),
            of_this_kind=count,
            sources=self._bad_sources,
            seconds=self._seconds(now),
            remedy=self._options.remedy,
        )

    def _seconds(self, now: float) -> float:
        return round(now - (now if self._began is None else self._began), 1)


def _source(item: Settled) -> Source:
    """What a bad entry came from: its device, or what is nearest to one."""
    if item.rejection and item.rejection.device_id:
        return item.rejection.device_id
    fields = item.entry.fields
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"topic":
            return value[:200]
    return item.entry.stream
