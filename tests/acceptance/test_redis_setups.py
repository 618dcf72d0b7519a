"""Shown by: workers, bridges and verify on Redis with TLS, with users, and of the versions people run."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

import config
import redis_client
from config import ConfigError
from dashboard.pipeline import Gauge
from leftovers import FIRST_SEC
from main import DatabaseWriterService
from mqtt.bridge import Bridge
from ops import session, verify
from redis_client import execute
from redis_cluster import slot_of
from redis_server import RedisServer
from redis_servers import RedisMode, RedisServers
from refusals import refusal
from retry import StopFlag
from schema import Entry, Fate, Reason, Rejection, Settled
from settlement import dead_letter_fields
from standalone.ports import free_port
from standalone.servers import Valkey
from tests.broker import Broker, end, running
from tests.faults import Proxy, proxy_to
from tests.integration.readers import Clock, Workshop, deliver, make_stale
from tests.redis_servers import SERVERS, program_of
from tests.setups import IN_CLUSTER, OF_WORKERS_IN_CLUSTER, USERS, Cluster, Member, TlsRedis, clustered
from tests.support import (
    ROOT,
    Daemon,
    Database,
    add,
    books,
    everything_settled,
    run_until,
    settings_for,
    started,
    wait_until,
)
from tests.tls import make_certificates, tls_in_front_of
from wiring import bridge_options, dashboard_options

STREAM = "mqtt_stream:dev:t"
OTHER = "mqtt_stream:dev:u"
BY_HAND = re.compile(r"^A worker's account runs .* with `([^`]+)` added", re.M)
# Granted, and not met in the scenario below: what for.
RARE = {
    "ping": "health_check",
    "select": "a database number other than 0",
    "xdel": "a wide dead letter that another worker made needless",
    "hget": "a group that is made again",
    "xrange": "Redis 6.2, after entries were trimmed under a dead worker",
    "xinfo|consumers": "looking for consumers that have left, a minute after the start",
    "xgroup|delconsumer": "the same",
    "hscan": "looking for the books of streams that are gone, then too",
    "srem": "a bridge whose filters have changed",
}
OF_TESTS = {"auth", "config|resetstat"}  # AUTH is granted to everybody


def readings(first: int, last: int) -> list[dict[str, str]]:
    return [{"value": str(n), "timestamp": str(1_767_225_600 + n)} for n in range(first, last)]


def wide_and_bad() -> dict[str, str]:
    return {"value": "NaN", **{f"field-{n}": "x" for n in range(2500)}}


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which("openssl"), "the tests of TLS need openssl"
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def one_broker(tmp_path: Path) -> Iterator[Broker]:
    with running(Broker, tmp_path) as found:
        yield found


def address(port: int, host: str = "localhost", scheme: str = "rediss") -> str:
    return f"{scheme}://{host}:{port}/0"


@pytest.mark.parametrize("client_certificate", [False, True], ids=["server", "both"])
def test_a_worker_and_verify_run_over_tls(
    database: Database,
    valkey: Valkey,
    client: redis.Redis,
    certificates: Path,
    daemon: Callable[..., Daemon],
    client_certificate: bool,
) -> None:
    add(client, STREAM, readings(0, 200))
    files = {"redis_ca_certificate": certificates / "ca.pem"}
    if client_certificate:
        files |= {"redis_certificate": certificates / "own.pem", "redis_key": certificates / "own.key"}
    with tls_in_front_of(valkey.socket, certificates, client_certificate=client_certificate) as end:
        worker = daemon(database, address(end.port), consumer_name="one", **files)
        wait_until(lambda: everything_settled(client, 200))
        done = command(database, address(end.port), "verify", **files)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert worker.terminate() == 0
    assert database.count() == 200


def command(database: Database, redis_url: str, *words: str, **settings: object) -> Any:
    """`python main.py` with a command that ends."""
    environment = {name.upper(): str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words],
        env={"PATH": "/usr/bin:/bin", **database.environment(), "REDIS_URL": redis_url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# redis-py leaves the socket of a failed handshake to the garbage collector
unclosed = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
WRONG: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "unknown authority": ({}, {}, "does not verify, .*; set REDIS_CA_CERTIFICATE"),
    "another authority": ({"redis_ca_certificate": "other.pem"}, {}, "does not verify"),
    "another name": (
        {"redis_ca_certificate": "ca.pem"},
        {"host": "127.0.0.1"},
        "not valid for '127.0.0.1'; name Redis as its certificate does",
    ),
    "no client certificate": (
        {"redis_ca_certificate": "ca.pem"},
        {},
        "asks for a certificate .*; set REDIS_CERTIFICATE and REDIS_KEY",
    ),
    "no certificate at all": ({"redis_ca_certificate": "ca.key"}, {}, "look at REDIS_CA_CERTIFICATE"),
}


@unclosed
@pytest.mark.parametrize("wrong", WRONG)
def test_what_tls_refuses_ends_the_start_with_one_line(
    database: Database, valkey: Valkey, redis_url: str, certificates: Path, wrong: str
) -> None:
    names, where, said = WRONG[wrong]
    files = {name: certificates / file for name, file in names.items()}
    asks = wrong == "no client certificate"
    with tls_in_front_of(valkey.socket, certificates, client_certificate=asks) as end:
        settings = settings_for(database, address(end.port, **where), **files)
        with pytest.raises(ConfigError, match=said) as refused:
            DatabaseWriterService(settings).run()
        assert "\n" not in str(refused.value)
        gc.collect()


@pytest.fixture
def plain(valkey: Valkey, redis_url: str) -> Iterator[Proxy]:
    """A port without TLS."""
    with proxy_to(str(valkey.socket)) as found:
        yield found


SOON = "?socket_connect_timeout=1"  # for a handshake to be answered; five seconds without it
ONE_SIDED = {
    "single": lambda url, port: RedisServers(url=f"{url}://localhost:{port}/0{SOON}"),
    "cluster": lambda url, port: RedisServers(
        url=f"{url}://{SOON}", mode=RedisMode.CLUSTER, nodes=(("localhost", port),)
    ),
    "sentinels": lambda url, port: RedisServers(
        url=f"{url}://{SOON}", mode=RedisMode.SENTINEL, nodes=(("localhost", port),), master="m"
    ),
}


@unclosed
@pytest.mark.parametrize("mode", ONE_SIDED)
def test_tls_on_one_side_only_is_told_with_the_remedy(
    valkey: Valkey, plain: Proxy, certificates: Path, mode: str
) -> None:
    with tls_in_front_of(valkey.socket, certificates) as end:
        for scheme, port, said in (
            (
                "rediss",
                plain.port,
                "there is no TLS at localhost:{}; write redis:// in REDIS_URL or REDIS_TLS",
            ),
            (
                "redis",
                end.port,
                "nothing but TLS at localhost:{}; write rediss:// in REDIS_URL or set REDIS_TLS",
            ),
        ):
            servers = ONE_SIDED[mode](scheme, port)
            with redis_client.connect(servers, timeout_sec=10) as client:
                with pytest.raises(redis.ConnectionError) as caught:
                    client.ping()
                assert said.format(port) in refusal(caught.value)
            assert redis_client.is_world(caught.value), "while a worker runs it is waited for"
    gc.collect()


@unclosed
def test_a_server_that_answers_no_handshake_is_an_outage(plain: Proxy) -> None:
    plain.deaf = True
    with redis_client.connect(address(plain.port) + SOON, timeout_sec=10) as client:
        with pytest.raises(redis.TimeoutError) as caught:
            client.ping()
        assert not refusal(caught.value)
    gc.collect()


def test_who_has_been_connected_once_does_not_ask_for_tls_again(plain: Proxy) -> None:
    """A Redis that is stopped hangs up too, and would be asked twice at each attempt."""
    seen: list[bytes] = []

    def hang_up(piece: bytes) -> bool:
        seen.append(piece)
        return True

    with redis_client.connect(address(plain.port, scheme="redis"), timeout_sec=10) as client:
        client.ping()
        client.connection_pool.disconnect()
        plain.cut_when = hang_up
        with pytest.raises(redis.ConnectionError):
            client.ping()
    assert len(seen) == 1


@unclosed
def test_a_bridge_that_tls_refuses_ends_with_one_line(
    valkey: Valkey, redis_url: str, certificates: Path
) -> None:
    with tls_in_front_of(valkey.socket, certificates) as end:
        settings = config.load_edge(redis_url=address(end.port), mqtt_url="mqtt://127.0.0.1:1")
        with pytest.raises(ConfigError, match="set REDIS_CA_CERTIFICATE"):
            Bridge(bridge_options(settings), StopFlag(5)).run()
        gc.collect()


@pytest.mark.parametrize("client_certificate", ["no", "yes"])
def test_a_worker_runs_over_the_tls_of_redis_itself(
    database: Database, server_folder: Path, certificates: Path, tmp_path: Path, client_certificate: str
) -> None:
    port = free_port()
    own = {"redis_certificate": certificates / "own.pem", "redis_key": certificates / "own.key"}
    options: list[object] = ["--tls-port", port, "--tls-ca-cert-file", certificates / "ca.pem"]
    options += ["--tls-cert-file", own["redis_certificate"], "--tls-key-file", own["redis_key"]]
    options += ["--tls-auth-clients", client_certificate, "--bind", "127.0.0.1", "--save", ""]
    program = program_of("redis-debian", tmp_path)
    server = Valkey(server_folder / f"tls-{port}", [str(option) for option in options], program)
    server.start()
    try:
        settings: dict[str, Any] = {"redis_ca_certificate": certificates / "ca.pem"}
        if client_certificate == "yes":
            settings |= own
        with redis_client.connect(server.url, timeout_sec=10) as client:
            add(client, STREAM, readings(0, 50))
            service = DatabaseWriterService(settings_for(database, address(port), **settings))
            run_until(service, lambda: everything_settled(client, 50))
        with pytest.raises(ConfigError, match=f"nothing but TLS at localhost:{port}; write rediss://"):
            DatabaseWriterService(settings_for(database, address(port, scheme="redis"))).run()
        done = command(database, address(port, scheme="redis"), "dead-letters", "list")
        assert (done.returncode, "write rediss:// in REDIS_URL" in done.stderr) == (1, True), done.stderr
    finally:
        server.stop()
    assert database.count() == 50


@unclosed
def test_a_worker_that_looks_for_tls_where_there_is_none_ends_with_one_line(
    database: Database, server_folder: Path, tmp_path: Path
) -> None:
    """By a server of its own: what it makes of a handshake is its own, too."""
    for program in (None, program_of("redis-debian", tmp_path)):
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "no", "--requirepass", "x"]
        server = Valkey(server_folder / f"plain-{port}", options, program)
        server._answers = lambda: server.socket.exists()  # type: ignore[method-assign]  # it wants a password  # noqa: B023
        with started(server):
            with pytest.raises(ConfigError, match=f"there is no TLS at localhost:{port}; write redis://"):
                DatabaseWriterService(settings_for(database, address(port) + SOON)).run()
            with pytest.raises(redis.ConnectionError, match="there is no TLS"):
                session.to_redis(settings_for(database, address(port) + SOON))
    gc.collect()


# Users


@pytest.fixture
def as_user(valkey: Valkey, client: redis.Redis) -> Iterator[Callable[..., str]]:
    """Makes a user as docs/operations.md says; its address."""
    made: list[str] = []

    def make(name: str, *changes: str) -> str:
        made.append(name)
        execute(client, "ACL", "SETUSER", name, "reset", "on", ">secret", *USERS[name].split(), *changes)
        return valkey.url.replace("unix://", f"unix://{name}:secret@")

    yield make
    for name in made:
        execute(client, "ACL", "DELUSER", name)


def granted(user: str) -> set[str]:
    return {word[1:] for word in USERS[user].split() if word.startswith("+")}


def used(client: redis.Redis) -> set[str]:
    """The commands that ran or were refused since CONFIG RESETSTAT, those in scripts among them."""
    return {str(name).removeprefix("cmdstat_").lower() for name in client.info("commandstats")}


def denied(client: redis.Redis) -> list[Any]:
    return list(execute(client, "ACL", "LOG"))


def test_a_worker_needs_and_uses_just_what_its_acl_line_grants(
    database: Database,
    client: redis.Redis,
    as_user: Callable[..., str],
    daemon: Callable[..., Daemon],
) -> None:
    """Everything is there before the counts begin, and what becomes of it is seen in the database and the
    log: nobody but the worker asks Redis meanwhile.
    """
    execute(client, "ACL", "LOG", "RESET")
    url = as_user("sluice-worker")
    for n in range(300):  # old enough to be trimmed
        execute(client, "XADD", STREAM, f"{n + 1}-1", "value", n, "timestamp", 1_767_225_600 + n)
    deliver(client, "dead", [STREAM], 100)
    make_stale(client, STREAM)
    client.xclaim(STREAM, "db_writer", "dead", 0, ["1-1"], idle=3_600_000, retrycount=9)  # a suspect
    add(client, "mqtt_stream:bad:t", [{"value": "NaN"}, wide_and_bad()])
    add(client, "devices.device.deleted", [{"device_id": "nobody"}])
    client.config_resetstat()
    worker = daemon(database, url, consumer_name="one", claim_min_idle_sec=1, stream_retention_sec=1)
    wait_until(lambda: database.count() == 300)
    worker.wait_for("entries_trimmed")
    assert worker.terminate() == 0
    ran = used(client) - OF_TESTS
    assert denied(client) == []
    assert ran <= granted("sluice-worker")
    assert granted("sluice-worker") - ran - RARE.keys() == set(), "the line grants more than is needed"
    total = books(client)
    assert (total.pending, total.missing, total.dead_lettered) == (0, 0, 2)


def test_the_line_of_a_worker_lets_it_remove_what_nobody_needs(
    client: redis.Redis, as_user: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it begins with a minute after its start."""
    monkeypatch.setattr("leftovers.LEFT_SEC", -1.0)
    add(client, STREAM, readings(0, 1))
    clock = Clock()
    workshop = Workshop(as_user("sluice-worker"))
    worker = workshop.reader("one", clock=clock)
    client.xgroup_createconsumer(STREAM, "db_writer", "gone")
    client.hset("sluice:db_writer:ledger", "stored:mqtt_stream:gone:t", 1)
    execute(client, "ACL", "LOG", "RESET")
    clock.now += FIRST_SEC
    for _ in range(3):
        worker.upkeep()
    workshop.close()
    assert denied(client) == []
    assert client.xinfo_consumers(STREAM, "db_writer") == []
    assert client.hgetall("sluice:db_writer:ledger") == {b"closed:stored": b"1"}


def test_verify_needs_just_what_its_acl_line_grants(
    database: Database, client: redis.Redis, as_user: Callable[..., str]
) -> None:
    execute(client, "ACL", "LOG", "RESET")
    url = as_user("sluice-verify")
    add(client, STREAM, readings(0, 10))
    deliver(client, "one", [STREAM], 5)
    client.config_resetstat()
    done = command(database, url, "verify")
    ran = used(client) - OF_TESTS
    assert "all 5 entries read are accounted for" in done.stdout, done.stdout + done.stderr
    assert denied(client) == []
    assert ran <= granted("sluice-verify")
    rare = RARE.keys() - {"xrange"}
    assert granted("sluice-verify") - ran - rare == set(), "the line grants more than is needed"


def test_commands_by_hand_run_with_the_line_of_a_worker_and_what_the_page_adds(
    database: Database, client: redis.Redis, as_user: Callable[..., str]
) -> None:
    """As `exec worker …` in a container does."""
    execute(client, "ACL", "LOG", "RESET")
    (more,) = BY_HAND.findall((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    url = as_user("sluice-worker", *more.split())
    add(client, STREAM, readings(0, 10))
    deliver(client, "one", [STREAM], 5)
    entry = Entry(STREAM.encode(), b"1-1", (b"value", b"1"))
    rejection = Rejection(Reason.TOPIC_UNKNOWN, "it was none", "dev", "t", "1")
    letter = dead_letter_fields(Settled(entry, Fate.DEAD_LETTERED, rejection), 1_767_225_600_000)
    for _ in range(2):
        execute(client, "XADD", "mqtt_stream:failed", "*", *letter)
    for words, said in (
        (("check",), "commands that a worker needs are allowed"),
        (("lag",), "5 entries unread"),
        (("verify",), "all 5 entries read are accounted for"),
        (("dead-letters", "stats"), "2 letters"),
        (("dead-letters", "replay", "--limit", "1", "--yes"), "replayed 1 into 1 stream"),
        (("dead-letters", "purge", "--all", "--yes"), "removed 1 dead letters"),
    ):
        done = command(database, url, *words)
        assert said in done.stdout, done.stdout + done.stderr
    assert denied(client) == []


def test_the_dashboard_needs_one_command_more(
    database: Database, client: redis.Redis, as_user: Callable[..., str]
) -> None:
    url = as_user("sluice-verify", "+get")
    add(client, STREAM, readings(0, 10))
    deliver(client, "one", [STREAM], 5)
    client.set("sluice:db_writer:worker:one", "{}")
    settings = settings_for(database, url, dashboard_password="four words of it")
    gauge = Gauge(dashboard_options(settings).pipeline)
    assert gauge.look().pending == 5
    gauge.close()


def test_a_bridge_needs_just_what_its_acl_line_grants(
    client: redis.Redis, as_user: Callable[..., str], one_broker: Broker, tmp_path: Path
) -> None:
    broker = one_broker
    execute(client, "ACL", "LOG", "RESET")
    url = as_user("sluice-bridge")
    client.config_resetstat()
    environment = {"MQTT_URL": broker.url(), "MQTT_PROTOCOL": "3.1.1", "REDIS_URL": url}
    environment |= {"BRIDGE_TOPICS": "+/+/feeds/+"}
    bridge = Daemon(environment, tmp_path / "bridge.log", "bridge")
    try:
        carry_one(bridge, broker)
    finally:
        bridge.kill()
    ran = used(client) - OF_TESTS
    assert denied(client) == []
    assert ran <= granted("sluice-bridge")
    assert granted("sluice-bridge") - ran - RARE.keys() == set(), "the line grants more than is needed"


def carry_one(bridge: Daemon, broker: Broker) -> None:
    bridge.wait_for("mqtt_subscribed")
    publish(broker, "u/dev/feeds/temp", b"21.5")
    bridge.wait_for("bridged")
    assert bridge.terminate() == 0


def publish(broker: Broker, topic: str, payload: bytes) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish(topic, payload, qos=1).wait_for_publish(20)
    client.disconnect()
    end(client)


@pytest.fixture
def secured(server_folder: Path, certificates: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Three masters that are reached with TLS only, and by name."""
    tls = TlsRedis(program_of("redis-debian", tmp_path), certificates)
    with clustered(server_folder / "secured", replicas=False, tls=tls) as found:
        yield found


def test_in_a_cluster_with_tls_each_program_needs_just_what_the_page_grants(
    database: Database, secured: Cluster, certificates: Path, daemon: Callable[..., Daemon]
) -> None:
    lines = {
        name: [*USERS[name].split(), *IN_CLUSTER.split()] for name in ("sluice-worker", "sluice-verify")
    }
    lines["sluice-worker"] += OF_WORKERS_IN_CLUSTER.split()
    for member in secured.masters:
        for name, rights in lines.items():
            member.ask("ACL", "SETUSER", name, "reset", "on", ">secret", *rights)
    nodes = [f"localhost:{member.port}" for member in secured.masters]
    mode = {"redis_mode": "cluster", "redis_cluster_nodes": ",".join(nodes)}
    files = {"redis_ca_certificate": certificates / "ca.pem"}
    servers = RedisServers(
        url=f"rediss://?ssl_ca_certs={certificates / 'ca.pem'}",
        mode=RedisMode.CLUSTER,
        nodes=tuple(("localhost", member.port) for member in secured.masters),
    )
    with redis_client.connect(servers, timeout_sec=10) as client:
        for number in range(12):  # on all nodes
            add(client, f"mqtt_stream:dev-{number}:t", readings(0, 10))
        add(client, "mqtt_stream:bad:t", [{"value": "NaN"}, wide_and_bad()])

        def work(next_master: Member) -> None:
            """While the worker has to ask another node than the one that has the slot."""
            workers.append(daemon(database, "rediss://sluice-worker:secret@", **mode, **files))
            wait_until(lambda: "asking" in used_at(next_master), 30, "a question to the next master")

        workers: list[Daemon] = []
        secured.move(slot_of("mqtt_stream:dev-0:t"), meanwhile=work)
        wait_until(lambda: everything_settled(client, 122))
        done = command(database, "rediss://sluice-verify:secret@", "verify", **mode, **files)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert workers[0].terminate() == 0
    tried = command(database, "rediss://sluice-worker:secret@", "check", **mode, **files)
    assert "commands that a worker needs are allowed" in tried.stdout, tried.stdout + tried.stderr
    for member in secured.masters:
        assert member.ask("ACL", "LOG") == []
    ran = set().union(*(used_at(member) for member in secured.masters))
    more = {word[1:] for word in f"{IN_CLUSTER} {OF_WORKERS_IN_CLUSTER}".split()}
    assert more - ran == set(), "the page grants more than is needed"


def used_at(member: Member) -> set[str]:
    with member.client() as client:
        return used(client)


def test_a_command_that_is_denied_at_the_start_ends_with_one_line_that_names_it(
    database: Database, client: redis.Redis, as_user: Callable[..., str]
) -> None:
    add(client, STREAM, readings(0, 1))
    for name in ("dbsize", "xgroup|create", "info"):
        url = as_user("sluice-worker", f"-{name}")
        with pytest.raises(ConfigError, match="may not do all that is needed") as refused:
            DatabaseWriterService(settings_for(database, url)).run()
        assert f"'{name}'" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_right_that_is_taken_from_a_running_worker_is_waited_for(
    database: Database, client: redis.Redis, as_user: Callable[..., str], daemon: Callable[..., Daemon]
) -> None:
    url = as_user("sluice-worker")
    add(client, STREAM, readings(0, 10))
    worker = daemon(database, url, consumer_name="one")
    wait_until(lambda: everything_settled(client, 10))
    execute(client, "ACL", "SETUSER", "sluice-worker", "-xreadgroup")
    worker.wait_for("outage_began")
    assert "'xreadgroup'" in worker.text()
    add(client, STREAM, readings(10, 20))
    execute(client, "ACL", "SETUSER", "sluice-worker", "+xreadgroup")
    wait_until(lambda: everything_settled(client, 20))
    assert worker.terminate() == 0


# Versions


@pytest.fixture(params=["embedded", *SERVERS])
def any_server(
    request: pytest.FixtureRequest, server_folder: Path, tmp_path: Path
) -> Iterator[tuple[Valkey, str]]:
    program = None if request.param == "embedded" else program_of(request.param, tmp_path)
    server = Valkey(server_folder / f"any-{tmp_path.name[-20:]}", ["--appendonly", "no"], program)
    with started(server):
        yield server, request.param


def test_a_worker_does_all_of_its_work_on_every_version(
    any_server: tuple[Valkey, str], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs between versions: scripts while memory is full, claims of what was trimmed, a group's
    counts, errors in scripts, and what verify can compare.
    """
    server, name = any_server
    client = redis_client.connect(server.url, timeout_sec=10)
    add(client, STREAM, readings(0, 100))
    ids = deliver(client, "dead", [STREAM], 40)
    make_stale(client, STREAM)
    execute(client, "XDEL", STREAM, *ids[5:15])
    add(client, OTHER, [{"value": "NaN"}, wide_and_bad()])
    service = DatabaseWriterService(settings_for(database, server.url, claim_min_idle_sec=1))

    def drained() -> bool:
        total = books(client)
        return (total.pending, total.unread, total.settled) == (0, 0, 102)

    run_until(service, drained)
    total = books(client)
    assert (total.stored, total.trimmed, total.dead_lettered, total.missing) == (90, 10, 2, 0)

    add(client, STREAM, readings(100, 150))
    add(client, OTHER, [{"value": "NaN"}])
    client.config_set("maxmemory", 1)
    run_until(
        DatabaseWriterService(settings_for(database, server.url)),
        lambda: database.count() == 140 and client.xlen("mqtt_stream:failed") == 3,
    )
    client.config_set("maxmemory", 0)
    total = books(client)
    assert (total.stored, total.dead_lettered, total.pending, total.missing) == (140, 3, 0, 0)

    old = name == "redis-6.2"
    assert f"script_flags={not old}" in re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert verify.main(settings_for(database, server.url), as_json=False) == 1, "entries were trimmed"
    said = capsys.readouterr().out
    assert "10 pending and 0 unread entries were deleted" in said
    assert ("nothing to compare the ledger with" if old else "all 153 entries read are accounted") in said
    client.close()


def test_a_redis_that_is_too_old_is_refused(database: Database, redis_url: str) -> None:
    service = DatabaseWriterService(settings_for(database, redis_url))
    service._reader.server = lambda: RedisServer(  # type: ignore[method-assign]
        name="Redis", version="5.0.14", speaks=(5, 0), eviction_policy="noeviction"
    )
    with pytest.raises(ConfigError, match=r"Redis 5\.0\.14 is too old"):
        service.run()
