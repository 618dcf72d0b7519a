"""How a range is cut into pieces of rollups and readings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from query.pieces import EPOCH, MOST_PIECES, Coverage, Piece, Rollup, pieces

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
T0 = EPOCH + 1000 * DAY
WIDTHS = {"day": DAY, "hour": HOUR, "minute": MINUTE}


def coverage(
    end: datetime,
    dirty: Sequence[tuple[datetime, datetime]] = (),
    raw_start: datetime = EPOCH,
) -> Coverage:
    return Coverage([Rollup(name, width, EPOCH, end, dirty) for name, width in WIDTHS.items()], raw_start)


def test_the_coarsest_answers_what_it_has_whole() -> None:
    start, end = T0 - 2 * HOUR - 2 * MINUTE - timedelta(seconds=1), T0 + 2 * DAY + HOUR
    assert pieces(coverage(T0 + 9 * DAY), start, end, 86_400) == [
        Piece("", start, T0 - 2 * HOUR - 2 * MINUTE),
        Piece("minute", T0 - 2 * HOUR - 2 * MINUTE, T0 - 2 * HOUR),
        Piece("hour", T0 - 2 * HOUR, T0),
        Piece("day", T0, T0 + 2 * DAY),
        Piece("hour", T0 + 2 * DAY, end),
    ]


def test_a_rollup_that_does_not_divide_the_interval_is_not_asked() -> None:
    assert pieces(coverage(T0 + 9 * DAY), T0, T0 + DAY, 5400) == [Piece("minute", T0, T0 + DAY)]
    assert pieces(coverage(T0 + 9 * DAY), T0, T0 + DAY, 90) == [Piece("", T0, T0 + DAY)]


def test_what_is_not_summed_up_and_what_is_dirty_comes_from_the_readings() -> None:
    dirty = [(T0 + 3 * HOUR, T0 + 4 * HOUR)]
    assert pieces(coverage(T0 + 5 * HOUR + MINUTE, dirty), T0, T0 + DAY, 3600) == [
        Piece("hour", T0, T0 + 3 * HOUR),
        Piece("", T0 + 3 * HOUR, T0 + 4 * HOUR),
        Piece("hour", T0 + 4 * HOUR, T0 + 5 * HOUR),
        Piece("minute", T0 + 5 * HOUR, T0 + 5 * HOUR + MINUTE),
        Piece("", T0 + 5 * HOUR + MINUTE, T0 + DAY),
    ]


def test_where_readings_were_dropped_an_end_counts_as_the_whole_bucket() -> None:
    seconds = timedelta(seconds=7)
    found = pieces(coverage(T0 + 9 * DAY, raw_start=T0 + 8 * DAY), T0 + seconds, T0 + HOUR + seconds, 3600)
    assert found == [Piece("hour", T0, T0 + HOUR), Piece("minute", T0 + HOUR, T0 + HOUR + MINUTE)]


def test_a_range_that_is_cut_to_shreds_is_read_from_the_readings_from_there_on() -> None:
    dirty = [(T0 + n * HOUR, T0 + n * HOUR + HOUR) for n in range(4, 300, 2)]
    found = pieces(coverage(T0 + 99 * DAY, dirty), T0, T0 + 20 * DAY, 3600)
    assert found == [Piece("hour", T0, T0 + 4 * HOUR), Piece("", T0 + 4 * HOUR, T0 + 20 * DAY)]
    assert len(pieces(coverage(T0 + 99 * DAY, dirty[:15]), T0, T0 + 20 * DAY, 3600)) <= MOST_PIECES


moments = st.integers(-3 * 86_400, 5 * 86_400).map(lambda s: T0 + timedelta(seconds=s))


@given(
    moments,
    moments,
    st.sampled_from([60, 120, 3600, 7200, 86_400, 604_800, 3660, 61]),
    moments,
    st.lists(st.integers(-72, 120), max_size=60),
)
def test_pieces_make_the_range_without_gap_or_overlap_and_hold_nothing_dirty(
    start: datetime, end: datetime, interval: int, until: datetime, hours: list[int]
) -> None:
    dirty = [(T0 + n * HOUR, T0 + (n + 1) * HOUR) for n in hours]
    found = pieces(coverage(until, dirty), start, end, interval)
    if start >= end:
        assert found == []
        return
    assert (found[0].start, found[-1].end) == (start, end)
    for one, after in pairwise(found):
        assert one.end == after.start
    for one in found:
        assert one.start < one.end
        if one.table:
            width = WIDTHS[one.table]
            assert not (one.start - EPOCH) % width
            assert not (one.end - EPOCH) % width
            assert not timedelta(seconds=interval) % width
            assert one.end <= until
            assert not any(low < one.end and high > one.start for low, high in dirty)
