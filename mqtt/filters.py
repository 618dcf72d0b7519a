"""Topic filters: made from templates, and which of them a broker would answer twice. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from zlib import crc32

_KEPT = 20_000
_NUMBERS = 268_000_000  # identifiers end at 268,435,455


def filters_of(templates: Sequence[str]) -> tuple[str, ...]:
    """The fewest filters for all that the templates match: each name becomes a `+`."""
    wanted = [
        "/".join("+" if level.startswith("{") else level for level in template.split("/"))
        for template in templates
    ]
    distinct = list(dict.fromkeys(wanted))
    return tuple(
        one for one in distinct if not any(other != one and covers(other, one) for other in distinct)
    )


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that `narrow` matches is matched by `wide` too."""
    mine, theirs = wide.split("/"), narrow.split("/")
    for place, level in enumerate(mine):
        if level == "#":
            return not (place == 0 and theirs[0].startswith("$"))
        if place >= len(theirs) or theirs[place] == "#":
            return False
        if level not in ("+", theirs[place]) or (level == "+" and place == 0 and theirs[0].startswith("$")):
            return False
    return len(mine) == len(theirs)


def overlapping(filters: Sequence[str]) -> Sequence[tuple[str, str]]:
    """Pairs that share topics: some brokers send such a message once for each of them."""
    return [pair for pair in combinations(filters, 2) if _meet(*pair)]


def _meet(one: str, other: str) -> bool:
    first, second = one.split("/"), other.split("/")
    heads = first[0], second[0]
    if any(head.startswith("$") for head in heads) and any(head in ("+", "#") for head in heads):
        return False  # a leading wildcard leaves out what begins with $ (MQTT 4.7.2)
    for mine, theirs in zip(first, second, strict=False):
        if "#" in (mine, theirs):
            return True
        if mine != theirs and "+" not in (mine, theirs):
            return False
    longer = first if len(first) > len(second) else second
    return len(first) == len(second) or longer[min(len(first), len(second))] == "#"


class Copies:
    """Tells copies of a message that a broker sends once for each filter that matches (MQTT 5, 3.3.4).

    `numbered`: the filters that share topics with others, by their place, and the subscription identifier
    that each is asked for with. A message is a copy only where as many of the same topic and payload have
    come by another filter on this connection: what a broker sends for one filter alone, after a restart or
    where it has refused the other, is never passed over.

    Other filters make other identifiers: a session may hold messages for those of earlier settings.
    """

    def __init__(self, filters: Sequence[str]) -> None:
        shared = {one for pair in overlapping(filters) for one in pair}
        first = 1 + crc32("\n".join(filters).encode()) % _NUMBERS
        self.numbered = {place: first + place for place, one in enumerate(filters) if one in shared}
        self._ours = frozenset(self.numbered.values())
        self._seen: dict[bytes, dict[int, int]] = {}  # identity: how many have come by each filter

    def forget(self) -> None:
        """A connection begins."""
        self._seen.clear()

    def is_copy(self, identity: bytes, numbers: Sequence[int]) -> bool:
        """`identity`: of topic and payload; `numbers`: the identifiers that the message carries."""
        if len(numbers) != 1 or numbers[0] not in self._ours:
            return False  # sent once for all, or for filters of which nothing is known any more
        if len(self._seen) >= _KEPT and identity not in self._seen:
            self._seen.clear()  # makes repeats at worst
        counts = self._seen.setdefault(identity, {})
        number = numbers[0]
        counts[number] = counts.get(number, 0) + 1
        return counts[number] <= max((count for by, count in counts.items() if by != number), default=0)
