"""From the fates of rows to the fates of entries."""

from __future__ import annotations

from collections.abc import Sequence

from fates import decide, summarise
from schema import (
    Batch,
    Entry,
    Fate,
    Parsed,
    Reading,
    Reason,
    Rejection,
    RowFate,
    days_of,
)

READING = Reading("d", "t", 0, bytes(16), 1.0)
BAD = Rejection(Reason.VALUE_NAN, "the value is nan", "d", "t")
IN, THERE = RowFate.STORED, RowFate.DUPLICATE


def fates(
    parsed: Sequence[Parsed],
    rows: Sequence[RowFate | Rejection],
    *,
    redelivered: bool = False,
    retried: bool = False,
) -> list[Fate]:
    entries = [Entry(b"s", b"%d-0" % n, [b"value", b"1"]) for n in range(len(parsed))]
    outcome = decide(Batch.of(entries, parsed, redelivered), rows, retried)
    assert [item.entry for item in outcome.settled] == entries
    readings = sum(len(one.readings) for one in parsed)
    told = sum(len(one.rejections) for one in parsed)
    assert (
        outcome.readings_stored + outcome.readings_duplicate + outcome.readings_rejected == readings + told
    )
    return [item.fate for item in outcome.settled]


def own(readings: int) -> Parsed:
    return Parsed([READING] * readings, (), own_id=True)


def carried(readings: int) -> Parsed:
    return Parsed([READING] * readings, (), own_id=False)


def test_an_entry_that_put_a_row_in_is_stored() -> None:
    assert fates([own(1), carried(2)], [IN, IN, THERE]) == [Fate.STORED, Fate.STORED]


def test_an_entry_that_says_nothing_is_stored_without_rows() -> None:
    assert fates([Parsed((), ()), carried(1)], [THERE]) == [Fate.STORED, Fate.DUPLICATE]
    assert fates([Parsed((), ())], [], redelivered=True) == [Fate.STORED]


def test_an_entry_whose_rows_were_all_there_is_a_duplicate() -> None:
    assert fates([carried(2)], [THERE, THERE]) == [Fate.DUPLICATE]


def test_a_first_delivery_that_finds_its_row_is_a_duplicate() -> None:
    assert fates([own(1)], [THERE]) == [Fate.DUPLICATE]


def test_a_redelivered_entry_that_finds_its_own_row_is_stored() -> None:
    assert fates([own(1)], [THERE], redelivered=True) == [Fate.STORED]


def test_a_retried_entry_that_finds_its_own_row_is_stored() -> None:
    assert fates([own(1)], [THERE], retried=True) == [Fate.STORED]


def test_a_row_under_a_message_s_id_may_be_another_entry_s_and_stays_a_duplicate() -> None:
    assert fates([carried(1)], [THERE], redelivered=True, retried=True) == [Fate.DUPLICATE]


def test_anything_rejected_makes_a_dead_letter_of_the_entry() -> None:
    parsed = [Parsed([READING], [BAD]), own(2), Parsed((), [BAD])]
    assert fates(parsed, [IN, IN, BAD]) == [Fate.DEAD_LETTERED] * 3


def test_one_dead_letter_names_the_first_rejection_and_lists_the_others() -> None:
    others = [BAD._replace(sensor_type=f"s{n}") for n in range(8)]
    summary = summarise([BAD, *others])
    assert (summary.reason, summary.sensor_type) == (Reason.VALUE_NAN, "t")
    assert summary.sentence == (
        "the value is nan; also rejected: s0: value_nan, s1: value_nan, s2: value_nan, s3: value_nan,"
        " s4: value_nan and 3 more"
    )
    assert summarise([BAD]) == BAD


def test_days_are_counted_in_utc() -> None:
    day = 86_400_000_000
    moments = [0, day - 1, day, 5 * day + 3]
    assert days_of(READING._replace(timestamp_us=moment) for moment in moments) == {0, 1, 5}
