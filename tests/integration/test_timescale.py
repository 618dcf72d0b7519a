"""TimescaleDB: the schema on it, and writing into hypertables.

Migrations and policies run on TimescaleDB in WebAssembly where Node.js exists, and, like the rest, on the
server of TEST_DATABASE_URL where that has TimescaleDB.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

import config
import database as db
import main
import models
import schema_check
from config import Settings
from database import BoundedConnection
from ops import migrate, verify
from query import queries
from query.queries import Arrival, BucketKind, Wanted
from schema import DAY_US, Fate, Outcome, Reason
from schema_check import TableKind
from tests import reading_back
from tests.conftest import create_database, drop_database
from tests.reading_back import QUESTIONS, SUMMER_TIME, Contract, Row, told
from tests.support import ROOT, Database, is_long
from tests.timescale.timescale_wasm import MINIMUM_NODE, TimescaleWasm, node_available
from tests.writing import YESTERDAY_US, Rig, batch_of, reading, rig

CACHE = ROOT / ".node"
_number = itertools.count(1)
LONG_AGO_US = YESTERDAY_US - 400 * DAY_US


@pytest.fixture(scope="session")
def wasm() -> Iterator[str]:
    """The address of a TimescaleDB in WebAssembly: one database, one client at a time."""
    if not node_available():
        pytest.skip(f"needs Node.js {MINIMUM_NODE} or newer with npm, for TimescaleDB in WebAssembly")
    with TimescaleWasm(CACHE) as server:
        yield server.url


@pytest.fixture
def native(admin_url: str, has_timescale: bool) -> str:
    if not has_timescale:
        pytest.skip("needs TEST_DATABASE_URL, the address of a server with TimescaleDB")
    return admin_url


@pytest.fixture(scope="session")
def edition(admin_url: str, has_timescale: bool) -> str:
    """`timescale` or `apache`, asked where the extension is; empty without it."""
    if not has_timescale:
        return ""
    name = f"sluice_edition_{os.getpid()}"
    try:
        with psycopg.connect(create_database(admin_url, name)) as connection:
            connection.execute("create extension timescaledb")
            row = connection.execute("show timescaledb.license").fetchone()
            return str(row[0]) if row else ""
    finally:
        drop_database(admin_url, name)


@pytest.fixture
def licensed(native: str, edition: str) -> str:
    if edition != "timescale":
        pytest.skip("the server of TEST_DATABASE_URL runs TimescaleDB's Apache edition")
    return native


@pytest.fixture
def fresh(native: str) -> Iterator[str]:
    """The address of an empty database on the native server."""
    name = f"sluice_timescale_{os.getpid()}_{next(_number)}"
    yield create_database(native, name)
    drop_database(native, name)


@pytest.fixture(params=["wasm", "native"])
def empty(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without a schema, on each TimescaleDB that is here."""
    if request.param == "native":
        request.getfixturevalue("licensed")
        yield request.getfixturevalue("fresh")
        return
    url: str = request.getfixturevalue("wasm")
    sweep(url)
    yield url
    sweep(url)


def sweep(url: str) -> None:
    """WebAssembly has one database for all tests."""
    with psycopg.connect(url) as connection:
        for table in reversed(models.ROLLUPS):
            kind = connection.execute(
                "select relkind::text from pg_class where oid = to_regclass(%s)", [table]
            ).fetchone()
            if kind:
                connection.execute(f"drop {'materialized view' if kind[0] == 'v' else 'table'} {table}")
        for table in ("sensor_readings", '"Readings2"', "alembic_version", *models.BESIDE):
            connection.execute(f"drop table if exists {table}")
        for function in ("announce_series", "announce_thresholds", "stamp_threshold"):
            connection.execute(f"drop function if exists sluice_{function}()")
        connection.execute("drop function if exists sluice_like(text)")


def settings(url: str, **changes: Any) -> Settings:
    return config.load(**({"database_url": url, "enable_timescale": True, "retention_days": 0} | changes))


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    return Database(url, timescale=True).rows(query)


def tables(url: str) -> set[str]:
    return {name for (name,) in rows(url, "select tablename from pg_tables where schemaname = 'public'")}


def policies(url: str) -> dict[str, dict[str, str]]:
    """Each background job of the readings with its configuration."""
    return jobs(url, "not like 'readings\\_%'")


def jobs(url: str, condition: str) -> dict[str, dict[str, str]]:
    query = "select proc_name::text, config from timescaledb_information.jobs where hypertable_name "
    return dict(rows(url, query + condition))


def fates(outcome: Outcome) -> Counter[Fate]:
    return Counter(settled.fate for settled in outcome.settled)


def test_up_down_to_base_and_up_again(empty: str) -> None:
    for _ in range(2):
        migrate.upgrade(settings(empty))
        assert migrate.check(settings(empty)) == []
        assert {"sensor_readings", "alembic_version", *models.BESIDE} == tables(empty)
        migrate.downgrade(settings(empty), "base")
        assert tables(empty) == {"alembic_version"}
        assert policies(empty) == {}


def test_the_readings_are_a_hypertable_with_the_configured_chunks_and_policies(empty: str) -> None:
    migrate.upgrade(settings(empty, chunk_interval_hours=6, columnstore_after_days=11, retention_days=77))
    assert rows(
        empty,
        "select column_name::text, time_interval = interval '6 hours'"
        " from timescaledb_information.dimensions where hypertable_name = 'sensor_readings'",
    ) == [("timestamp", True)]
    columns = rows(
        empty,
        "select attname::text, segmentby_column_index, orderby_column_index, orderby_asc"
        " from timescaledb_information.compression_settings where hypertable_name = 'sensor_readings'",
    )
    assert {name: (segment, order, ascending) for name, segment, order, ascending in columns} == {
        "device_id": (1, None, None),
        "sensor_type": (2, None, None),
        "timestamp": (None, 1, False),
        "message_id": (None, 2, True),
    }
    found = policies(empty)
    assert set(found) == {"policy_compression", "policy_retention"}
    assert found["policy_compression"]["compress_after"] == "11 days"
    assert found["policy_retention"]["drop_after"] == "77 days"


def test_policies_that_are_switched_off_are_not_made(empty: str) -> None:
    migrate.upgrade(settings(empty, columnstore_after_days=0, retention_days=0))
    assert policies(empty) == {}
    assert migrate.check(settings(empty)) == []


def test_no_index_is_made_beside_the_primary_key(empty: str) -> None:
    migrate.upgrade(settings(empty))
    assert rows(empty, "select indexname::text from pg_indexes where tablename = 'sensor_readings'") == [
        ("sensor_readings_pkey",)
    ]


def test_another_table_name_becomes_a_hypertable_too(empty: str) -> None:
    chosen = settings(empty, table_name="Readings2", retention_days=5)
    migrate.upgrade(chosen)
    assert migrate.check(chosen) == []
    with db.connect(empty, 20.0) as connection:
        assert schema_check.look(connection, "Readings2").kind is TableKind.HYPERTABLE
    assert set(policies(empty)) == {"policy_compression", "policy_retention"}
    migrate.downgrade(chosen, "base")
    assert tables(empty) == {"alembic_version"}


def test_a_worker_takes_the_hypertable_and_refuses_it_when_set_otherwise(empty: str) -> None:
    migrate.upgrade(settings(empty))
    with db.connect(empty, 20.0) as connection:
        found = schema_check.look(connection, "sensor_readings")
    assert found.kind is TableKind.HYPERTABLE
    schema_check.check(found, "sensor_readings", enable_timescale=True)
    with pytest.raises(schema_check.SchemaMismatch, match="set ENABLE_TIMESCALE=true"):
        schema_check.check(found, "sensor_readings", enable_timescale=False)


def test_plain_partitions_on_a_server_with_timescale_are_refused_as_hypertable(empty: str) -> None:
    migrate.upgrade(settings(empty, enable_timescale=False))
    with db.connect(empty, 20.0) as connection:
        found = schema_check.look(connection, "sensor_readings")
    assert found.kind is TableKind.PARTITIONED
    schema_check.check(found, "sensor_readings", enable_timescale=False)
    with pytest.raises(
        schema_check.SchemaMismatch, match="is a partitioned table; set ENABLE_TIMESCALE=false"
    ):
        schema_check.check(found, "sensor_readings", enable_timescale=True)


def test_buckets_are_the_same_by_gap_filling_and_by_plain_sql(empty: str) -> None:
    migrate.upgrade(settings(empty, columnstore_after_days=0))
    stored = reading_back.readings_of_a_night()
    with db.connect(empty, 60.0) as connection:
        reading_back.put(connection, TableKind.HYPERTABLE, stored)
        assert queries.kind_of(connection) is BucketKind.TIMESCALE
        for zone in ("America/St_Johns", "Europe/Berlin"):
            connection.execute("select set_config('timezone', %s, false)", [zone])
            for name, asked in QUESTIONS.items():
                for way in BucketKind:
                    assert reading_back.answer(connection, way, asked) == told(stored, asked), (name, way)
        connection.rollback()


REFRESH = "call refresh_continuous_aggregate('readings_{}', null, {})"


def refresh(connection: psycopg.Connection[Any], *levels: str) -> None:
    """What the policies do in the background, up to long after the last reading."""
    connection.rollback()
    connection.autocommit = True
    for level in levels or ("minute", "hour", "day"):
        connection.execute(REFRESH.format(level, "'2025-05-01Z'").encode())
    connection.autocommit = False


def test_answers_are_the_same_whatever_is_summed_up(empty: str) -> None:
    migrate.upgrade(settings(empty, columnstore_after_days=0))
    with db.connect(empty, 600.0) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        summing = partial(refresh, connection)
        # In WebAssembly all of it takes half a minute.
        Contract(connection, TableKind.HYPERTABLE, summing, thorough=is_long()).hold()


@pytest.mark.parametrize("levels", [("minute",), ("minute", "hour")])
def test_answers_are_the_same_where_only_fine_rollups_are_refreshed(
    empty: str, levels: tuple[str, ...]
) -> None:
    migrate.upgrade(settings(empty, columnstore_after_days=0))
    stored = reading_back.readings_of_a_night()
    with db.connect(empty, 600.0) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reading_back.put(connection, TableKind.HYPERTABLE, stored[::2])
        refresh(connection)
        reading_back.put(connection, TableKind.HYPERTABLE, stored[1::2])
        refresh(connection, *levels)
        for name, asked in QUESTIONS.items():
            assert reading_back.answer(connection, BucketKind.TIMESCALE, asked) == told(stored, asked), name
        connection.rollback()


NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)


def test_rollups_outlive_the_readings_and_late_ones_do_not_replace_them(empty: str) -> None:
    migrate.upgrade(settings(empty, columnstore_after_days=0, retention_days=30))
    old, new = NOW - timedelta(days=60), NOW - timedelta(days=3)
    stored = [Row("d", "s", start + n * timedelta(minutes=7), n) for start in (old, new) for n in range(9)]
    with db.connect(empty, 600.0) as connection:
        reading_back.put(connection, TableKind.HYPERTABLE, stored)
        connection.autocommit = True
        for level in ("minute", "hour", "day"):
            connection.execute(REFRESH.format(level, "now() - interval '1 day'").encode())
        whole = hours(connection, old)
        assert [bucket.min for bucket in whole if bucket.min is not None] == [0.0, 5.0]
        connection.execute("select drop_chunks('sensor_readings', older_than => interval '30 days')")
        assert hours(connection, old) == whole
        late = Row("d", "s", old + timedelta(minutes=8), 1000.0)  # of one transaction with a newer one
        connection.autocommit = False
        reading_back.put(
            connection,
            TableKind.HYPERTABLE,
            [late, Row("d", "s", new, 99.0, None)._replace(time=new + timedelta(minutes=1))],
        )
        connection.autocommit = True
        run_jobs(connection)
        assert hours(connection, old) == whole
        assert max(b.max for b in hours(connection, new) if b.max is not None) == 99.0


def hours(connection: psycopg.Connection[Any], start: datetime) -> list[queries.Bucket]:
    """By hour, for four hours from this one on."""
    end = start + timedelta(hours=4)
    return queries.buckets(connection, BucketKind.TIMESCALE, "d", ["s"], start, end, 3600)["s"]


def run_jobs(connection: psycopg.Connection[Any]) -> None:
    found = connection.execute(
        "select job_id from timescaledb_information.jobs"
        " where proc_name = 'policy_refresh_continuous_aggregate' order by job_id"
    ).fetchall()
    for (job,) in found:
        connection.execute(f"call run_job({int(job)})".encode())


def test_retention_is_changed_without_a_migration(
    empty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.upgrade(settings(empty, retention_days=30))
    for name, value in Database(empty, timescale=True).environment().items():
        monkeypatch.setenv(name, value)
    assert main.main(["retention", "--minute", "40", "--hour", "90"]) == 0
    assert main.main(["retention", "--raw", "60"]) == 0
    assert main.main(["retention", "--raw", "200"]) == 1
    said = capsys.readouterr()
    assert "raw is now kept 60 days, before 30 days" in said.out
    assert said.err.startswith("sluice: hour would be kept 90 days and raw 200 days; hour must be kept")
    assert policies(empty)["policy_retention"]["drop_after"] == "60 days"
    kept, offsets = (
        dict(
            rows(
                empty,
                f"select hypertable_name::text, config ->> '{key}' from timescaledb_information.jobs"
                f" where proc_name = '{job}' and hypertable_name like 'readings%'",
            )
        )
        for job, key in (
            ("policy_retention", "drop_after"),
            ("policy_refresh_continuous_aggregate", "start_offset"),
        )
    )
    assert kept == {"readings_minute": "40 days", "readings_hour": "90 days"}
    # What the policy of 30 days has dropped is not there: nothing before is refreshed.
    assert offsets == {
        "readings_minute": "29 days",
        "readings_hour": "40 days",
        "readings_day": "90 days",
    }


def read_all(connection: BoundedConnection) -> list[object]:
    """Every question about readings, of all that `readings_of_a_night` holds."""
    start, end = SUMMER_TIME - timedelta(days=3), SUMMER_TIME + timedelta(days=3)
    devices = ("d1", "d2")
    found: list[object] = [queries.latest(connection, device) for device in devices]
    found += [queries.raw(connection, device, [], start, end, 10_000) for device in devices]
    wanted = [Wanted(series=(device, "temperature"), start=SUMMER_TIME, most=50) for device in devices]
    found += [row.value for newest in (False, True) for row in arrived(connection, wanted, newest)]
    found += [queries.buckets(connection, way, "d1", [], start, end, 900) for way in BucketKind]
    return found


def arrived(connection: BoundedConnection, wanted: list[Wanted], newest: bool) -> list[Arrival]:
    return [row for rows in queries.arrivals(connection, wanted, newest=newest)[1] for row in rows]


def test_compressed_chunks_answer_as_open_ones_and_are_deleted_from(empty: str) -> None:
    migrate.upgrade(settings(empty))
    with db.connect(empty, 60.0) as connection:
        reading_back.put(connection, TableKind.HYPERTABLE, reading_back.readings_of_a_night())
        before = read_all(connection)
        connection.commit()
        connection.execute("select compress_chunk(chunk) from show_chunks('sensor_readings') chunk")
        connection.commit()
        assert read_all(connection) == before
        connection.rollback()
        deleted = 0
        while step := queries.delete_readings(connection, ["d1"], 100):
            deleted += step
        assert deleted == len([one for one in reading_back.readings_of_a_night() if one.device == "d1"])
        assert queries.latest(connection, "d1") == []
        assert queries.latest(connection, "d2") == before[1] != []
        connection.rollback()


def test_verify_names_the_policies(empty: str, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = settings(empty, retention_days=77, redis_url=redis_url)
    migrate.upgrade(chosen)
    capsys.readouterr()
    assert verify.main(chosen, as_json=False) == 0
    text = capsys.readouterr().out
    assert "sensor_readings: hypertable" in text
    assert "compression after 7 days, retention after 77 days" in text


def test_the_statements_that_sql_prints_make_the_same_schema(
    empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    chosen = settings(empty, retention_days=9)
    migrate.COMMANDS["sql"][1](chosen)
    printed = capsys.readouterr().out
    with psycopg.connect(empty, autocommit=True) as connection:
        for statement in statements_of(printed):
            connection.execute(statement.encode())
    assert migrate.check(chosen) == []
    assert set(policies(empty)) == {"policy_compression", "policy_retention"}


def statements_of(text: str) -> list[str]:
    """Alembic's output, cut where a line ends a statement outside of a $$ body."""
    found: list[str] = []
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if line.rstrip().endswith(";") and piece.count("$$") % 2 == 0:
            found.append(piece)
            piece = ""
    return found


def test_timescale_that_the_server_does_not_have_is_one_line(
    empty_database: str,
    has_timescale: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if has_timescale:
        pytest.skip("this server has TimescaleDB; the embedded PostgreSQL has not")
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("ENABLE_TIMESCALE", "true")
    assert migrate.main(["upgrade"]) == 1
    said = capsys.readouterr().err
    assert said.startswith('migrate: the database says: extension "timescaledb" is not available')
    assert len(said.splitlines()) == 1
    assert tables(empty_database) == set()


# On a native server only: what goes through COPY, or needs more than one session.


@pytest.fixture
def written(licensed: str, fresh: str) -> Iterator[Rig]:
    """A writer on a hypertable without policies, so that nothing compresses behind the test's back."""
    migrate.upgrade(settings(fresh, columnstore_after_days=0))
    rows(
        fresh,
        "alter table sensor_readings set (timescaledb.enable_columnstore,"
        " timescaledb.segmentby = 'device_id, sensor_type',"
        " timescaledb.orderby = '\"timestamp\" desc, message_id')",
    )
    with rig(Database(fresh, timescale=True)) as made:
        yield made


def compress(url: str) -> int:
    """Every chunk into the columnstore; how many are in it then."""
    rows(
        url,
        "select compress_chunk(chunk, if_not_compressed => true) from show_chunks('sensor_readings') chunk",
    )
    query = "select count(*) from timescaledb_information.chunks where is_compressed"
    return int(rows(url, query)[0][0])


def old(number: int, **changes: Any) -> Any:
    return reading(number, timestamp_us=LONG_AGO_US + number * 1000, **changes)


def test_a_fresh_batch_goes_into_the_hypertable_by_copy(written: Rig, fresh: str) -> None:
    readings = [reading(n, timestamp_us=LONG_AGO_US + n % 20 * DAY_US + n) for n in range(5000)]
    assert fates(written.writer.write(batch_of(readings))) == {Fate.STORED: 5000}
    assert (written.stats.batches_staged, written.stats.errors) == (0, 0)
    assert rows(fresh, "select count(*) from sensor_readings") == [(5000,)]
    assert rows(fresh, "select count(*) from show_chunks('sensor_readings')") == [(20,)]


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY first", "through staging"])
def test_duplicates_and_conflicts_are_recognised_in_compressed_chunks(
    written: Rig, fresh: str, redelivered: bool
) -> None:
    written.writer.write(batch_of([old(n) for n in range(2000)]))
    assert compress(fresh) == 1
    again = [old(n, value=-1.0) if n % 100 == 7 else old(n) for n in range(1000, 3000)]
    outcome = written.writer.write(batch_of(again, redelivered=redelivered))
    assert fates(outcome) == {Fate.DUPLICATE: 990, Fate.STORED: 1000 + 0, Fate.DEAD_LETTERED: 10}
    reasons = {settled.rejection.reason for settled in outcome.settled if settled.rejection}
    assert reasons == {Reason.CONFLICT}
    assert rows(fresh, "select count(*), count(distinct message_id) from sensor_readings") == [(3000, 3000)]
    assert written.stats.errors == 0


def test_everything_redelivered_into_compressed_chunks_stores_nothing(written: Rig, fresh: str) -> None:
    readings = [reading(n, timestamp_us=LONG_AGO_US + n % 5 * DAY_US + n) for n in range(5000)]
    written.writer.write(batch_of(readings))
    assert compress(fresh) == 5
    outcome = written.writer.write(batch_of(readings, redelivered=True))
    assert fates(outcome) == {Fate.DUPLICATE: 5000}
    assert rows(fresh, "select count(*) from sensor_readings") == [(5000,)]


def test_new_rows_between_compressed_ones_are_stored(written: Rig, fresh: str) -> None:
    written.writer.write(batch_of([old(n) for n in range(0, 1000, 2)]))
    compress(fresh)
    assert fates(written.writer.write(batch_of([old(n) for n in range(1, 1000, 2)]))) == {Fate.STORED: 500}
    compress(fresh)
    outcome = written.writer.write(batch_of([old(n) for n in range(1000)], redelivered=True))
    assert fates(outcome) == {Fate.DUPLICATE: 1000}
    assert rows(fresh, "select count(*) from sensor_readings") == [(1000,)]


def test_a_refused_row_is_found_in_a_hypertable(written: Rig, fresh: str) -> None:
    written.writer.write(batch_of([old(1)]))
    compress(fresh)
    outcome = written.writer.write(
        batch_of(
            [old(n, metadata=b"{" if n == 50 else None) for n in range(100, 200)] + [old(50, metadata=b"{")]
        )
    )
    assert fates(outcome) == {Fate.STORED: 100, Fate.DEAD_LETTERED: 1}
    assert rows(fresh, "select count(*) from sensor_readings") == [(101,)]


def test_upkeep_leaves_a_hypertable_to_its_policies(written: Rig, fresh: str) -> None:
    written.writer.write(batch_of([old(1)]))
    with rig(Database(fresh, timescale=True), retention_days=1) as keeper:
        keeper.writer.upkeep()
    assert rows(fresh, "select count(*) from sensor_readings") == [(1,)]


def test_the_retention_policy_drops_what_is_older(licensed: str, fresh: str) -> None:
    migrate.upgrade(settings(fresh, columnstore_after_days=0, retention_days=30))
    with rig(Database(fresh, timescale=True)) as one:
        one.writer.write(batch_of([old(1), reading(2)]))
    with psycopg.connect(fresh, autocommit=True) as connection:
        job = connection.execute(
            "select job_id from timescaledb_information.jobs where proc_name = 'policy_retention'"
        ).fetchone()
        assert job
        connection.execute(f"call run_job({int(job[0])})".encode())
    assert rows(fresh, "select value from sensor_readings") == [(2.0,)]


@pytest.fixture
def apache(native: str, edition: str) -> str:
    if edition != "apache":
        pytest.skip("needs TEST_DATABASE_URL, a TimescaleDB of the Apache edition")
    return native


def test_the_apache_edition_gets_a_hypertable_without_policies_and_is_told_so(
    apache: str, fresh: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(fresh, retention_days=30, redis_url=redis_url)
    migrate.upgrade(chosen)
    said = capsys.readouterr()
    assert "apache license: no columnstore, no retention policy" in said.err + said.out
    assert migrate.check(chosen) == []
    assert policies(fresh) == {}
    with rig(Database(fresh, timescale=True)) as one:
        assert one.writer.start().kind is TableKind.HYPERTABLE
        readings = [reading(n) for n in range(1000)]
        assert fates(one.writer.write(batch_of(readings))) == {Fate.STORED: 1000}
        assert fates(one.writer.write(batch_of(readings, redelivered=True))) == {Fate.DUPLICATE: 1000}
    assert verify.main(chosen, as_json=False) == 0
    assert "none: the Apache edition has no background jobs" in capsys.readouterr().out
