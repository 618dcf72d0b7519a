"""Topic filters: made from templates, and which of them a broker would answer twice. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


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
