"""Reading back, on a real database: what the query service asks, each question by itself."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

import database as db
from database import BoundedConnection
from query import queries
from query.queries import AlertFilter, AlertRow, BucketKind, Latest, RawPoint, Wanted
from query.readings import NEWEST_CONSIDERED
from schema_check import TableKind
from tests import reading_back
from tests.alerts import add_rule
from tests.reading_back import QUESTIONS, Contract, Row, answer, kind_of, put, told
from tests.rollups import roll
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, Rig, batch_of, reading, rig
from thresholds import Kind, Severity, Status

ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia")
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
MICRO = timedelta(microseconds=1)


@pytest.fixture
def connection(database: Database) -> Iterator[BoundedConnection]:
    with db.connect(database.url, 20.0) as made:
        yield made


@pytest.fixture
def kind(database: Database) -> TableKind:
    return kind_of(database)


def test_buckets_are_as_defined_in_every_time_zone(connection: BoundedConnection, kind: TableKind) -> None:
    rows = reading_back.readings_of_a_night()
    put(connection, kind, rows)
    ways = {BucketKind.PLAIN, queries.kind_of(connection)}
    for zone in ZONES:
        connection.execute("select set_config('timezone', %s, false)", [zone])
        for name, asked in QUESTIONS.items():
            for way in ways:
                assert answer(connection, way, asked) == told(rows, asked), f"{name}, {way}, {zone}"


def test_answers_are_the_same_whatever_is_summed_up(plain_database: Database) -> None:
    with rig(plain_database) as one, db.connect(plain_database.url, 600.0) as made:
        one.writer.start()
        made.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        Contract(made, TableKind.PARTITIONED, lambda: roll(one)).hold()


class Planned(psycopg.Connection[Any]):
    """Notes the plan of every statement before it runs."""

    plans: list[str]

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Any]:
        if not hasattr(self, "plans"):
            self.plans = []
        text = query if isinstance(query, str) else query.as_string(self)
        lines = super().execute(sql.SQL("explain " + text), params).fetchall()
        self.plans.append("\n".join(line for (line,) in lines))
        return super().execute(query, params, **options)


MANY = 50_000


def many(database: Database, connection: BoundedConnection) -> None:
    """50,000 readings of one series, a second apart, and as many of 50 others; never analyzed."""
    put(connection, kind_of(database), [Row("busy", "s", T0, 0.0)])
    connection.execute(
        """
        insert into sensor_readings (device_id, sensor_type, "timestamp", value, message_id)
        select case when other then 'other-' || n %% 50 else 'busy' end, 's', %s + n * interval '0.5 s', n,
            gen_random_uuid()
        from generate_series(1, %s) as n, (values (true), (false)) as who (other)
        """,
        [T0, MANY],
    )
    connection.commit()


def test_every_look_at_the_readings_goes_by_the_primary_key(
    database: Database, connection: BoundedConnection
) -> None:
    many(database, connection)
    end = T0 + MANY * SECOND
    with Planned.connect(database.url) as planned:
        for analyzed in (False, True):
            if analyzed:
                connection.execute("analyze sensor_readings")
                connection.commit()
            db.start_clock(connection, 20.0)
            for way in {BucketKind.PLAIN, queries.kind_of(connection)}:
                found = queries.buckets(connection, way, "busy", ["s"], T0, end, 1)
                assert len(found["s"]) == MANY
                assert sum(bucket.avg is not None for bucket in found["s"]) == MANY // 2 + 1
                queries.buckets(planned, way, "busy", ["s"], T0, T0 + 3600 * SECOND, 60)
                queries.buckets(planned, way, "busy", [], T0, T0 + 60 * SECOND, 1)
            assert queries.latest(planned, "busy") == [Latest("s", MANY, T0 + MANY * SECOND / 2)]
            queries.raw(planned, "busy", ["s"], T0, T0 + 600 * SECOND, 100)
            queries.raw(planned, "busy", [], T0, T0 + 600 * SECOND, 100)
            for most in (100, 1_000):
                asked = [
                    Wanted(series=("busy", "s"), start=T0, end=T0 + 3600 * SECOND, stored=T0, most=most),
                    Wanted(series=("nobody", "s"), start=T0, most=most),
                ]
                queries.arrivals(planned, asked)
                queries.arrivals(planned, asked, newest=True)
    assert len([plan for plan in planned.plans if "_pkey" in plan]) >= 12
    for plan in planned.plans:
        assert not re.search(r"Seq Scan on \S*(sensor_readings|_hyper_)", plan), plan


def test_the_latest_are_the_newest_rows_of_the_table_however_far_behind_the_registry_is(
    connection: BoundedConnection, kind: TableKind
) -> None:
    rows = [
        *(Row("d", "fresh", T0 + n * SECOND, n) for n in range(5)),
        *(Row("d", "quiet", T0 - 40 * DAY + n * SECOND, n) for n in range(3)),
        Row("d", "registered only", T0 - 3 * DAY, 8.0),
        Row("d", "state", T0, None, "on"),
        Row("d", "state since", T0 - 2 * DAY, 5.0),
        Row("d", "state since", T0, None, "off"),
        Row("e", "fresh", T0 + DAY, 99.0),
    ]
    put(connection, kind, rows)
    expected = [
        Latest("fresh", 4.0, T0 + 4 * SECOND),
        Latest("quiet", 2.0, T0 - 40 * DAY + 2 * SECOND),
        Latest("registered only", 8.0, T0 - 3 * DAY),
        Latest("state since", 5.0, T0 - 2 * DAY),
    ]
    known = ("last_time", "last_time - interval '1 minute'", "null", "last_time + interval '90 days'")
    for last_time in known:
        connection.execute(f"update series set last_time = {last_time}".encode())
        assert queries.latest(connection, "d") == expected, last_time
    for seen in (T0 - 400 * DAY, T0 - 2 * DAY, T0, T0 + 5 * DAY):
        assert queries.latest(connection, "d", seen=seen) == expected, seen
    assert queries.sensors(connection, "d") == [
        *(row.sensor for row in expected[:3]),
        "state",
        "state since",
    ]
    assert queries.latest(connection, "nobody") == []
    assert queries.latest(connection, "nobody", seen=T0) == []
    assert queries.sensors(connection, "nobody") == []


def test_of_two_readings_of_one_time_the_latest_is_always_the_same(
    connection: BoundedConnection, kind: TableKind
) -> None:
    put(connection, kind, [Row("d", "s", T0, 1.0), Row("d", "s", T0, 2.0)])  # message ids 0 and 1
    assert queries.latest(connection, "d") == [Latest("s", 2.0, T0)]


def test_a_number_behind_too_many_states_is_not_looked_for(
    connection: BoundedConnection, kind: TableKind
) -> None:
    states = [Row("d", "s", T0 + n * SECOND, None, "on") for n in range(1, NEWEST_CONSIDERED)]
    put(connection, kind, [Row("d", "s", T0, 1.0), *states])
    assert queries.latest(connection, "d") == [Latest("s", 1.0, T0)]
    connection.execute(
        "insert into sensor_readings (device_id, sensor_type, timestamp, value_text, message_id)"
        " values ('d', 's', %s, 'on', %s)",
        [T0 + SECOND / 2, uuid.uuid4()],
    )
    assert queries.latest(connection, "d") == []


def test_raw_readings_are_those_from_the_start_to_just_before_the_end(
    connection: BoundedConnection, kind: TableKind
) -> None:
    end = T0 + 4 * SECOND
    times = [T0 - MICRO, T0, T0 + MICRO, end - MICRO, end]
    rows = [Row("d", sensor, time, number) for sensor in "ab" for number, time in enumerate(times)]
    put(connection, kind, [*rows, Row("d", "c", T0, None, "on"), Row("e", "a", T0, 7.0)])
    within = [RawPoint(time, number) for number, time in enumerate(times) if number in (1, 2, 3)]
    for zone in ZONES:
        connection.execute("select set_config('timezone', %s, false)", [zone])
        assert queries.raw(connection, "d", [], T0, end, 100) == {"a": within, "b": within}
    assert queries.raw(connection, "d", ["z", "b", "z"], T0, end, 100) == {"z": [], "b": within}
    assert queries.raw(connection, "nobody", [], T0, end, 100) == {}
    assert queries.raw(connection, "d", [], end, T0, 100) == {}


def test_a_limit_holds_for_all_series_together(connection: BoundedConnection, kind: TableKind) -> None:
    put(connection, kind, [Row("d", sensor, T0 + n * SECOND, n) for sensor in "ab" for n in range(10)])
    found = queries.raw(connection, "d", [], T0, T0 + DAY, 13)
    assert {sensor: len(points) for sensor, points in found.items()} == {"a": 10, "b": 3}


def test_arrivals_are_found_by_range_and_by_when_they_were_stored(
    connection: BoundedConnection, kind: TableKind
) -> None:
    rows = [Row("d", "s", T0 + n // 3 * SECOND, n) for n in range(20)]  # three of each time
    put(connection, kind, [*rows, Row("d", "t", T0, 7.0), Row("d", "s", T0 + SECOND, None, "x" * 5_000)])
    long_ago = T0 - DAY
    connection.execute("update sensor_readings set created_at = %s where value < 12", [long_ago])

    def found(**changes: Any) -> list[float | str | None]:
        values: dict[str, Any] = {"series": ("d", "s"), "start": T0, "most": 100} | changes
        newest = values.pop("newest", False)
        nothing = Wanted(series=("nobody", "s"), start=T0, most=5)
        _, (nobody, mine) = queries.arrivals(connection, [nothing, Wanted(**values)], newest=newest)
        assert nobody == []
        assert [one.time for one in mine] == sorted(one.time for one in mine)
        assert len({one.key for one in mine}) == len(mine)
        return [one.text if one.value is None else one.value for one in mine]

    state = "x" * 1_000  # what a state is cut to
    numbers = [row.value for row in rows]
    assert found() == [*numbers[:6], state, *numbers[6:]]
    assert found(most=2) == [0, 1]
    assert found(most=2, newest=True) == [18, 19]
    assert found(start=T0 + SECOND, end=T0 + SECOND) == [3, 4, 5, state]
    assert found(stored=T0) == [state, *range(12, 20)]
    passed = T0 + 5 * SECOND
    assert found(passed=passed, passed_stored=datetime.now(UTC) + DAY) == [18, 19]
    assert found(passed=passed, passed_stored=T0) == [state, *range(12, 20)]
    assert queries.known(connection, [("d", "s"), ("nobody", "s"), ("d", "t")]).keys() == {
        ("d", "s"),
        ("d", "t"),
    }


def alert(connection: BoundedConnection, seconds: int, **columns: Any) -> None:
    """One row as a worker leaves it: created so many seconds after T0."""
    values: dict[str, Any] = {
        "id": uuid.UUID(int=1000 + seconds),
        "threshold_id": f"rule-{uuid.uuid4()}",
        "device_id": "d",
        "sensor_type": "temp",
        "threshold_type": "max",
        "severity": "warning",
        "status": "active",
        "place_id": "home",
        "first_time": T0,
        "last_time": T0,
        "created_at": T0 + seconds * SECOND,
    } | columns
    statement = sql.SQL("insert into alerts ({}) values ({})").format(
        db.identifiers(tuple(values)), sql.SQL(", ").join([sql.Placeholder()] * len(values))
    )
    connection.execute(statement, list(values.values()))


def seconds_of(found: tuple[list[AlertRow], int]) -> list[int]:
    rows, total = found
    assert len(rows) == total
    return [row.id.int - 1000 for row in rows]


def some_alerts(connection: BoundedConnection) -> None:
    alert(connection, 1, place_id="office")
    alert(connection, 2, severity="critical", sensor_id="s-1")
    alert(connection, 3, status="resolved", resolved_at=T0 + DAY)
    alert(connection, 4, device_id="e", value=31.5, threshold_value=30.0)
    alert(connection, 5, status="pending", created_at=None)
    alert(connection, 6, threshold_type="equals", value_text="open", threshold_text="open", place_id="")


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (AlertFilter(), [6, 4, 3, 2, 1]),
        (AlertFilter(place_id="home"), [4, 3, 2]),
        (AlertFilter(place_id=""), [6]),
        (AlertFilter(status=Status.RESOLVED), [3]),
        (AlertFilter(status=Status.ACTIVE), [6, 4, 2, 1]),
        (AlertFilter(status=Status.PENDING), []),
        (AlertFilter(severity=Severity.CRITICAL), [2]),
        (AlertFilter(sensor_id="s-1"), [2]),
        (AlertFilter(device_id="e"), [4]),
        (AlertFilter(start=T0 + 2 * SECOND, end=T0 + 4 * SECOND), [3, 2]),
        (AlertFilter(place_id="home", severity=Severity.WARNING, status=Status.ACTIVE), [4]),
        (AlertFilter(device_id="nobody"), []),
    ],
    ids=repr,
)
def test_alerts_are_chosen_by_every_condition_and_never_pending(
    connection: BoundedConnection, which: AlertFilter, expected: list[int]
) -> None:
    some_alerts(connection)
    assert seconds_of(queries.alerts(connection, which, 1, 10)) == expected


def test_an_alert_is_told_with_numbers_or_with_states(connection: BoundedConnection) -> None:
    some_alerts(connection)
    state, number, ended, *_ = queries.alerts(connection, AlertFilter(), 1, 10)[0]
    assert (state.value, state.value_text, state.threshold_text) == (None, "open", "open")
    assert (number.value, number.threshold_value, number.threshold_type) == (31.5, 30.0, Kind.MAX)
    assert (number.key, number.created_at, number.resolved_at) == ("temp", T0 + 4 * SECOND, None)
    assert (ended.status, ended.resolved_at) == (Status.RESOLVED, T0 + DAY)


def test_pages_are_disjoint_and_complete_also_among_alerts_of_one_time(
    connection: BoundedConnection,
) -> None:
    for number in range(25):
        alert(connection, number, created_at=T0)
    pages = [queries.alerts(connection, AlertFilter(), page, 10) for page in (1, 2, 3, 4)]
    assert [(len(rows), total) for rows, total in pages] == [(10, 25), (10, 25), (5, 25), (0, 25)]
    assert [row.id.int - 1000 for rows, _ in pages for row in rows] == list(range(24, -1, -1))


def test_unresolved_alerts_are_counted_by_place(connection: BoundedConnection) -> None:
    some_alerts(connection)
    assert queries.alert_counts(connection, []) == ({"home": 2, "office": 1, "": 1}, 4)
    assert queries.alert_counts(connection, ["home", "nowhere"]) == ({"home": 2}, 2)


def temperature(second: int, value: float) -> Any:
    number = YESTERDAY_US + second * 1_000_000
    return reading(second, value, device_id="kitchen", sensor_type="temperature", timestamp_us=number)


def write(one: Rig, *readings: Any) -> None:
    one.writer._knowledge._next_look = 0.0  # not by notification, which may take a moment
    one.writer.write(batch_of(readings))


@pytest.fixture
def hot(database: Database) -> Iterator[Rig]:
    """A worker with a rule, and an alert that it has opened."""
    with rig(database, publish_alerts=True) as made:
        add_rule(database, id="hot", kind="max", value=30)
        write(made, temperature(1, 31))
        yield made


STATES = "select status, resolved_due, resolved_at from alerts order by number"


def only_alert(connection: BoundedConnection) -> uuid.UUID:
    ((row,), _) = queries.alerts(connection, AlertFilter(), 1, 10)
    connection.rollback()
    return row.id


def test_an_alert_that_is_resolved_by_hand_is_due_for_publishing_once_and_stays_as_it_is(
    database: Database, connection: BoundedConnection, hot: Rig
) -> None:
    now = datetime.now(UTC)
    ended = queries.resolve_alert(connection, only_alert(connection), now)
    assert ended is not None
    assert (ended.status, ended.resolved_at) == (Status.RESOLVED, now)
    assert database.rows(STATES) == [("resolved", True, now)]
    database.rows("update alerts set resolved_due = false")  # it was published
    assert queries.resolve_alert(connection, ended.id, now + DAY) == ended
    assert database.rows(STATES) == [("resolved", False, now)]


def test_nothing_is_resolved_that_is_pending_or_unknown_and_nothing_before_it_began(
    connection: BoundedConnection,
) -> None:
    some_alerts(connection)
    assert queries.resolve_alert(connection, uuid.UUID(int=1005), T0) is None
    assert queries.resolve_alert(connection, uuid.uuid4(), T0) is None
    ended = queries.resolve_alert(connection, uuid.UUID(int=1004), T0 - DAY, publish=False)
    assert ended is not None
    assert ended.resolved_at == T0 + 4 * SECOND
    due = connection.execute("select 1 from alerts where resolved_due or status = 'pending'")
    assert len(due.fetchall()) == 1


def test_a_value_that_still_violates_opens_a_new_alert_at_its_next_reading_only(
    database: Database, connection: BoundedConnection, hot: Rig
) -> None:
    queries.resolve_alert(connection, only_alert(connection), datetime.now(UTC))
    write(hot, temperature(1, 31))  # redelivered: it was judged
    assert len(database.rows(STATES)) == 1
    write(hot, temperature(2, 32))
    write(hot, temperature(3, 33))
    assert [status for status, *_ in database.rows(STATES)] == ["resolved", "active"]
    write(hot, temperature(4, 29))
    assert [status for status, *_ in database.rows(STATES)] == ["resolved", "resolved"]


def waits(database: Database) -> bool:
    return bool(
        database.rows(
            "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
    )


def test_a_worker_that_meets_an_alert_while_it_is_resolved_waits_and_opens_the_next(
    database: Database, connection: BoundedConnection, hot: Rig
) -> None:
    found = only_alert(connection)
    with connection.transaction():
        queries.resolve_alert(connection, found, datetime.now(UTC))
        writing = InBackground(lambda: write(hot, temperature(2, 32)))
        wait_until(lambda: waits(database))
    writing.result()
    assert [status for status, *_ in database.rows(STATES)] == ["resolved", "active"]
    assert hot.stats.errors == 0


def test_resolving_waits_for_the_worker_that_has_the_alert_and_keeps_what_it_did(
    database: Database, connection: BoundedConnection, hot: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only_alert(connection)
    judge = hot.writer._judge
    resolving: list[InBackground[AlertRow | None]] = []

    def held(*arguments: Any) -> Any:
        """The worker has moved the alert and not committed: meanwhile somebody resolves it."""
        judged = judge(*arguments)
        now = datetime.now(UTC)
        resolving.append(InBackground(lambda: queries.resolve_alert(connection, found, now)))
        wait_until(lambda: waits(database))
        return judged

    monkeypatch.setattr(hot.writer, "_judge", held)
    write(hot, temperature(2, 20))
    ended = resolving[0].result()
    assert ended is not None
    cleared_at = datetime.fromtimestamp(YESTERDAY_US / 1_000_000 + 2, UTC)
    assert ended.resolved_at == cleared_at  # the reading's time: the worker was first
    assert database.rows(STATES) == [("resolved", True, cleared_at)]


def test_a_silence_that_is_resolved_by_hand_is_measured_and_told_as_over(
    connection: BoundedConnection,
) -> None:
    since = datetime.now(UTC) - DAY
    alert(connection, 1, threshold_type="silence", value=60.0, first_time=since, last_time=since)
    queries.resolve_alert(connection, uuid.UUID(int=1001), datetime.now(UTC))
    row = connection.execute("select last_time > first_time, last_value, peak_value from alerts").fetchone()
    assert row is not None
    assert row[0]
    assert 86_400 <= row[1] < 86_460
    assert row[1] == row[2]


def left(database: Database) -> dict[str, tuple[int, int]]:
    """Readings and alerts of each device."""
    query = """
        select device_id, count(*) filter (where what = 'r'), count(*) filter (where what = 'a')
        from (select device_id, 'r' as what from sensor_readings
              union all select device_id, 'a' from alerts) as every
        group by device_id
    """
    return {device: (readings, alerts) for device, readings, alerts in database.rows(query)}


def delete_all(connection: BoundedConnection, devices: Sequence[str], limit: int) -> list[int]:
    """Step by step; how many each has deleted."""
    steps = []
    while deleted := queries.delete_readings(connection, devices, limit):
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        steps.append(deleted)
    return steps


def test_deleting_takes_alerts_then_readings_of_these_devices_alone_in_bounded_steps(
    database: Database, connection: BoundedConnection, kind: TableKind
) -> None:
    rows = [
        Row(device, sensor, T0 + n % 40 * DAY + n * SECOND, n)
        for device in ("d", "e", "kept")
        for sensor in ("s", "t")
        for n in range(100)
    ]
    put(connection, kind, rows)
    for number, device in enumerate(("d", "d", "kept", "e")):
        alert(connection, number, device_id=device)
    connection.commit()
    assert queries.delete_readings(connection, ["d", "e", "nobody", "d"], 2) == 2
    assert left(database)["d"] == (200, 0)
    steps = delete_all(connection, ["d", "e", "nobody", "d"], 60)
    assert sum(steps) == 401
    assert max(steps) <= 60
    assert left(database) == {"kept": (200, 1)}
    assert len(database.rows("select 1 from series")) == 6
    assert queries.delete_readings(connection, [], 60) == 0
