"""Shown by: PostgreSQL shut down, cut off, full, locked and changed under running workers.

One server for all of these tests, each with a database of its own on it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

import redis_client
from tests.conftest import create_database, migrated
from tests.faults import Proxy
from tests.postgresql import TcpPostgres, proxy_of
from tests.scenarios import Stage, StageOf, fault
from tests.source import BEGIN
from tests.support import Daemon, Database, wait_until

COMMIT = b"COMMIT\0"
BEGINNING = 150_000  # bytes of a COPY, of more than 1,000 rows
_number = itertools.count(1)


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[TcpPostgres]:
    """Whatever a test does to it, it runs again at the end of the test."""
    made = TcpPostgres(
        server_folder / f"faulty-{next(_number)}", ["max_connections=16", "checkpoint_timeout=30s"]
    )
    made.start()
    migrated(made.url_of("postgres"), "sluice_empty", timescale=False)
    yield made
    made.stop()


@pytest.fixture
def place(server: TcpPostgres) -> Database:
    """A migrated database of one test."""
    name = f"sluice_{next(_number)}"
    create_database(server.url_of("postgres"), name, "sluice_empty")
    return Database(server.url_of(name), timescale=False)


@pytest.fixture
def proxied(server: TcpPostgres, place: Database) -> Iterator[tuple[Proxy, Database]]:
    """A proxy in front of the server, and the database by way of it."""
    name = place.rows("select current_database()")[0][0]
    with proxy_of(server, server.port) as (proxy, url):
        yield proxy, Database(url.replace("/sluice?", f"/{name}?"), timescale=False)


def progress(database: Database, rows: int = 200) -> None:
    before = database.count()
    wait_until(lambda: database.count() > before + rows, 30, "some progress")


def in_copy(proxy: Proxy, do: Callable[[], None]) -> threading.Event:
    """Do it as rows are on their way to the server, once."""
    done = threading.Event()

    def look(piece: bytes) -> bool:
        if piece[:1] == b"d" and not done.is_set():
            do()
            done.set()
        return False

    proxy.cut_when = look
    return done


def at_commit(proxy: Proxy, do: Callable[[], None]) -> threading.Event:
    """Do it when a batch is committed and its answer is on its way, which is lost. Once."""
    done, copied, sent = threading.Event(), threading.Event(), threading.Event()

    def look(piece: bytes) -> bool:
        if piece[:1] == b"d":
            copied.set()
        if copied.is_set() and COMMIT in piece:
            sent.set()
        return False

    def answer(_: bytes) -> bool:
        if not sent.is_set() or done.is_set():
            return False
        do()
        done.set()
        return True

    proxy.cut_when, proxy.cut_reply_when = look, answer
    return done


@fault(
    "PostgreSQL shut down at once",
    how="immediate shutdown (SIGQUIT) as a COMMIT is answered and in mid-COPY, in turn, four times",
)
def test_an_immediate_shutdown_at_commit_or_in_mid_copy_loses_and_doubles_nothing(
    stage_of: StageOf,
    server: TcpPostgres,
    place: Database,
    proxied: tuple[Proxy, Database],
    redis_url: str,
) -> None:
    proxy, by_proxy = proxied
    stage = stage_of(place, redis_url)

    def quit_now() -> None:
        assert server.process
        server.process.send_signal(signal.SIGQUIT)

    with stage.source() as source:
        stage.worker("one", database=by_proxy)
        for moment in (at_commit, in_copy, at_commit, in_copy):
            progress(place)
            done = moment(proxy, quit_now)
            try:
                wait_until(done.is_set, 30, "the moment")
            finally:
                server.crash() if done.is_set() else None
                server.start() if server.process is None else None
    stage.accounted(source.acknowledged)


@fault(
    "PostgreSQL in a restart loop",
    how="fast shutdown and start, four times in a row, under two workers",
    promise="workers go on by themselves, and every entry is accounted for",
)
def test_a_server_that_restarts_again_and_again_costs_nothing(
    stage_of: StageOf, server: TcpPostgres, place: Database, redis_url: str
) -> None:
    stage = stage_of(place, redis_url)
    with stage.source() as source:
        workers = [stage.worker(name) for name in ("one", "two")]
        progress(place)
        for _ in range(4):
            server.stop()
            server.start()
        progress(place)
    stage.accounted(source.acknowledged)
    assert [worker.terminate() for worker in workers] == [0, 0]


class Steps:
    """Cuts a new connection at its `at`-th piece, on its way to the server or back."""

    def __init__(self, proxy: Proxy, at: int, *, back: bool) -> None:
        self._at = at
        self._count = 0
        self._copied = self._committed = False
        self.cut = threading.Event()
        self.whole = threading.Event()  # a batch was stored with fewer pieces
        self._back = back
        proxy.cut_when, proxy.cut_reply_when = self._sent, self._answered
        proxy.cut()

    def _sent(self, piece: bytes) -> bool:
        if piece[4:8] == b"\x00\x03\x00\x00":  # a new connection
            self._count, self._copied, self._committed = 0, False, False
        self._copied = self._copied or piece[:1] == b"d"
        self._committed = self._committed or (self._copied and COMMIT in piece)
        return not self._back and self._step()

    def _answered(self, _: bytes) -> bool:
        return self._back and self._step()

    def _step(self) -> bool:
        self._count += 1
        if self._count == self._at and not self.cut.is_set() and not self.whole.is_set():
            self.cut.set()
            return True
        if self._committed and not self.cut.is_set():
            self.whole.set()
        return False


@fault(
    "connection to PostgreSQL cut at every step",
    how="a proxy cuts a new connection at its first, second, third … piece, up to COMMIT, either way",
)
def test_a_connection_cut_at_every_step_of_the_protocol_loses_and_doubles_nothing(
    stage_of: StageOf, place: Database, proxied: tuple[Proxy, Database], redis_url: str
) -> None:
    proxy, by_proxy = proxied
    stage = stage_of(place, redis_url)
    cuts = []
    with stage.source() as source:
        stage.worker("one", database=by_proxy)
        progress(place)
        for back in (True, False):
            for at in itertools.count(1):
                step = Steps(proxy, at, back=back)
                wait_until(lambda: step.cut.is_set() or step.whole.is_set(), 30)  # noqa: B023
                if not step.cut.is_set():
                    break
                progress(place, 0)
                cuts.append((back, at))
    stage.accounted(source.acknowledged)
    assert len(cuts) > 18, cuts


@fault(
    "no connection to PostgreSQL left",
    how="others hold every connection of the server (max_connections) as the worker starts",
    promise="waits, says so, and goes on by itself",
)
def test_a_worker_waits_while_others_hold_every_connection(
    stage_of: StageOf, server: TcpPostgres, place: Database, redis_url: str
) -> None:
    stage = stage_of(place, redis_url)
    with stage.source() as source, contextlib.ExitStack() as held:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(place.url))
        worker = stage.worker("one")
        worker.wait_for("too many clients already")
        held.close()
        worker.wait_for("outage_ended")
    stage.accounted(source.acknowledged)


_MOODS = """
    create table mood (state text);
    create function moody() returns trigger language plpgsql as $$
    declare now_state text := (select state from mood);
    begin
        if now_state = '57014' then perform pg_sleep(60);
        elsif now_state <> '' then raise exception 'as told' using errcode = now_state;
        end if;
        return null;
    end $$;
    create trigger moody before insert on sensor_readings for each statement execute function moody();
    insert into mood values ('')
"""
MOODS = {"57014": "QueryCanceled", "40001": "SerializationFailure", "40P01": "DeadlockDetected"}
FAR = 2_000  # so many readings ahead of a source, which it adds in about a second


@fault(
    "statement timeout, serialization failure, deadlock",
    how="a trigger that sleeps past DB_TIMEOUT_SEC, or raises the error, for a while",
    promise="waits, says so, dead-letters nothing, and goes on by itself",
)
def test_what_is_worth_another_try_is_tried_again(
    stage_of: StageOf, place: Database, redis_url: str
) -> None:
    place.rows(_MOODS)
    stage = stage_of(place, redis_url)
    with stage.source() as source:
        worker = stage.worker("one", db_timeout_sec=1.0)
        for state, name in MOODS.items():
            progress(place, 0)
            place.rows("update mood set state = %s", state)
            worker.wait_for(name)
            place.rows("update mood set state = ''")
    stage.accounted(source.acknowledged)
    assert worker.text().count("outage_ended") == len(MOODS)


@fault(
    "deadlock with another session",
    how="a session holds what a worker's COPY, its staging, its judging of alerts waits for, and wants the "
    "table that the worker has locked; three deadlocks, which the server ends at the worker",
    promise="dead-letters nothing, and goes on by itself",
)
def test_a_worker_that_the_server_chooses_to_end_a_deadlock_goes_on(
    stage_of: StageOf, place: Database, redis_url: str
) -> None:
    name = place.rows("select current_database()")[0][0]
    place.rows(f"alter database \"{name}\" set deadlock_timeout = '2s'")
    stage = stage_of(place, redis_url)
    with stage.source(rest_sec=0.05) as source, psycopg.connect(place.url) as other:
        other.execute("set deadlock_timeout = '1h'")  # it never looks itself: the worker is the one to end
        other.commit()
        worker = stage.worker("one")
        progress(place)
        with other.transaction(force_rollback=True):
            other.execute(*_row(source.acknowledged + FAR))
            for already in (0, 1):  # in the COPY, then in the staging of the same batch
                with other.transaction(force_rollback=True):
                    _deadlock(other, place, already)
        place.rows(_EVERYTHING_TOO_HIGH)
        wait_until(lambda: place.rows("select 1 from alerts where status = 'active'"), 30, "an alert")
        with other.transaction(force_rollback=True):
            other.execute("select from alerts where status <> 'resolved' for update")
            _deadlock(other, place, 2)
        progress(place)
    stage.accounted(source.acknowledged)
    assert _deadlocks(place) == 3
    assert worker.text().count("DeadlockDetected") == 2, "the second was part of the first one's outage"
    assert worker.text().count("outage_ended") == 2


_EVERYTHING_TOO_HIGH = """
    insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value)
    values ('high', '*', '*', 'max', 'warning', -1)
"""


def _row(n: int) -> tuple[str, tuple[object, ...]]:
    """The reading numbered `n` of a source, as a worker stores it."""
    insert = """
        insert into sensor_readings (device_id, sensor_type, "timestamp", message_id, value)
        values (%s, 't', to_timestamp(%s), %s, %s)
    """
    return insert, (f"dev-{n % 20}", BEGIN + n, UUID(int=(n + 1 << 64) + 1), n)


def _deadlock(other: psycopg.Connection, place: Database, already: int) -> None:
    """Once a worker with a batch waits for what `other` holds, want the table, in which it has put rows.
    Returns when the server has ended the worker's transaction.
    """
    waiting = """
        select 1 from pg_locks where relation = 'sensor_readings'::regclass and mode = 'RowExclusiveLock'
            and granted and %s = any (pg_blocking_pids(pid))
    """
    wait_until(lambda: place.rows(waiting, other.info.backend_pid), 30, "a worker that waits")
    other.execute("lock table sensor_readings in share mode")
    wait_until(lambda: _deadlocks(place) > already, 30, "a deadlock")


@fault(
    "serialization failures",
    how="a proxy makes two of four workers serializable, the database's default is repeatable read; the "
    "group is set back to the first entry again and again, until both have met a failure",
)
def test_serialization_failures_lose_and_double_nothing(
    stage_of: StageOf, place: Database, proxied: tuple[Proxy, Database], redis_url: str
) -> None:
    proxy, by_proxy = proxied
    proxy.alter = lambda piece: piece.replace(b" READ COMMITTED", b" SERIALIZABLE  ")
    name = place.rows("select current_database()")[0][0]
    place.rows(f"alter database \"{name}\" set default_transaction_isolation = 'repeatable read'")
    stage = stage_of(place, redis_url)
    with stage.source(devices=4, rest_sec=0.05) as source:
        serial = [stage.worker(name, database=by_proxy) for name in ("one", "two")]
        committed = [stage.worker(name) for name in ("three", "four")]
        progress(place)

        def struck() -> bool:
            _set_back(stage)
            failures = [stage.naive or "SerializationFailure" in worker.text() for worker in serial]
            return all(failures)

        wait_until(struck, 60, "serialization failures")
        progress(place, 0)
    stage.accounted(source.acknowledged, ledger=False)
    for worker in committed:  # they ask for READ COMMITTED, whatever the default is
        assert stage.naive or "outage_began" not in worker.text()


@fault(
    "table locked by a migration, column dropped",
    how="ALTER TABLE in a transaction that stays open past the lock timeout, then one that drops a column",
    promise="waits, names the column, dead-letters nothing, and goes on once it is back",
)
def test_a_schema_change_under_a_running_worker_is_waited_out(
    stage_of: StageOf, place: Database, redis_url: str
) -> None:
    stage = stage_of(place, redis_url)
    with stage.source() as source:
        worker = stage.worker("one", db_timeout_sec=2.0)
        progress(place, 0)
        with psycopg.connect(place.url) as migration:
            migration.execute("alter table sensor_readings add column place text")
            worker.wait_for("LockNotAvailable")
        progress(place, 0)
        place.rows("alter table sensor_readings drop column metadata")
        worker.wait_for(
            'UndefinedColumn: column \\"metadata\\" of relation \\"sensor_readings\\" does not exist'
        )
        place.rows("alter table sensor_readings add column metadata jsonb")
    stage.accounted(source.acknowledged)


@fault(
    "worker frozen in mid-COPY",
    how="SIGSTOP with the beginning of a COPY at the server; another worker claims its entries",
    promise="others go on at once, and end what it left open where it stands in their way",
)
def test_others_go_on_beside_a_worker_frozen_in_mid_copy(
    stage_of: StageOf, place: Database, proxied: tuple[Proxy, Database], redis_url: str
) -> None:
    proxy, by_proxy = proxied
    stage = stage_of(place, redis_url)
    with stage.source() as source:
        wait_until(lambda: source.acknowledged > 20_000, 30, "a backlog")
        frozen = stage.worker("frozen", database=by_proxy)
        begun = _begin_copy(proxy, frozen)
        wait_until(begun.is_set, 30, "a large COPY")
        other = stage.worker("other", claim_min_idle_sec=1, db_timeout_sec=3.0)
        progress(place)
    other.wait_for("stuck_copies_ended", 60)
    stage.accounted(source.acknowledged)
    proxy.alter = lambda piece: piece
    frozen.thaw()
    assert frozen.terminate() == 0
    stage.accounted(source.acknowledged)


def _begin_copy(proxy: Proxy, worker: Daemon) -> threading.Event:
    """Stop whoever sends a large COPY, and let only its beginning through: rows that the server has put in,
    which it does by the thousand. Never its end, or the session would merely be idle in its transaction.
    """
    done = threading.Event()
    passed = 0

    def begin_only(piece: bytes) -> bytes:
        nonlocal passed
        if done.is_set():
            return b""
        before = 0 if b"PGCOPY" in piece or COMMIT in piece else passed
        passed = before + len(piece)
        if passed <= BEGINNING:
            return piece
        worker.freeze()
        done.set()
        return piece[: BEGINNING - before]

    proxy.alter = begin_only
    return done


@fault(
    "the same entries to four workers",
    how="the group is set back to the first entry, three times, under four workers",
)
def test_entries_delivered_again_to_four_workers_in_other_orders_are_stored_once(
    stage_of: StageOf, place: Database, redis_url: str
) -> None:
    stage = stage_of(place, redis_url)
    with stage.source(devices=4) as source:
        for name in ("one", "two", "three", "four"):
            stage.worker(name)
        for _ in range(3):
            progress(place)
            _set_back(stage)
    stage.accounted(source.acknowledged, ledger=False)
    assert stage.naive or not _deadlocks(place)


def _set_back(stage: Stage) -> None:
    for device in range(4):
        command = ("XGROUP", "SETID", f"mqtt_stream:dev-{device}:t", "db_writer", "0")
        redis_client.execute(stage.client, *command)


def _deadlocks(database: Database) -> int:
    return int(
        database.rows("select deadlocks from pg_stat_database where datname = current_database()")[0][0]
    )


def _may_mount() -> bool:
    """Whether the kernel lets this process mount anything: CAP_SYS_ADMIN, which containers rarely have."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 21 & 1)
    return False


def _system(program: str, *arguments: str | Path) -> None:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin:/sbin")
    assert found, program
    subprocess.run([found, *arguments], check=True)


@pytest.fixture
def small_disk(server: TcpPostgres, server_folder: Path) -> Iterator[Path]:
    """A file system of 4 MB that belongs to the server."""
    if os.getuid() or not _may_mount():
        pytest.skip("a small disk has to be mounted, which takes root with CAP_SYS_ADMIN")
    folder = server_folder / "small"
    folder.mkdir()
    _system("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    folder.chmod(0o700)
    if server.owner:
        shutil.chown(folder, server.owner)
    yield folder
    _system("umount", "--lazy", folder)


@fault(
    "disk of PostgreSQL full",
    how="partitions on a tmpfs of 4 MB, which is filled up and later enlarged",
    promise="waits, says so, dead-letters nothing, and goes on once there is room",
)
def test_a_full_disk_is_waited_out(
    stage_of: StageOf, place: Database, small_disk: Path, redis_url: str
) -> None:
    with psycopg.connect(place.url, autocommit=True) as admin:
        admin.execute(f"create tablespace small location '{small_disk}'")
        name = place.rows("select current_database()")[0][0]
        admin.execute(f'alter database "{name}" set default_tablespace = small')
    stage = stage_of(place, redis_url)
    with stage.source() as source:
        worker = stage.worker("one")
        worker.wait_for("DiskFull")
        stored = place.count()
    _system("mount", "-o", "remount,size=200m", small_disk)
    stage.accounted(source.acknowledged)
    assert 0 < stored < source.acknowledged
