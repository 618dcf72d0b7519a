"""PostgreSQL as people set it up: TLS, accounts with few rights, PgBouncer, a standby that takes over.

What the accounts may do stands in docs/operations.md and is read from there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import grpc
import httpx
import psycopg
import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg.conninfo import make_conninfo

from live_listener import listening
from query.collector_pb2 import (
    DeleteReadingsRequest,
    GetAlertsRequest,
    GetLatestReadingsRequest,
    GetReadingsRequest,
    ResolveAlertRequest,
)
from standalone.ports import free_port
from tests.faults import Proxy
from tests.postgresql import (
    PLAIN,
    Authority,
    PgBouncer,
    TcpPostgres,
    in_step,
    programs_with_tls,
    proxy_of,
)
from tests.querying import serving
from tests.scenarios import StageOf, fault
from tests.support import ROOT, Daemon, Database, add, books, is_needed, wait_until

_BLOCK = re.compile(r"<!-- grants: (?P<name>[^>]+) -->\n```sql\n(?P<sql>.+?)```", re.DOTALL)
GRANTS = {
    found["name"]: found["sql"]
    for found in _BLOCK.finditer((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
}
HBA = (
    "local all all trust",
    "hostssl all sluice_worker 127.0.0.1/32 cert",
    "hostssl all sluice_query 127.0.0.1/32 scram-sha-256",
    "host all postgres 127.0.0.1/32 trust",
)

_number = itertools.count(1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(server_folder: Path, authority: Authority) -> Iterator[TcpPostgres]:
    """With the accounts of the documentation, and TLS on its port where there is a server that has it."""
    name = f"setup-{next(_number)}"
    files = [server_folder / f"{name}.{end}" for end in ("pem", "key", "ca")]
    options = ["ssl=on", f"ssl_cert_file={files[0]}", f"ssl_key_file={files[1]}", f"ssl_ca_file={files[2]}"]
    programs = programs_with_tls()
    made = TcpPostgres(server_folder / name, options if programs else [], programs=programs)
    certificate, key = authority.sign("localhost")
    for source, target in zip((certificate, key, authority.certificate), files, strict=True):
        shutil.copy(source, target)
    made.give(*files)
    made.start()
    with psycopg.connect(made.url, autocommit=True) as admin:
        admin.execute(GRANTS["accounts"].encode())
    migrate = run_migration(as_account(made, "sluice_migrate"), "upgrade")
    assert migrate.returncode == 0, migrate.stderr
    with psycopg.connect(as_account(made, "sluice_migrate"), autocommit=True) as owner:
        for name in ("worker, plain PostgreSQL", "worker", "query", "dashboard"):
            owner.execute(GRANTS[name].encode())
    made.allow(*[line for line in HBA if programs or not line.startswith("hostssl")])
    made.stop()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def tls_server(server: TcpPostgres) -> TcpPostgres:
    if not programs_with_tls():
        reason = "needs a PostgreSQL that is built with TLS (Debian and Ubuntu: apt install postgresql)"
        (pytest.fail if is_needed("postgresql") else pytest.skip)(reason)
    return server


def as_account(server: TcpPostgres, account: str) -> str:
    return server.url.replace("user=postgres", f"user={account}")


@pytest.fixture
def database(server: TcpPostgres) -> Database:
    """As the worker sees it; empty again for each test."""
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("truncate sensor_readings, series, devices, thresholds, alerts, duties")
    return Database(as_account(server, "sluice_worker"), timescale=False)


def run_migration(url: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "ops.migrate", *command, DATABASE_URL=url, **more)


def run(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def entries(count: int, since: datetime | None = None) -> list[dict[str, str]]:
    begin = int((since or datetime.now(UTC)).timestamp()) - count
    return [{"value": str(n), "timestamp": str(begin + n)} for n in range(count)]


def settled(client: redis.Redis, count: int) -> None:
    wait_until(lambda: books(client).settled >= count, 60, f"{count} entries settled")


def test_the_documented_grants_suffice_for_a_worker_with_rules_events_and_retention(
    server: TcpPostgres,
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    database.rows(OLD_PARTITION)
    worker = daemon(database, redis_url, retention_days=5, consumer_name="one")
    add(client, "mqtt_stream:kitchen:temperature", entries(500))
    add(client, "mqtt_stream:cellar:temperature", entries(10, datetime.now(UTC) - timedelta(days=3)))
    rule = {"threshold_id": "t1", "sensor_id": "s1", "device_id": "hall", "key": "temperature"}
    told = {**rule, "threshold_type": "max", "value": "3", "severity": "warning"}
    add(client, "devices.threshold.created", [told])
    wait_until(lambda: database.rows("select 1 from thresholds"), what="the rule")
    add(client, "mqtt_stream:hall:temperature", entries(10))
    settled(client, 520)
    wait_until(lambda: database.rows("select 1 from alerts where status = 'active'"), what="the alert")
    add(client, "devices.device.deleted", [{"device_id": "hall"}])
    gone = "select 1 from sensor_readings where device_id = 'hall'"
    wait_until(lambda: not database.rows(gone), what="the device's end")
    rolled = "select 1 from readings_minute where device_id = 'kitchen'"
    wait_until(lambda: database.rows(rolled), what="rollups")
    wait_until(lambda: not old_partition(database), what="the end of an old partition")
    assert worker.terminate() == 0
    assert "InsufficientPrivilege" not in worker.text()
    for command in (("verify",), ("thresholds", "list"), ("series", "list"), ("retention",)):
        assert run_command(database.url, redis_url, *command).returncode == 0, command
    owned = "select count(*) from pg_class where relowner = 'sluice_worker'::regrole and relname = %s"
    assert database.rows(owned, "alerts") == [(0,)]


OLD_PARTITION = """
    create table if not exists sensor_readings_p20200101 partition of sensor_readings
    for values from ('2020-01-01Z') to ('2020-01-02Z')
"""


def old_partition(database: Database) -> bool:
    return database.rows("select to_regclass('sensor_readings_p20200101') is not null") == [(True,)]


def run_command(url: str, redis_url: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *command],
        env={**os.environ, "DATABASE_URL": url, "REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_documented_grants_suffice_for_query_service_and_dashboard(
    server: TcpPostgres,
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    daemon(database, redis_url, rules_reload_sec=1)
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value)"
        " values ('hot', 'kitchen', 'temperature', 'max', 'warning', 50)"
    )
    add(client, "mqtt_stream:kitchen:temperature", entries(100))
    settled(client, 100)
    with serving(database, as_account(server, "sluice_query")) as query:
        latest = query.call("GetLatestReadings", GetLatestReadingsRequest(device_id="kitchen"))
        assert [(one.key, one.value) for one in latest.readings] == [("temperature", 99.0)]
        now = Timestamp()
        now.GetCurrentTime()
        since = Timestamp(seconds=now.seconds - 86_000)
        question = {"device_id": "kitchen", "to": now, "from": since, "interval_seconds": 3600}
        assert query.call("GetReadings", GetReadingsRequest(**question)).series
        found = query.call("GetAlerts", GetAlertsRequest(page=1, per_page=10)).items
        assert [alert.threshold_id for alert in found] == ["hot"]
        query.call("ResolveAlert", ResolveAlertRequest(alert_id=found[0].id))
    with psycopg.connect(as_account(server, "sluice_migrate"), autocommit=True) as owner:
        owner.execute(GRANTS["query that deletes"].encode())
    with serving(database, as_account(server, "sluice_query"), delete_token="x" * 20) as query:
        deletion = DeleteReadingsRequest(device_ids=["kitchen"])
        query.call("DeleteReadings", deletion, metadata=[("authorization", f"Bearer {'x' * 20}")])
        assert database.count() == 0
    port = free_port()
    environment = {"DATABASE_URL": as_account(server, "sluice_dashboard"), "REDIS_URL": redis_url}
    shown = Daemon({**environment, "DASHBOARD_PORT": str(port)}, tmp_path / "shown.log", "dashboard")
    try:
        shown.wait_for("dashboard_started")
        page = f"http://127.0.0.1:{port}"
        answer = httpx.get(f"{page}/api/readings?series=kitchen/temperature&range=24h", timeout=20)
        assert answer.status_code == 200
        assert shown.terminate() == 0
        assert "InsufficientPrivilege" not in shown.text()
    finally:
        if shown.process.poll() is None:
            shown.kill()


def tls(server: TcpPostgres, ca: Path, pair: tuple[Path, Path] | None, host: str = "localhost") -> str:
    options = f"sslmode=verify-full&sslrootcert={quote(str(ca))}&gssencmode=disable"
    if pair:
        options += f"&sslcert={quote(str(pair[0]))}&sslkey={quote(str(pair[1]))}"
    return server.tcp_url("sluice_worker", host, options)


def test_a_worker_works_over_tls_with_certificates_on_both_sides(
    tls_server: TcpPostgres,
    database: Database,
    authority: Authority,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    url = tls(tls_server, authority.certificate, authority.sign("sluice_worker"))
    worker = daemon(Database(url, timescale=False), redis_url)
    add(client, "mqtt_stream:kitchen:temperature", entries(100))
    settled(client, 100)
    seen = """
        select bool_and(ssl), min(client_dn), min(version)
        from pg_stat_ssl join pg_stat_activity using (pid)
        where usename = 'sluice_worker' and client_addr is not null
    """
    with psycopg.connect(tls_server.url) as admin:
        row = admin.execute(seen).fetchone()
    assert row
    assert (row[0], row[1]) == (True, "/CN=sluice_worker")
    assert row[2].startswith("TLSv1.")
    assert worker.terminate() == 0
    assert run_migration(url, "current").returncode == 0


def test_a_connection_that_tls_refuses_ends_a_program_at_its_start_with_one_line(
    tls_server: TcpPostgres, authority: Authority, redis_url: str, tmp_path: Path
) -> None:
    own, other = authority.sign("sluice_worker"), Authority(tmp_path / "other")
    absent = tls_server.tcp_url(
        "sluice_query", "localhost", "sslmode=require&gssencmode=disable&password=wrong"
    )
    urls = {
        "certificate verify failed": tls(tls_server, other.certificate, own),
        "does not match host name": tls(tls_server, authority.certificate, own, "127.0.0.1"),
        "does not exist": tls(tls_server, tmp_path / "missing.pem", own),
        "client certificate": tls(tls_server, authority.certificate, None),
        "unknown ca": tls(tls_server, authority.certificate, other.sign("sluice_worker")),
        "password authentication failed": absent,
    }
    started = {
        said: Daemon({"DATABASE_URL": url, "REDIS_URL": redis_url}, tmp_path / f"{number}.log")
        for number, (said, url) in enumerate(urls.items())
    }
    try:
        for said, one in started.items():
            assert one.process.wait(60) == 2, (said, one.text())
            lines = one.text().splitlines()
            assert len(lines) == 1, lines
            assert lines[0].startswith("sluice: DATABASE_URL: the server refused it: ")
            assert said in lines[0]
            assert "wrong" not in lines[0]
    finally:
        for one in started.values():
            if one.process.poll() is None:
                one.kill()


@pytest.fixture
def bouncer(server: TcpPostgres, server_folder: Path, tmp_path: Path) -> Iterator[PgBouncer]:
    if not shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        reason = "needs pgbouncer (Debian and Ubuntu: apt install pgbouncer)"
        (pytest.fail if is_needed("pgbouncer") else pytest.skip)(reason)
    made = PgBouncer(server_folder / f"bouncer-{tmp_path.name[-8:]}", server)
    made.start()
    yield made
    made.stop()


def test_a_worker_works_through_pgbouncer_in_transaction_mode(
    server: TcpPostgres,
    database: Database,
    bouncer: PgBouncer,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    pooled = bouncer.url.replace("postgres@", "sluice_worker@", 1)
    direct = database.url
    database.rows(OLD_PARTITION)
    workers = [
        daemon(
            Database(pooled, timescale=False),
            redis_url,
            database_direct_url=direct,
            rules_reload_sec=1,
            retention_days=5,
            consumer_name=name,
        )
        for name in ("one", "two", "three", "four", "five")  # more than it has connections to the server
    ]
    for worker in workers:  # one that is not there yet meets nothing, and a signal ends it
        worker.wait_for("worker_started", 60)
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value)"
        " values ('hot', '*', 'temperature', 'max', 'warning', 1500)"
    )
    with listening(bouncer.url, direct_url=server.url) as listener:
        for device in range(8):
            add(client, f"mqtt_stream:dev-{device}:temperature", entries(2000))
        settled(client, 16_000)
        assert database.count() == 16_000
        wait_until(lambda: listener.hear(0.1), what="news of readings")
    wait_until(lambda: not old_partition(database), what="the end of an old partition")
    _nothing_is_left_in_its_sessions(pooled)
    assert [worker.terminate() for worker in workers] == [0] * 5
    assert any("rules_by_looking" in worker.text() for worker in workers)
    assert not any("outage_began" in worker.text() for worker in workers), [w.text() for w in workers]


def _nothing_is_left_in_its_sessions(pooled: str) -> None:
    with psycopg.connect(pooled, prepare_threshold=None, autocommit=True) as session:
        for _ in range(20):
            asked = "select current_setting('lock_timeout'), (select count(*) from pg_listening_channels())"
            assert session.execute(asked).fetchone() == ("0", 0)
        held = "select count(*) from pg_locks where locktype = 'advisory' and classid = 5358030"
        wait_until(lambda: session.execute(held).fetchone() == (0,), what="no lock left")


def test_what_needs_a_session_of_its_own_refuses_a_pooler_and_names_the_setting(
    server: TcpPostgres, database: Database, bouncer: PgBouncer
) -> None:
    refused = run_migration(bouncer.url, "current")
    assert refused.returncode == 1
    assert "set DATABASE_DIRECT_URL to the server's own address" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert run_migration(bouncer.url, "check", DATABASE_DIRECT_URL=server.url).returncode == 0
    with pytest.raises(psycopg.OperationalError, match="DATABASE_DIRECT_URL"), listening(bouncer.url):
        pass


def test_check_says_where_a_pooler_stands_between(
    server: TcpPostgres, database: Database, bouncer: PgBouncer, redis_url: str
) -> None:
    def direct(**settings: str) -> tuple[bool | None, str]:
        settings |= {"DATABASE_URL": bouncer.url, "REDIS_URL": redis_url}
        done = run("main.py", "check", "--json", **settings)
        found = {one["name"]: (one["ok"], one["sentence"]) for one in json.loads(done.stdout)}
        assert found["schema"][0], found
        told: tuple[bool | None, str] = found["direct"]
        return told

    ok, sentence = direct()
    assert (ok, "leads to a pooler and DATABASE_DIRECT_URL is not set" in sentence) == (None, True)
    ok, sentence = direct(DATABASE_DIRECT_URL=bouncer.url)
    assert (ok, "right in session mode, wrong in transaction mode" in sentence) == (None, True)
    assert direct(DATABASE_DIRECT_URL=server.url)[0] is True


@pytest.fixture
def pair(server_folder: Path, tmp_path: Path) -> Iterator[tuple[TcpPostgres, TcpPostgres]]:
    """A primary and a standby that confirms every COMMIT."""
    primary = TcpPostgres(server_folder / f"one-{tmp_path.name[-8:]}", ["fsync=off"])
    primary.start()
    standby = primary.standby(server_folder / f"two-{tmp_path.name[-8:]}")
    try:
        standby.start()
        with psycopg.connect(primary.url, autocommit=True) as admin:
            admin.execute("alter system set synchronous_standby_names = '*'")
            admin.execute("select pg_reload_conf()")
        in_step(primary)
        yield primary, standby
    finally:
        primary.stop()
        standby.stop()


@fault(
    "failover to a standby of PostgreSQL",
    how="primary killed under two workers, its synchronous standby promoted; two hosts in DATABASE_URL",
    promise="everything follows by itself, and every entry is accounted for",
)
def test_everything_follows_a_failover_with_two_hosts_in_database_url(
    stage_of: StageOf, pair: tuple[TcpPostgres, TcpPostgres], redis_url: str
) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
    url = f"postgresql://postgres@{hosts}/sluice?target_session_attrs=read-write&{PLAIN}"
    done = run_migration(url, "upgrade")
    assert done.returncode == 0, done.stderr
    database = Database(url, timescale=False)
    stage = stage_of(database, redis_url)
    with stage.source() as source, serving(database, url) as query:
        workers = [stage.worker(name) for name in ("one", "two")]
        for worker in workers:  # one that is not there yet meets nothing, and a signal ends it
            worker.wait_for("worker_started", 60)
        wait_until(lambda: database.count() > 500, 60, "some progress")
        primary.kill()
        standby.promote()
        with psycopg.connect(standby.url, autocommit=True) as admin:
            admin.execute("alter system set synchronous_standby_names = ''")
            admin.execute("select pg_reload_conf()")
        for worker in workers:
            worker.wait_for("outage_ended", 150)
        question = GetLatestReadingsRequest(device_id="dev-0")

        def answered() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return bool(query.call("GetLatestReadings", question).readings)
            return False

        wait_until(answered, 30, "an answer")
    stage.accounted(source.acknowledged)
    assert run_command(url, redis_url, "verify").returncode == 0
    assert run_migration(url, "check").returncode == 0


@pytest.fixture
def deaf(server: TcpPostgres) -> Iterator[tuple[Proxy, str]]:
    """A server that accepts connections and answers nothing."""
    with proxy_of(server, server.port) as (proxy, url):
        proxy.deaf = True
        yield proxy, url


def test_no_command_hangs_at_a_server_that_answers_nothing(deaf: tuple[Proxy, str], redis_url: str) -> None:
    commands = [
        ["main.py", "verify"],
        ["main.py", "thresholds", "list"],
        ["main.py", "series", "list"],
        ["main.py", "retention"],
        ["-m", "ops.migrate", "upgrade"],
        ["-m", "ops.migrate", "check"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": deaf[1], "REDIS_URL": redis_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    try:
        for command, one in zip(commands, started, strict=True):
            said, _ = one.communicate(timeout=60)
            assert one.returncode in (1, 2), (command, said)
            assert "connection timeout expired" in said, (command, said)
            assert "Traceback" not in said, (command, said)
    finally:
        for one in started:
            if one.poll() is None:
                one.kill()
                one.communicate()


def test_transactions_are_read_committed_whatever_the_database_says(
    server: TcpPostgres, database: Database
) -> None:
    """Alerts, and the look at what others have stored, depend on it."""
    import database as db

    url = make_conninfo(database.url, options="-c default_transaction_isolation=serializable")
    with db.connect(url, timeout_sec=10) as connection:
        db.begin(connection, 10)
        assert connection.execute("show transaction_isolation").fetchone() == ("read committed",)
