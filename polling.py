"""Which of many streams to ask next: those that speak at every turn, and of the others some at a time.

To ask a stream that has nothing to say costs Redis about a microsecond; so 10,000 quiet streams that are
asked forty times a second take half a core, and asked once a second they take nothing to speak of. Pure:
nothing here talks to Redis.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from math import ceil, inf

from redis_client import CHUNK

HOT_SEC = 10.0  # after its last entry a stream is asked at every turn for so long
HOT_SHARE = 0.25  # of the time, that asking too many of those to block on may take
QUIET_SHARE = 0.01  # of the time, that asking all the others may take, as long as that is often enough
SHORTEST_SEC = 0.02  # between two turns of a quiet stream
PARTS_AT_ONCE = 10  # asked in a row, so that others hardly wait


class Polling:
    """The order in which a worker asks its streams.

    *Hot* are those that had entries lately. Besides, all streams are asked part by part, a part being
    `CHUNK` of them, so that each has its turn within `longest_sec`. `pack` makes of streams the command
    that asks them, which is kept.
    """

    def __init__(
        self, pack: Callable[[Sequence[bytes]], bytes], longest_sec: float, clock: Callable[[], float]
    ) -> None:
        self._pack = pack
        self._longest_sec = longest_sec
        self._clock = clock
        self._streams: list[bytes] = []
        self._commands: dict[int, bytes] = {}  # by the part's number
        self._at = 0  # the stream whose turn is next
        self._asked: list[float] = []  # when each part was asked last; minus infinity: never
        self._part_began = 0.0
        self._rush = 0  # parts that are to be asked without waiting
        self._next = -inf  # when the next part is due
        self._cost = 0.0  # seconds a part
        self._hot: dict[bytes, float] = {}  # when each last had entries
        self._hot_list: list[bytes] | None = []
        self._hot_next = -inf
        self._cool_next = -inf

    def follow(self, streams: list[bytes]) -> None:
        """These are the streams now, sorted. New ones are asked at once."""
        if streams is self._streams:
            return
        before, known = self._streams, set(self._streams)
        new = [stream for stream in streams if stream not in known]
        if len(known) + len(new) > len(streams):
            keep = set(streams)
            self._hot = {stream: at for stream, at in self._hot.items() if stream in keep}
        oldest = min(self._asked, default=-inf)
        turn = before[self._at] if self._at < len(before) else b""
        self._streams, self._commands, self._hot_list = streams, {}, None
        parts = ceil(len(streams) / CHUNK)
        if len(new) > CHUNK:
            self._rush, oldest = parts, -inf
        else:
            self._rush = min(self._rush, parts)
            self._hot.update(dict.fromkeys(new, self._clock()))
        self._asked = [oldest] * parts
        self._at = bisect_left(streams, turn) // CHUNK * CHUNK
        if self._at >= len(streams):
            self._at = 0

    @property
    def wake_at(self) -> float:
        """When it is worth while to ask again: some parts are due then."""
        parts = len(self._asked)
        if self._rush or not parts:
            return -inf if parts else inf
        several = min(PARTS_AT_ONCE, ceil(parts / 4))
        return self._next + (several - 1) * self._interval()

    def due(self) -> tuple[Sequence[bytes], bytes | None]:
        """The streams whose turn it is, or none; and the command that asks them, where they are a part."""
        if not self._streams or (not self._rush and self._clock() < self._next):
            return (), None
        part, within = divmod(self._at, CHUNK)
        streams = self._streams[self._at : (part + 1) * CHUNK]
        if within:
            return streams, None
        if part not in self._commands:
            self._commands[part] = self._pack(streams)
        return streams, self._commands[part]

    def all_due(self, most: int) -> list[Sequence[bytes]]:
        """The parts whose turn has come meanwhile, as far as `most` streams reach."""
        if not self._streams or (not self._rush and self._clock() < self._next):
            return []
        late = 1 + int((self._clock() - self._next) / self._interval()) if not self._rush else self._rush
        parts: list[Sequence[bytes]] = []
        at, left = self._at, most
        while at < len(self._streams) and len(parts) < min(late, PARTS_AT_ONCE):
            part = self._streams[at : (at // CHUNK + 1) * CHUNK][: left if not parts else None]
            if not part or (parts and len(part) > left):
                break
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts

    def asked(self, count: int, began: float, *, timed: bool = True) -> None:
        """The first `count` of the streams that were due have been asked, from `began` on; `timed`: and
        the time until now is what it cost.
        """
        now = self._clock()
        part, within = divmod(self._at, CHUNK)
        if not within:
            self._part_began = began
        self._at += count
        if self._at < len(self._streams) and self._at % CHUNK:
            return  # the rest of this part is due still
        self._asked[part] = self._part_began
        if timed:
            self._cost += 0.1 * (now - began - self._cost) if self._cost else now - began
        if self._at >= len(self._streams):
            self._at = 0
        interval = self._interval()
        if self._rush:
            self._rush -= 1
            self._next = now + interval
        else:
            self._next = max(self._next, now - interval * len(self._asked)) + interval

    @property
    def asked_since(self) -> float:
        """Every stream was asked at this time or later; minus infinity while some never was."""
        return min(self._asked, default=inf)

    @property
    def hot(self) -> list[bytes]:
        """The streams that speak; who began to last comes last."""
        if self._hot_list is None:
            self._hot_list = list(self._hot)
        return self._hot_list

    @property
    def hot_at(self) -> float:
        """When the hot ones are to be asked again, where they are too many to block on."""
        return self._hot_next

    def heard(self, streams: Iterable[bytes]) -> None:
        """These had entries."""
        before = len(self._hot)
        self._hot.update(dict.fromkeys(streams, self._clock()))
        if len(self._hot) != before:
            self._hot_list = None

    def emptied(self, took: float) -> None:
        """All hot streams were asked, which took so many seconds, and have no more: time for a pause."""
        now = self._clock()
        self._hot_next = now + min(self._longest_sec, took * (1 / HOT_SHARE - 1))
        if now >= self._cool_next:
            self._cool_next = now + 1.0
            hot = {stream: at for stream, at in self._hot.items() if at > now - HOT_SEC}
            if len(hot) != len(self._hot):
                self._hot, self._hot_list = hot, None

    def _interval(self) -> float:
        """Seconds between two parts. Some are asked together (`wake_at`), up to a quarter of them: so three
        quarters of the longest time are what they may take.
        """
        parts = len(self._asked)
        turn = min(0.75 * self._longest_sec, max(SHORTEST_SEC, parts * self._cost / QUIET_SHARE))
        return turn / parts
