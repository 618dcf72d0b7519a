"""Where buckets begin, and how many there are: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from query.buckets import bucket_count, first_bucket

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICRO = timedelta(microseconds=1)
ZONES = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/St_Johns"), timezone(timedelta(hours=14))]
# The day before and after keep the zone's offset within what a datetime holds.
times = st.datetimes(datetime(1800, 1, 2), datetime(2200, 1, 1), timezones=st.sampled_from(ZONES))  # noqa: DTZ001
intervals = st.integers(1, 2**31 - 1) | st.sampled_from([1, 60, 3600, 86_400, 7 * 86_400])


@given(times, intervals)
def test_a_bucket_begins_at_a_multiple_of_its_width_and_holds_its_time(time: datetime, sec: int) -> None:
    first, width = first_bucket(time, sec), timedelta(seconds=sec)
    assert first <= time < first + width
    assert (first - EPOCH) % width == timedelta(0)
    assert first.utcoffset() == timedelta(0)


@given(times, intervals)
def test_the_zone_in_which_a_time_is_told_does_not_matter(time: datetime, sec: int) -> None:
    assert {first_bucket(time.astimezone(zone), sec) for zone in ZONES} == {first_bucket(time, sec)}


@given(times, st.timedeltas(MICRO, timedelta(days=40_000)), intervals)
def test_the_last_bucket_begins_before_the_end_and_reaches_it(
    start: datetime, length: timedelta, sec: int
) -> None:
    start = start.astimezone(UTC)  # or the sum would be one of the wall clock's
    end, width = start + length, timedelta(seconds=sec)
    last = first_bucket(start, sec) + (bucket_count(start, end, sec) - 1) * width
    assert last < end <= last + width


@given(times, st.timedeltas(timedelta(0), timedelta(days=40_000)), intervals)
def test_a_range_that_is_empty_touches_no_bucket(start: datetime, length: timedelta, sec: int) -> None:
    assert bucket_count(start, start.astimezone(UTC) - length, sec) == 0


def test_a_week_begins_on_a_thursday_as_1970_did() -> None:
    assert first_bucket(datetime(2025, 3, 30, 12, tzinfo=UTC), 7 * 86_400).weekday() == 3


def test_an_hour_that_the_clocks_go_through_twice_is_two() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2025, 10, 26, 2, 30, tzinfo=berlin)
    assert bucket_count(start, start.replace(fold=1), 60) == 60
