"""Which rollup answers which part of a range, exactly, and what the readings themselves must answer. Pure.

All times are aware and in UTC. Ranges hold their start and not their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Beyond so many pieces a statement costs more than reading what lies between them.
MOST_PIECES = 40

Range = tuple[datetime, datetime]


class Piece(NamedTuple):
    """`table` empty: the readings themselves."""

    table: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Rollup:
    """What one rollup may be asked: [start, end), but for the ranges `dirty`, which it may have wrong."""

    table: str
    width: timedelta
    start: datetime = EPOCH
    end: datetime = EPOCH
    dirty: Sequence[Range] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """`rollups`: from the coarsest to the finest. Before `raw_start` readings were dropped."""

    rollups: Sequence[Rollup] = field(default_factory=tuple)
    raw_start: datetime = EPOCH


def pieces(coverage: Coverage, start: datetime, end: datetime, interval_sec: int) -> list[Piece]:
    """Pieces that together make [start, end), each from the coarsest rollup that has it exactly.

    Only rollups whose width divides the interval. Where readings were dropped an end within a rollup's
    bucket counts as the whole bucket.
    """
    width = timedelta(seconds=interval_sec)
    fitting = [one for one in coverage.rollups if not width % one.width]
    low = _outward(fitting, coverage.raw_start, start, up=False)
    high = _outward(fitting, coverage.raw_start, end, up=True)
    if low >= high:
        return []
    found = sorted(_cover(fitting, low, high), key=lambda one: one.start)
    if len(found) <= MOST_PIECES:
        return found
    # The readings answer for all that is cut up, which is where they are newest.
    holes = [one for one in found if not one.table and one.start >= coverage.raw_start]
    return [
        *(one for one in found if one.end <= holes[0].start),
        Piece("", holes[0].start, max(one.end for one in found)),
    ]


def _outward(rollups: Sequence[Rollup], raw_start: datetime, moment: datetime, *, up: bool) -> datetime:
    """A moment whose readings were dropped: the border of the finest bucket that holds it."""
    if moment >= raw_start:
        return moment
    for one in reversed(rollups):
        if one.start <= moment < one.end:
            return (_ceil if up else _floor)(moment, one.width)
    return moment


def _cover(rollups: Sequence[Rollup], start: datetime, end: datetime) -> list[Piece]:
    if start >= end:
        return []
    if not rollups:
        return [Piece("", start, end)]
    coarsest, finer = rollups[0], rollups[1:]
    found: list[Piece] = []
    done = start
    for low, high in _clean(coarsest, start, end):
        low, high = _ceil(low, coarsest.width), _floor(high, coarsest.width)
        if low < high:
            found += _cover(finer, done, low)
            found.append(Piece(coarsest.table, low, high))
            done = high
    return found + _cover(finer, done, end)


def _clean(rollup: Rollup, start: datetime, end: datetime) -> list[Range]:
    """The parts of [start, end) that the rollup has, in order."""
    found = []
    low, last = max(start, rollup.start), min(end, rollup.end)
    for dirty_from, dirty_until in sorted(rollup.dirty):
        if low < min(dirty_from, last):
            found.append((low, min(dirty_from, last)))
        low = max(low, dirty_until)
    if low < last:
        found.append((low, last))
    return found


def _floor(moment: datetime, width: timedelta) -> datetime:
    return EPOCH + (moment - EPOCH) // width * width


def _ceil(moment: datetime, width: timedelta) -> datetime:
    return EPOCH - (EPOCH - moment) // width * width
