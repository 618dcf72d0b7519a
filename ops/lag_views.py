"""How `main.py lag` shows what it found: tables for people, an object for machines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ops import output
from ops.backlog import Backlog, Held

HEADER = ("stream", "lag", "oldest unread", "pending", "oldest idle", "deliveries", "trimmed unread", "")
CONSUMERS = ("consumer", "pending", "streams", "oldest idle", "deliveries", "now")
_MOST_IDLE = 10  # consumers without anything pending that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look at the group. `shown`: the first of `found`. `alive`: consumers that hold their name now.
    `exceeded`: a sentence for each limit that is exceeded.
    """

    group: str
    found: Sequence[Backlog]
    shown: Sequence[Backlog]
    alive: set[str]
    exceeded: Sequence[str]


def show(look: Look) -> None:
    """Print it for people."""
    print(_headline(look))
    output.table(HEADER, map(_cells, look.shown), sys.stdout)
    if len(look.shown) < len(look.found):
        print(f"and {len(look.found) - len(look.shown):,} more streams (--top 0 shows all)")
    consumers = _consumers(look.found)
    rows = [
        (
            name,
            f"{held.pending:,}",
            f"{streams:,}",
            age_text(held.idle_sec),
            str(held.deliveries),
            "alive" if name in look.alive else "gone",
        )
        for name, (held, streams) in sorted(consumers.items(), key=lambda item: -item[1][0].pending)
    ]
    resting = sorted(look.alive - set(consumers))[:_MOST_IDLE]
    rows += [(name, "0", "0", "", "", "alive") for name in resting]
    if rows:
        print()
        output.table(CONSUMERS, rows, sys.stdout)


def _consumers(found: Iterable[Backlog]) -> dict[str, tuple[Held, int]]:
    """What each consumer has pending in all of these, and in how many."""
    sums: dict[str, tuple[Held, int]] = {}
    for one in found:
        for name, held in one.consumers.items():
            so_far, streams = sums.get(name, (Held(0, 0.0, 0), 0))
            total = Held(
                so_far.pending + held.pending,
                max(so_far.idle_sec, held.idle_sec),
                max(so_far.deliveries, held.deliveries),
            )
            sums[name] = total, streams + 1
    return sums


def _headline(look: Look) -> str:
    totals = _totals(look.found)
    unknown = f" (unknown in {totals['unknown_lag']:,} streams)" if totals["unknown_lag"] else ""
    return (
        f"group {look.group}, {len(look.found):,} streams: {totals['lag']:,} entries unread{unknown},"
        f" the oldest for {age_text(totals['lag_sec'])}; {totals['pending']:,} pending;"
        f" {totals['trimmed_unread']:,} trimmed unread"
    )


def _totals(found: Sequence[Backlog]) -> dict[str, Any]:
    return {
        "lag": sum(one.lag or 0 for one in found),
        "unknown_lag": sum(one.lag is None for one in found),
        "lag_sec": max((one.lag_sec for one in found), default=0.0),
        "pending": sum(one.pending for one in found),
        "idle_sec": max((one.idle_sec for one in found), default=0.0),
        "deliveries": max((one.deliveries for one in found), default=0),
        "trimmed_unread": sum(one.trimmed_unread or 0 for one in found),
    }


def _cells(one: Backlog) -> tuple[str, ...]:
    more = "" if one.whole else "+"
    return (
        output.excerpt(one.stream, 60),
        "unknown" if one.lag is None else f"{one.lag:,}",
        age_text(one.lag_sec) if one.lag != 0 else "",
        f"{one.pending:,}",
        age_text(one.idle_sec) + more if one.pending else "",
        f"{one.deliveries}{more}" if one.pending else "",
        "unknown" if one.trimmed_unread is None else f"{one.trimmed_unread:,}",
        "" if one.grouped else "no worker has found it yet",
    )


def as_json(look: Look) -> dict[str, Any]:
    """The same for machines. None: Redis does not know."""
    return {
        "group": look.group,
        "streams_in_all": len(look.found),
        "totals": _totals(look.found),
        "streams": [
            {
                "stream": one.stream,
                "lag": one.lag,
                "lag_sec": one.lag_sec,
                "pending": one.pending,
                "idle_sec": one.idle_sec,
                "deliveries": one.deliveries,
                "whole": one.whole,
                "trimmed_unread": one.trimmed_unread,
                "grouped": one.grouped,
                "consumers": {name: held._asdict() for name, held in one.consumers.items()},
            }
            for one in look.shown
        ],
        "consumers": {
            name: {**held._asdict(), "streams": streams, "alive": name in look.alive}
            for name, (held, streams) in _consumers(look.found).items()
        },
        "alive": sorted(look.alive),
        "exceeded": list(look.exceeded),
    }


def age_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, smaller, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{whole} s"
