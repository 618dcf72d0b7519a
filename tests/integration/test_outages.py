"""The database away, cut off, deaf, locked, read-only or changed under a running writer.

A row must be in the table exactly once whatever happened, nothing may be dead-lettered, and the writer
goes on by itself. What a naive writer does in the same scenario is tested too: it shows that the
scenario is one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

import database as db
import rows
from live import Many, Newest, News, Told
from live_listener import listening
from retry import Stopping
from schema import Fate, Outcome, Reading
from tests.faults import Proxy, proxy_to
from tests.support import Database, wait_until
from tests.writing import InBackground, Rig, batch_of, reading, rig

COMMIT = b"COMMIT\0"  # not that of BEGIN ISOLATION LEVEL READ COMMITTED
READINGS = [reading(n) for n in range(1000)]


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Between the tests and the server, wherever it listens."""
    found = conninfo_to_dict(database.url)
    host, port = str(found.get("host") or "localhost"), int(found.get("port") or 5432)
    with proxy_to(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)) as made:
        yield made


@pytest.fixture
def proxied(database: Database, proxy: Proxy) -> str:
    """The address of the database by way of the proxy."""
    found = conninfo_to_dict(database.url)
    password = f":{found['password']}" if found.get("password") else ""
    login = f"{found.get('user', 'postgres')}{password}"
    return (
        f"postgresql://{login}@127.0.0.1:{proxy.port}/{found['dbname']}?sslmode=disable&gssencmode=disable"
    )


@pytest.fixture
def one(database: Database, proxied: str) -> Iterator[Rig]:
    """A writer behind the proxy that has written a row, so that its connection and its day are there."""
    with rig(database, proxied, timeout_sec=2.0, batch_size=20_000) as made:
        made.writer.write(batch_of([reading(0)]))
        yield made


def nothing(_: bytes) -> bool:
    return False


def cut_before_commit(proxy: Proxy) -> None:
    """The next COMMIT does not arrive. Once."""

    def look(piece: bytes) -> bool:
        if COMMIT in piece:
            proxy.cut_when = nothing
            return True
        return False

    proxy.cut_when = look


def cut_after_commit(proxy: Proxy) -> None:
    """The next COMMIT arrives and is done; its answer is lost. Once."""

    def sent(piece: bytes) -> bool:
        if COMMIT in piece:
            proxy.cut_when = nothing
            proxy.cut_reply_when = answered
        return False

    def answered(_: bytes) -> bool:
        proxy.cut_reply_when = nothing
        return True

    proxy.cut_when = sent


def cut_in_copy(proxy: Proxy) -> None:
    """Some rows of the next COPY arrive, its end does not. Once."""
    pieces = iter(range(1000))

    def look(piece: bytes) -> bool:
        if len(piece) > 10_000 and next(pieces) == 1:
            proxy.cut_when = nothing
            return True
        return False

    proxy.cut_when = look


CUTS = [cut_before_commit, cut_after_commit, cut_in_copy]


def fates(outcome: Outcome) -> Counter[Fate]:
    return Counter(settled.fate for settled in outcome.settled)


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_connection_cut_at_the_worst_moment_costs_no_row_and_doubles_none(
    one: Rig, proxy: Proxy, database: Database, cut: Callable[[Proxy], None], redelivered: bool
) -> None:
    many = [reading(n) for n in range(1, 10_001)]
    cut(proxy)
    outcome = one.writer.write(batch_of(many, own_id=True, redelivered=redelivered))
    assert proxy.cuts == 1
    assert fates(outcome) == {Fate.STORED: 10_000}
    assert outcome.readings_stored == 10_000
    assert one.stats.errors >= 1
    assert database.rows("select count(*), count(distinct message_id) from sensor_readings") == [
        (10_001, 10_001)
    ]


@pytest.mark.parametrize("cut", CUTS)
def test_after_a_cut_only_rows_that_others_may_own_are_called_duplicates(
    one: Rig, proxy: Proxy, database: Database, cut: Callable[[Proxy], None]
) -> None:
    """With a message id a row that is there may be another entry's: it counts as what it was found."""
    many = [reading(n) for n in range(1, 10_001)]
    cut(proxy)
    outcome = one.writer.write(batch_of(many, own_id=False))
    found = Fate.DUPLICATE if cut is cut_after_commit else Fate.STORED
    assert fates(outcome) == {found: 10_000}
    assert database.count() == 10_001


@pytest.mark.parametrize("cut", CUTS)
def test_readers_are_told_once_of_a_batch_whose_connection_was_cut(
    one: Rig, proxy: Proxy, database: Database, cut: Callable[[Proxy], None]
) -> None:
    """Its COMMIT did not arrive and nothing was told; or it did, and the second attempt stores nothing."""
    many = [reading(n, device_id="d", sensor_type="s") for n in range(1, 10_001)]
    others = itertools.count(20_000)

    def told() -> bool:
        one.writer.write(batch_of([reading(next(others))]))
        return one.stats.notifications_sent > 0

    with listening(database.url) as listener:
        wait_until(told)
        cut(proxy)
        one.writer.write(batch_of(many))
        assert proxy.cuts == 1
        database.rows("select pg_notify('sluice_readings', '')")
        heard: list[Told] = []

        def all_heard() -> bool:
            heard.extend(listener.hear(0.0))
            return heard.count(Many()) == 2  # the first: a row was stored before anybody listened

        wait_until(all_heard)
    news = [one for told in heard if isinstance(told, Newest) for one in told.readings]
    assert [one for one in news if one.device_id == "d"] == [
        News(*many[-1][:3], many[-1].value, span_us=many[-1].timestamp_us - many[0].timestamp_us)
    ]


def naive(url: str, readings: list[Reading]) -> None:
    """What is often written: COPY, COMMIT, and once more on an error."""
    for _ in range(5):
        try:
            with psycopg.connect(url) as connection, connection.cursor() as cursor:
                columns = ", ".join(f'"{column}"' for column in rows.COLUMNS)
                with cursor.copy(f"copy naive ({columns}) from stdin (format binary)") as copy:
                    copy.write(rows.encode(readings))
        except psycopg.OperationalError:
            continue
        return


def test_a_naive_writer_doubles_its_rows_when_the_answer_to_its_commit_is_lost(
    proxy: Proxy, proxied: str, database: Database
) -> None:
    database.rows("create table naive (like sensor_readings including defaults)")
    cut_after_commit(proxy)
    naive(proxied, READINGS)
    assert proxy.cuts == 1
    assert database.rows("select count(*), count(distinct message_id) from naive") == [(2000, 1000)]


def test_a_naive_writer_with_a_unique_key_fails_there(
    proxy: Proxy, proxied: str, database: Database
) -> None:
    database.rows("create table naive (like sensor_readings including defaults, unique (message_id))")
    cut_after_commit(proxy)
    with pytest.raises(psycopg.errors.UniqueViolation):
        naive(proxied, READINGS)


def test_cuts_again_and_again_end_with_each_row_once(one: Rig, proxy: Proxy, database: Database) -> None:
    with capture_logs() as logs:
        for number in range(10):
            CUTS[number % 2](proxy)
            part = READINGS[number * 100 : number * 100 + 100]
            outcome = one.writer.write(batch_of(part, own_id=True, redelivered=number % 3 == 0))
            assert fates(outcome) == {Fate.STORED: 100}
    assert proxy.cuts == 10
    assert [log["event"] for log in logs].count("outage_began") == 10
    assert [log["event"] for log in logs].count("outage_ended") == 10
    assert database.rows("select count(*), count(distinct message_id) from sensor_readings") == [
        (1000, 1000)
    ]


def test_a_deaf_database_is_given_up_after_the_timeout_and_written_to_once_it_hears(
    one: Rig, proxy: Proxy, database: Database
) -> None:
    proxy.deaf = True
    began = monotonic()
    writing = InBackground(lambda: one.writer.write(batch_of(READINGS, own_id=True)))
    wait_until(lambda: one.stats.errors, what="giving up")
    assert 1.5 < monotonic() - began < 6.0
    assert not writing.done
    proxy.deaf = False
    assert fates(writing.result()) == {Fate.STORED: 1000}
    assert database.count() == 1000


def test_a_database_that_falls_silent_after_commit_was_sent_is_given_up_too(
    one: Rig, proxy: Proxy, database: Database
) -> None:
    """The server has committed, nothing comes back, no connection breaks: only our own clock ends it."""

    def fall_silent(piece: bytes) -> bool:
        if COMMIT in piece:
            proxy.cut_when = nothing
            proxy.mute = True
        return False

    proxy.cut_when = fall_silent
    writing = InBackground(lambda: one.writer.write(batch_of(READINGS, own_id=True)))
    wait_until(lambda: one.stats.errors, what="giving up")
    proxy.mute = False
    assert fates(writing.result()) == {Fate.STORED: 1000}
    assert database.count() == 1000


@contextmanager
def locked(database: Database, mode: str = "access exclusive") -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.url) as session:
        session.execute(f"lock table sensor_readings in {mode} mode")
        yield session
        session.rollback()


def waits_for_a_lock(database: Database) -> bool:
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'sluice' and wait_event_type = 'Lock'
    """
    return bool(database.rows(query)[0][0])


def test_a_table_that_is_locked_is_waited_for(database: Database) -> None:
    with rig(database) as one:
        one.writer.write(batch_of([reading(0)]))
        with locked(database):
            writing = InBackground(lambda: one.writer.write(batch_of(READINGS[1:])))
            wait_until(lambda: waits_for_a_lock(database))
            assert not writing.done
        assert fates(writing.result()) == {Fate.STORED: 999}
        assert one.stats.errors == 0


def test_a_table_that_is_locked_for_long_is_tried_again_and_again(one: Rig, database: Database) -> None:
    with locked(database):
        writing = InBackground(lambda: one.writer.write(batch_of(READINGS[1:], own_id=True)))
        wait_until(lambda: one.stats.errors >= 2)
        assert not writing.done
    assert fates(writing.result()) == {Fate.STORED: 999}
    assert database.count() == 1000


def test_a_server_that_refuses_connections_is_waited_for(
    one: Rig, proxy: Proxy, database: Database
) -> None:
    proxy.refuse = True
    proxy.cut()
    with capture_logs() as logs:
        writing = InBackground(lambda: one.writer.write(batch_of(READINGS[1:])))
        wait_until(lambda: one.stats.errors >= 4)
        proxy.refuse = False
        assert fates(writing.result()) == {Fate.STORED: 999}
    events = [log["event"] for log in logs if log["event"].startswith("outage")]
    assert events == ["outage_began", "outage_ended"]
    assert database.count() == 1000


def test_a_session_killed_by_an_administrator_is_replaced(one: Rig, database: Database) -> None:
    database.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'sluice'"
    )
    assert fates(one.writer.write(batch_of(READINGS[1:]))) == {Fate.STORED: 999}
    assert database.count() == 1000


def test_a_database_that_became_read_only_is_waited_for(
    one: Rig, proxy: Proxy, database: Database, admin_url: str
) -> None:
    name = database.rows("select current_database()")[0][0]
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f'alter database "{name}" set default_transaction_read_only = on')
        proxy.cut()
        writing = InBackground(lambda: one.writer.write(batch_of(READINGS[1:])))
        wait_until(lambda: one.stats.errors >= 3)
        assert not writing.done
        admin.execute(f'alter database "{name}" reset default_transaction_read_only')
    outcome = writing.result()
    assert fates(outcome) == {Fate.STORED: 999}
    assert database.count() == 1000


CHANGES = {
    "a column dropped": (
        "alter table sensor_readings drop column metadata",
        "alter table sensor_readings add column metadata jsonb",
    ),
    "a column renamed": (
        "alter table sensor_readings rename column value_text to value_words",
        "alter table sensor_readings rename column value_words to value_text",
    ),
    "the table renamed": (
        "alter table sensor_readings rename to elsewhere",
        "alter table elsewhere rename to sensor_readings",
    ),
    "a column that must be filled added": (
        "alter table sensor_readings add tenant text not null default 'x';"  # noqa: ISC004
        "alter table sensor_readings alter column tenant drop default",
        "alter table sensor_readings alter column tenant set default 'x'",
    ),
    "a column of another type": (
        "alter table sensor_readings drop column metadata; alter table sensor_readings add metadata int",
        "alter table sensor_readings drop column metadata; alter table sensor_readings add metadata jsonb",
    ),
}


@pytest.mark.parametrize("redelivered", [False, True], ids=["by COPY", "through staging"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_schema_changed_under_a_running_writer_is_waited_out_and_nothing_is_rejected(
    one: Rig, database: Database, change: str, redelivered: bool
) -> None:
    damage, repair = CHANGES[change]
    for statement in damage.split(";"):
        database.rows(statement)
    readings = [reading(n, metadata=b'{"a": 1}') for n in range(1, 201)]
    with capture_logs() as logs:
        writing = InBackground(lambda: one.writer.write(batch_of(readings, redelivered=redelivered)))
        wait_until(lambda: one.stats.errors >= 2 or writing.done, what="an outage")
        assert not writing.done, writing.result()
        for statement in repair.split(";"):
            database.rows(statement)
        assert fates(writing.result()) == {Fate.STORED: 200}
    assert [log["event"] for log in logs if log["event"].startswith("outage")] == [
        "outage_began",
        "outage_ended",
    ]
    assert database.count() == 201


@pytest.mark.parametrize("fault", ["refuse", "deaf", "locked"])
def test_a_stop_during_an_outage_ends_the_wait_in_time(
    database: Database, proxy: Proxy, proxied: str, fault: str
) -> None:
    with rig(database, proxied, stop_sec=2.0) as one, psycopg.connect(database.url) as session:
        one.writer.write(batch_of([reading(0)]))
        if fault == "locked":
            session.execute("lock table sensor_readings in access exclusive mode")
        else:
            setattr(proxy, fault, True)
        if fault == "refuse":
            proxy.cut()
        writing = InBackground(lambda: one.writer.write(batch_of(READINGS[1:])))
        wait_until(lambda: one.stats.errors or waits_for_a_lock(database) or fault == "deaf")
        began = monotonic()
        one.stop.set()
        with pytest.raises(Stopping):
            writing.result()
        assert monotonic() - began < 10
        session.rollback()
    assert database.count() == 1


def test_a_stop_while_connecting_to_a_deaf_server_ends_when_connecting_is_given_up(
    database: Database, proxy: Proxy, proxied: str
) -> None:
    """5 s: less than the quarter of SHUTDOWN_TIMEOUT_SEC that is kept for the end, by default."""
    proxy.deaf = True
    with rig(database, proxied, stop_sec=2.0) as one:
        writing = InBackground(lambda: one.writer.write(batch_of(READINGS)))
        wait_until(lambda: proxy.connections, what="a connection")
        began = monotonic()
        one.stop.set()
        with pytest.raises(Stopping):
            writing.result()
        assert monotonic() - began < 8


def test_a_writer_waits_at_its_start_for_a_server_that_is_not_there_yet(
    database: Database, proxy: Proxy, proxied: str
) -> None:
    proxy.refuse = True
    with rig(database, proxied) as one:
        starting = InBackground(one.writer.start)
        wait_until(lambda: one.stats.errors >= 2)
        proxy.refuse = False
        assert starting.result().revisions


def test_a_writer_does_not_wait_at_its_start_for_a_database_that_does_not_exist(
    database: Database,
) -> None:
    missing = database.url.replace("sluice_test_", "sluice_gone_")
    with rig(database, missing) as one, pytest.raises(psycopg.OperationalError, match="does not exist"):
        one.writer.start()


WORLD = {
    "08006": "connection failure",
    "25006": "read-only transaction",
    "28P01": "password changed",
    "3D000": "database dropped",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "42501": "no privilege",
    "42703": "a column is gone",
    "42P01": "the table is gone",
    "53100": "disk full",
    "53200": "out of shared memory",
    "53300": "too many connections",
    "53400": "temporary file limit",
    "55006": "object in use",
    "55P03": "lock timeout",
    "57014": "statement timeout",
    "57P01": "administrator's shutdown",
    "57P03": "starting up",
    "58030": "I/O error",
    "XX001": "data corrupted",
    "F0001": "lock file exists",
    "23502": "a column of others must not be null",
    "22P03": "a column has another type",
    "42804": "a column has another type, found in staging",
}
ROWS = {
    "22003": "out of range",
    "22008": "datetime overflow",
    "22021": "NUL or invalid UTF-8",
    "22P02": "invalid jsonb",
    "22P05": "untranslatable character",
    "22001": "too long",
    "23503": "foreign key",
    "23505": "unique key",
    "23514": "check",
    "23P01": "exclusion",
    "54000": "index row too large",
    "P0001": "raised by a trigger",
}
BUGS = {"42601": "syntax error", "42883": "no such function", "0A000": "not supported", "42P07": "exists"}


def test_a_writer_does_not_wait_at_its_start_for_a_role_that_does_not_exist(database: Database) -> None:
    stranger = make_conninfo(database.url, user="stranger")
    with rig(database, stranger) as one, pytest.raises(psycopg.OperationalError, match="does not exist"):
        one.writer.start()


@pytest.mark.parametrize("state", WORLD)
def test_a_world_s_error_is_waited_out(state: str) -> None:
    error = psycopg.errors.lookup(state)("x")
    assert (db.is_world(error), db.is_row_fault(error)) == (True, False)


@pytest.mark.parametrize("state", ROWS)
def test_a_row_s_error_is_the_row_s(state: str) -> None:
    error = psycopg.errors.lookup(state)("x")
    assert (db.is_world(error), db.is_row_fault(error)) == (False, True)


@pytest.mark.parametrize("state", BUGS)
def test_any_other_error_is_a_bug_and_crashes(state: str) -> None:
    error = psycopg.errors.lookup(state)("x")
    assert (db.is_world(error), db.is_row_fault(error)) == (False, False)


def test_errors_without_a_state_are_the_connection_s_or_bugs() -> None:
    assert db.is_world(psycopg.OperationalError("the connection is lost"))
    assert db.is_world(db.Unreachable("deaf"))
    assert db.is_world(psycopg.InterfaceError("the connection is closed"))
    assert not db.is_world(psycopg.ProgrammingError("wrong use"))
    assert not db.is_world(ValueError("no error of a database"))
    assert not db.is_row_fault(ValueError("no error of a database"))


_ONE_HOST = 'connection failed: connection to server at "::1", port 5432 failed: '
REFUSED = {
    "a wrong password": 'FATAL:  password authentication failed for user "sluice"',
    "no database": 'FATAL:  database "sluice" does not exist',
    "not for this host": 'FATAL:  no pg_hba.conf entry for host "::1", user "x", database "y"',
    "an unknown authority": "SSL error: certificate verify failed",
    "another name": 'server certificate for "a" does not match host name "b"',
    "no authority": 'root certificate file "/x.pem" does not exist',
    "no TLS": "server does not support SSL, but SSL was required",
    "PgBouncer knows no such database": "FATAL:  no such database: sluice",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refusal_that_no_waiting_mends_is_recognised(reason: str) -> None:
    assert db.is_refused(psycopg.OperationalError(_ONE_HOST + REFUSED[reason]))


def several(*attempts: tuple[str, str]) -> psycopg.OperationalError:
    """As psycopg tells it where a name has several addresses, or an address several hosts."""
    lines = [f"- host: {host!r}, port: '5432', hostaddr: '::1': {said}" for host, said in attempts]
    head = [attempts[-1][1], "Multiple connection attempts failed. All failures were:"]
    return psycopg.OperationalError("\n".join(head + lines))


def test_a_host_refuses_for_good_if_one_of_its_addresses_does() -> None:
    wrong = REFUSED["a wrong password"]
    assert db.is_refused(several(("localhost", "connection refused"), ("localhost", wrong)))


def test_one_host_that_refuses_is_no_refusal_while_another_is_away() -> None:
    wrong = REFUSED["not for this host"]
    assert not db.is_refused(several(("standby", wrong), ("primary", "connection refused")))
    assert db.is_refused(several(("standby", wrong), ("primary", wrong)))


@pytest.mark.parametrize(
    "reason", ["connection refused", "FATAL:  the database system is starting up", "session is read-only"]
)
def test_what_waiting_mends_is_no_refusal(reason: str) -> None:
    assert not db.is_refused(psycopg.OperationalError(_ONE_HOST + reason))
