"""What goes into one transaction."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from portions import cut
from schema import DAY_US, Reading, days_of

MOST_DAYS = 32


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200)), max_size=200),
    st.integers(1, 50),
)
def test_every_reading_goes_into_one_part_and_each_part_is_bounded_and_in_order(
    series_and_day: list[tuple[str, int]], most: int
) -> None:
    readings = [
        Reading(device, "t", day * DAY_US + n, n.to_bytes(16, "big"), 1.0)
        for n, (device, day) in enumerate(series_and_day)
    ]
    order = sorted(range(len(readings)), key=lambda n: readings[n].key)
    parts = [list(part) for part in cut(readings, order, most)]
    assert sorted(index for part in parts for index in part) == list(range(len(readings)))
    for part in parts:
        assert 0 < len(part) <= most
        assert len(days_of(readings[n] for n in part)) <= MOST_DAYS
        assert [readings[n].key for n in part] == sorted(readings[n].key for n in part)


def test_an_ordinary_batch_is_one_part() -> None:
    readings = [Reading("d", "t", n, bytes(16), 1.0) for n in range(100)]
    assert [list(part) for part in cut(readings, range(100), 100)] == [list(range(100))]


def test_readings_that_are_all_twins_are_no_part() -> None:
    """Twins go apart, so `order` may lack readings whose days are counted."""
    readings = [Reading("d", "t", day * DAY_US, bytes(16), 1.0) for day in range(2 * MOST_DAYS)]
    assert list(cut(readings, [], 10)) == []


def test_a_long_history_does_not_tear_the_other_readings_apart() -> None:
    """A part is a range of days, so all that was measured today stays in one."""
    history = [Reading("old", "t", day * DAY_US, bytes(16), 1.0) for day in range(0, 3650, 7)]
    today = [Reading(f"d{n}", "t", 9000 * DAY_US, bytes(16), 1.0) for n in range(200)]
    readings = history + today
    order = sorted(range(len(readings)), key=lambda n: readings[n].key)
    parts = list(cut(readings, order, 5000))
    assert len(parts) == -(-(len(history) + 1) // MOST_DAYS)
    assert len([part for part in parts if any(n >= len(history) for n in part)]) == 1
