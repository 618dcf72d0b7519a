"""Batches into a real table: what arrives, what is told apart, and what one bad row does to the others."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import staging
from schema import DAY_US, Batch, Fate, Outcome, Parsed, Reading, Reason, Rejection, days_of
from staging import RowsMissing
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, Rig, batch_of, reading, rig, together

COLUMNS = """
    select device_id, sensor_type, (extract(epoch from "timestamp") * 1000000)::bigint, message_id,
           value, value_text, metadata::text
    from sensor_readings
"""


@pytest.fixture
def one(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        yield made


def stored(database: Database) -> set[tuple[object, ...]]:
    """The table's rows, as tuples that can be compared with `Reading`s; floats by their bits."""
    found = database.rows(COLUMNS)
    rows: set[tuple[object, ...]] = {
        (*row[:3], row[3].bytes, row[4] and bits(row[4]), *row[5:]) for row in found
    }
    assert len(rows) == len(found)
    return rows


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def fates(outcome: Outcome) -> Counter[Fate]:
    return Counter(settled.fate for settled in outcome.settled)


def rejections(outcome: Outcome) -> dict[int, Rejection]:
    """The rejection of each entry that has one, by its place in the batch."""
    return {n: settled.rejection for n, settled in enumerate(outcome.settled) if settled.rejection}


ODD_READINGS = [
    reading(1, device_id="küche", sensor_type="温度", value=21.5),
    reading(2, device_id="a" * 100, sensor_type="\U0001f321" * 100),
    reading(3, device_id="quote\"s and 'backslashes\\", sensor_type="tab\tand\nline"),
    reading(4, value=-0.0),
    reading(5, value=0.0),
    reading(6, value=1.7976931348623157e308),
    reading(7, value=-1.7976931348623157e308),
    reading(8, value=5e-324),
    reading(9, value=0.1 + 0.2),
    reading(10, value=None, value_text="on"),
    reading(11, value=None, value_text="Grüße " * 2000),
    reading(12, metadata=b'{"room": "b\xc3\xbcro", "n": 12345678901234567890.5, "deep": {"a": [1, null]}}'),
    reading(13, value=None, value_text="", metadata=b"{}"),
    reading(14, timestamp_us=1),
    reading(15, timestamp_us=YESTERDAY_US + 999_999),
    reading(16, timestamp_us=4_102_444_799_999_999),
    reading(17, message_id=bytes(16)),
    reading(18, message_id=b"\xff" * 16),
    reading(19, message_id=bytes(range(16))),
]


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
def test_every_column_arrives_as_it_was_given(one: Rig, database: Database, redelivered: bool) -> None:
    outcome = one.writer.write(batch_of(ODD_READINGS, redelivered=redelivered))
    assert fates(outcome) == {Fate.STORED: len(ODD_READINGS)}
    with psycopg.connect(database.url) as connection:
        normal = {
            r.metadata: connection.execute("select %s::jsonb::text", [r.metadata.decode()]).fetchone()
            for r in ODD_READINGS
            if r.metadata
        }
    assert stored(database) == {
        (
            *r.key,
            r.value and bits(r.value),
            r.value_text,
            normal[r.metadata][0] if r.metadata else None,  # type: ignore[index]
        )
        for r in ODD_READINGS
    }
    zero = database.rows("select value from sensor_readings where value = 0 order by message_id")
    assert [bits(value) for (value,) in zero] == [bits(-0.0), bits(0.0)]


def test_created_at_is_when_it_was_stored(one: Rig, database: Database) -> None:
    one.writer.write(batch_of([reading(1)]))
    assert database.rows(
        "select count(*) from sensor_readings"
        " where created_at between now() - interval '1 minute' and now()"
    ) == [(1,)]


def test_a_fresh_batch_goes_by_copy_and_a_redelivered_one_through_staging(
    one: Rig, database: Database
) -> None:
    first, second = [reading(n) for n in range(100)], [reading(n) for n in range(50, 150)]
    assert fates(one.writer.write(batch_of(first))) == {Fate.STORED: 100}
    assert one.stats.batches_staged == 0
    outcome = one.writer.write(batch_of(second, redelivered=True))
    assert fates(outcome) == {Fate.DUPLICATE: 50, Fate.STORED: 50}
    assert [settled.fate for settled in outcome.settled] == [Fate.DUPLICATE] * 50 + [Fate.STORED] * 50
    assert (outcome.readings_stored, outcome.readings_duplicate) == (50, 50)
    assert one.stats.batches_staged == 1
    assert database.count() == 150


def test_a_redelivered_entry_that_names_itself_counts_as_stored_though_its_row_was_there(
    one: Rig, database: Database
) -> None:
    readings = [reading(n) for n in range(10)]
    one.writer.write(batch_of(readings, own_id=True))
    outcome = one.writer.write(batch_of(readings, own_id=True, redelivered=True))
    assert fates(outcome) == {Fate.STORED: 10}
    assert database.count() == 10


def test_a_unique_violation_of_a_fresh_batch_falls_back_to_staging(one: Rig, database: Database) -> None:
    one.writer.write(batch_of([reading(40)]))
    outcome = one.writer.write(batch_of([reading(n) for n in range(100)]))
    assert fates(outcome) == {Fate.STORED: 99, Fate.DUPLICATE: 1}
    assert outcome.settled[40].fate is Fate.DUPLICATE
    assert (one.stats.batches_staged, one.stats.errors) == (1, 0)
    assert database.count() == 100


VARIANTS = [
    (reading(1, value=1.0), reading(1, value=2.0)),
    (reading(1, value=1.0), reading(1, value_text="1.0")),
    (reading(1, value_text="on"), reading(1, value_text="off")),
    (reading(1, value_text="on"), reading(1, value=1.0)),
    (reading(1, value=1.0), reading(1, value=1.0000000000000002)),
]


@pytest.mark.parametrize("path", ["twins", "staged", "fallback"])
@pytest.mark.parametrize(("first", "second"), VARIANTS)
def test_another_value_of_the_same_key_is_a_conflict(
    one: Rig, database: Database, path: str, first: Reading, second: Reading
) -> None:
    if path == "twins":
        outcome = one.writer.write(batch_of([first, second, reading(2)]))
        there = 1
    else:
        one.writer.write(batch_of([first]))
        outcome = one.writer.write(batch_of([second, reading(2)], redelivered=path == "staged"))
        there = 0
    assert {n: found.reason for n, found in rejections(outcome).items()} == {there: Reason.CONFLICT}
    assert rejections(outcome)[there].device_id == second.device_id
    assert outcome.settled[-1].fate is Fate.STORED
    kept = database.rows("select value, value_text from sensor_readings where message_id = %s", uuid_of(1))
    assert kept == [(first.value, first.value_text)]


@pytest.mark.parametrize("path", ["twins", "staged", "fallback"])
@pytest.mark.parametrize("same", [reading(1, value=-1.5), reading(1, value_text="on")])
def test_the_same_value_of_the_same_key_is_a_duplicate(
    one: Rig, database: Database, path: str, same: Reading
) -> None:
    if path == "twins":
        outcome = one.writer.write(batch_of([same, same, reading(2)]))
        assert [settled.fate for settled in outcome.settled] == [Fate.STORED, Fate.DUPLICATE, Fate.STORED]
    else:
        one.writer.write(batch_of([same]))
        outcome = one.writer.write(batch_of([same, reading(2)], redelivered=path == "staged"))
        assert [settled.fate for settled in outcome.settled] == [Fate.DUPLICATE, Fate.STORED]
    assert outcome.readings_duplicate == 1
    assert database.count() == 2


@pytest.mark.parametrize("path", ["twins", "staged", "fallback"])
def test_zero_and_negative_zero_are_the_same_value_on_every_path(one: Rig, path: str) -> None:
    if path == "twins":
        outcome = one.writer.write(batch_of([reading(1, value=0.0), reading(1, value=-0.0)]))
    else:
        one.writer.write(batch_of([reading(1, value=0.0)]))
        outcome = one.writer.write(batch_of([reading(1, value=-0.0)], redelivered=path == "staged"))
    assert outcome.settled[-1].fate is Fate.DUPLICATE


def test_a_twin_of_a_row_that_is_in_the_table_with_another_value_is_compared_with_what_was_decided(
    one: Rig, database: Database
) -> None:
    one.writer.write(batch_of([reading(1, value=1.0)]))
    outcome = one.writer.write(
        batch_of([reading(1, value=2.0), reading(1, value=2.0), reading(2)], redelivered=True)
    )
    assert {n: found.reason for n, found in rejections(outcome).items()} == {
        0: Reason.CONFLICT,
        1: Reason.CONFLICT,
    }
    assert database.rows("select value from sensor_readings order by value") == [(1.0,), (2.0,)]


def test_a_twin_that_repeats_the_stored_row_is_a_duplicate_though_its_sibling_conflicts(one: Rig) -> None:
    """Stored 1; then 2 and 1 in one batch: the 2 conflicts, the 1 is what the table holds already."""
    one.writer.write(batch_of([reading(1, value=1.0)]))
    outcome = one.writer.write(batch_of([reading(1, value=2.0), reading(1, value=1.0)], redelivered=True))
    assert [settled.fate for settled in outcome.settled] == [Fate.DEAD_LETTERED, Fate.DUPLICATE]


def test_a_twin_of_a_refused_row_is_judged_on_its_own(one: Rig, database: Database) -> None:
    database.rows(CHECK)
    outcome = one.writer.write(batch_of([reading(1, value=667.0), reading(1, value=1.0)]))
    assert [settled.fate for settled in outcome.settled] == [Fate.DEAD_LETTERED, Fate.STORED]
    assert {n: found.reason for n, found in rejections(outcome).items()} == {0: Reason.REFUSED_BY_DATABASE}


def test_thousands_of_twins_in_one_batch_are_sorted_out_in_a_few_transactions(
    one: Rig, database: Database
) -> None:
    outcome = one.writer.write(batch_of([reading(1, value=float(n % 3)) for n in range(3000)]))
    assert fates(outcome) == {Fate.STORED: 1, Fate.DUPLICATE: 999, Fate.DEAD_LETTERED: 2000}
    assert outcome.settled[0].fate is Fate.STORED
    assert database.rows("select value from sensor_readings") == [(0.0,)]
    assert len(one.writer.transactions) == 2


def uuid_of(number: int) -> str:
    return number.to_bytes(16, "big").hex()


CHECK = "alter table sensor_readings add constraint not_667 check (value <> 667)"
FUNCTION = """
    create function refuse() returns trigger language plpgsql as
    $$ begin if new.value = 667 then raise exception 'no 667 here'; end if; return new; end $$
"""
TRIGGER = "create trigger refuse before insert on sensor_readings for each row execute function refuse()"


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
@pytest.mark.parametrize(
    ("statements", "said"),
    [([CHECK], "SQLSTATE 23514, "), ([FUNCTION, TRIGGER], "SQLSTATE P0001, RaiseException")],
    ids=["check", "trigger"],
)
def test_one_refused_row_of_a_thousand_is_found_and_the_others_are_stored(
    one: Rig, database: Database, statements: list[str], said: str, redelivered: bool
) -> None:
    for statement in statements:
        database.rows(statement)
    outcome = one.writer.write(batch_of([reading(n) for n in range(1000)], redelivered=redelivered))
    assert fates(outcome) == {Fate.STORED: 999, Fate.DEAD_LETTERED: 1}
    (place, rejection), *_ = rejections(outcome).items()
    assert (place, rejection.reason, rejection.value) == (667, Reason.REFUSED_BY_DATABASE, "667.0")
    assert said in rejection.sentence
    assert database.rows("select count(*), count(*) filter (where value = 667) from sensor_readings") == [
        (999, 0)
    ]
    assert len(one.writer.transactions) <= 2 * 10 + 1
    assert one.stats.errors == 0


@pytest.mark.parametrize(
    "metadata", [b'{"a": ', b'{"a": "\\u0000"}', b'{"a": "\xff"}', b"", b'{"a": 1e200000}']
)
@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
def test_metadata_that_jsonb_refuses_costs_its_own_reading_only(
    one: Rig, database: Database, metadata: bytes, redelivered: bool
) -> None:
    readings = [reading(n) for n in range(1000)]
    readings[123] = readings[123]._replace(metadata=metadata)
    outcome = one.writer.write(batch_of(readings, redelivered=redelivered))
    assert {n: found.reason for n, found in rejections(outcome).items()} == {
        123: Reason.REFUSED_BY_DATABASE
    }
    assert database.count() == 999


@pytest.mark.parametrize(
    "changes",
    [{"device_id": "x" * 101}, {"device_id": "nul\0"}, {"value_text": "n\0l"}, {"value_text": None}],
    ids=["too long", "NUL in a name", "NUL in a text", "no value at all"],
)
def test_a_reading_that_no_parser_should_have_let_through_is_refused_alone(
    one: Rig, database: Database, changes: dict[str, Any]
) -> None:
    readings = [reading(n) for n in range(100)]
    readings[31] = reading(31, **changes)
    outcome = one.writer.write(batch_of(readings))
    assert {n: found.reason for n, found in rejections(outcome).items()} == {31: Reason.REFUSED_BY_DATABASE}
    assert database.count() == 99


def test_several_refused_rows_are_each_found(one: Rig, database: Database) -> None:
    database.rows("alter table sensor_readings add constraint tame check (value < 5000)")
    bad = {0, 1, 2, 333, 500, 998, 999}
    readings = [reading(n, value=9999.0 if n in bad else None) for n in range(1000)]
    random.Random(1).shuffle(readings)
    outcome = one.writer.write(batch_of(readings))
    assert {int.from_bytes(readings[n].message_id, "big") for n in rejections(outcome)} == bad
    assert fates(outcome) == {Fate.STORED: 993, Fate.DEAD_LETTERED: 7}
    assert database.count() == 993


def test_a_batch_of_refused_rows_only_stores_nothing_and_ends(one: Rig, database: Database) -> None:
    database.rows("alter table sensor_readings add constraint none check (value < 0)")
    outcome = one.writer.write(batch_of([reading(n) for n in range(50)]))
    assert fates(outcome) == {Fate.DEAD_LETTERED: 50}
    assert database.count() == 0


def test_an_entry_with_one_refused_reading_keeps_its_other_readings(one: Rig, database: Database) -> None:
    database.rows(CHECK)
    both = Parsed([reading(1), reading(2, value=667.0), reading(3)], ())
    alone = batch_of([reading(4)])
    outcome = one.writer.write(Batch.of([*alone.entries, *alone.entries], [both, *alone.others.values()]))
    assert [settled.fate for settled in outcome.settled] == [Fate.DEAD_LETTERED, Fate.STORED]
    assert (outcome.readings_stored, outcome.readings_rejected) == (3, 1)
    assert database.count() == 3


def test_a_large_batch_over_many_days_is_cut_into_bounded_transactions(database: Database) -> None:
    readings = [
        reading(n, timestamp_us=YESTERDAY_US - (n * 37 % 100) * DAY_US + n, device_id=f"d{n % 5}")
        for n in range(1200)
    ]
    with rig(database, batch_size=150) as one:
        outcome = one.writer.write(batch_of(readings))
        transactions = one.writer.transactions
    assert fates(outcome) == {Fate.STORED: 1200}
    assert database.count() == 1200
    assert max(len(part) for part in transactions) <= 150
    assert max(len(days_of(part)) for part in transactions) <= 32
    assert all([r.key for r in part] == sorted(r.key for r in part) for part in transactions)
    assert sorted(r.key for part in transactions for r in part) == sorted(r.key for r in readings)


def test_an_empty_batch_and_one_of_rejections_only_ask_nothing_of_the_database(one: Rig) -> None:
    bad = Rejection(Reason.VALUE_NAN, "no")
    single = batch_of([reading(1)])
    outcome = one.writer.write(Batch.of(single.entries, [Parsed((), [bad])]))
    assert [(settled.fate, settled.rejection) for settled in outcome.settled] == [(Fate.DEAD_LETTERED, bad)]
    assert one.writer.write(Batch.of((), ())).settled == []
    assert one.writer.transactions == []


@pytest.mark.parametrize("trial", range(8))
def test_four_writers_with_the_same_rows_in_different_orders_store_each_once_without_an_error(
    database: Database, trial: int
) -> None:
    readings = [reading(n) for n in range(5000)]
    rigs = [Rig(database) for _ in range(4)]
    batches = []
    for number in range(4):
        mixed = readings[:]
        random.Random(10 * trial + number).shuffle(mixed)
        batches.append(batch_of(mixed, redelivered=(trial + number) % 2 == 0))
    try:
        outcomes = together(
            [lambda r=r, b=b: r.writer.write(b) for r, b in zip(rigs, batches, strict=True)]  # type: ignore[misc]
        )
    finally:
        for made in rigs:
            made.writer.close()
    counts = "select count(*), count(distinct message_id) from sensor_readings"
    assert database.rows(counts) == [(5000, 5000)]
    assert sum((fates(outcome) for outcome in outcomes), Counter()) == {
        Fate.STORED: 5000,
        Fate.DUPLICATE: 15_000,
    }
    assert [made.stats.errors for made in rigs] == [0, 0, 0, 0]


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
def test_rows_that_a_trigger_drops_in_silence_are_never_called_stored(
    one: Rig, database: Database, redelivered: bool
) -> None:
    database.rows(
        "create function swallow() returns trigger language plpgsql as $$ begin return null; end $$"
    )
    database.rows(
        "create trigger swallow before insert on sensor_readings for each row execute function swallow()"
    )
    with pytest.raises(RowsMissing):
        one.writer.write(batch_of([reading(1)], redelivered=redelivered))
    assert database.count() == 0


def test_telling_duplicates_apart_opens_no_partition_between_the_oldest_and_the_newest(
    plain_database: Database,
) -> None:
    days = (1, 2, 20_000)
    with rig(plain_database) as one:
        rows = [reading(n, timestamp_us=day * 86_400_000_000) for n, day in enumerate(days)]
        between = [reading(n, timestamp_us=n * 86_400_000_000) for n in (500, 900)]
        one.writer.write(batch_of([*rows, *between]))
        with psycopg.connect(plain_database.url) as session:
            within = staging._within(set(days)).as_string(session)
            plan = session.execute(f"explain select from sensor_readings t where {within}").fetchall()
        outcome = one.writer.write(batch_of(rows, redelivered=True))
    assert sum("_p19710516" in line[0] or "_p19720619" in line[0] for line in plan) == 0
    assert sum("sensor_readings_p" in line[0] for line in plan) == 3
    assert outcome.readings_rejected == 0
    assert plain_database.count() == 5


def test_a_default_partition_in_the_way_is_put_off_or_waited_out_and_told(plain_database: Database) -> None:
    plain_database.rows("create table rest partition of sensor_readings default")
    plain_database.rows(
        "insert into sensor_readings values (now(), 'd', 't', 1, null, null, gen_random_uuid(), now())"
    )
    today = YESTERDAY_US + DAY_US
    with rig(plain_database) as one, capture_logs() as logs:
        one.writer.upkeep()
        assert [log["what"] for log in logs if log["event"] == "housekeeping_put_off"] == ["partitions"]
        waiting = InBackground(lambda: one.writer.write(batch_of([reading(1, timestamp_us=today)])))
        wait_until(lambda: any(log["event"] == "outage_began" for log in logs))
        plain_database.rows("drop table rest")
        waiting.result(20)
    (began,) = [log for log in logs if log["event"] == "outage_began"]
    assert "no partition could be made: CheckViolation" in began["error"]
