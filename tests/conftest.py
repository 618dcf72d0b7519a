"""Real servers for every test that asks for one. A server that cannot start fails the tests, never skips.

TEST_REDIS_SERVER names a program to start in place of the embedded Valkey, such as redis-server.
TEST_DATABASE_URL names a server to use in place of the embedded PostgreSQL (an account that may create
databases); where it has TimescaleDB, the tests run on hypertables.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo

import config
import redis_client
from ops import migrate
from standalone.servers import Postgres, Valkey
from tests.broker import KINDS, Broker, Mosquitto, Recorder, missing, needed, recording, running
from tests.faults import Proxy, proxy_to
from tests.forge import Forge, daemons, forging
from tests.scenarios import pytest_generate_tests, pytest_pyfunc_call, stage_of  # noqa: F401  used by pytest
from tests.support import Daemon, Database, started, wait_until

# How long an example takes on a busy machine is no finding.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

# Read when gRPC is first used. With it, a child that is forked while a channel is open can die before it is
# the program it should become.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

_number = itertools.count(1)
_HERE = Path(__file__).resolve().parent


# Their tests go to one process: a unit test is quicker than handing it out; WebAssembly and Chromium are
# slow to start.
_TOGETHER = (
    "tests/unit/",
    "tests/integration/test_timescale.py",
    "tests/integration/test_cluster.py",
    "tests/acceptance/test_dashboard.py",
    "tests/acceptance/test_database_faults.py",
    "tests/acceptance/test_database_setups.py",
    "tests/acceptance/test_setups.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """For several processes, with --dist loadgroup: which tests stay together; all others go one by one.

    Not by marks, which xdist 3.8 puts into an attribute that pytest 9.2 no longer reads.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling  # without xdist nobody calls this

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several processes: spread the long tests over the short ones, and end with the shortest."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    unit = [item for item in items if _HERE / "unit" in item.path.parents]
    long = [item for item in items if _HERE / "acceptance" in item.path.parents]
    placed = {*unit, *long}
    short = [item for item in items if item not in placed]
    items[:] = [*_spread(long, short), *unit]


def _spread(long: list[pytest.Item], short: list[pytest.Item]) -> list[pytest.Item]:
    """Daemons under load beside each other would only wait for a processor. None of the long ones comes
    last, where nothing runs beside it.
    """
    share = 3 * len(short) // (4 * max(1, len(long)))
    order = []
    for number, item in enumerate(long):
        order += [item, *short[number * share : (number + 1) * share]]
    return order + short[len(long) * share :]


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short path that the user of PostgreSQL may enter: pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey(server_folder: Path) -> Iterator[Valkey]:
    given = os.environ.get("TEST_REDIS_SERVER")
    program = Path(given).resolve() if given else None
    server = Valkey(server_folder / "valkey", ["--appendonly", "no"], program)
    with started(server):
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """A Valkey that is empty."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client as the daemon has it: replies of XRANGE, XPENDING and XINFO come as Redis sent them."""
    with redis_client.connect(redis_url, timeout_sec=30) as found:
        yield found


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    """The embedded PostgreSQL, without waiting for the disk: tests that cut its power start their own.

    With as little of a log as there can be, making and dropping a database costs a third of the processor.
    """
    no_log = ["fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0"]
    server = Postgres(server_folder / "postgres", [*no_log, "max_connections=60"])
    server.stop_signal = signal.SIGQUIT  # at once: nobody comes back to these data
    with started(server):
        yield server


@pytest.fixture(scope="session")
def admin_url(request: pytest.FixtureRequest) -> str:
    """A server on which tests make their databases."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        return given
    server: Postgres = request.getfixturevalue("postgres")
    return server.url_of("postgres")


@pytest.fixture(scope="session")
def has_timescale(admin_url: str) -> bool:
    with psycopg.connect(admin_url) as connection:
        row = connection.execute(
            "select 1 from pg_available_extensions where name = 'timescaledb'"
        ).fetchone()
        return row is not None


def create_database(admin_url: str, name: str, template: str = "template0") -> str:
    """Make a database; its address."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        # Cheap where nothing is logged, as on the embedded server. PostgreSQL 14 lacks the words.
        how = "" if "TEST_DATABASE_URL" in os.environ else "strategy file_copy"
        made = sql.SQL("create database {} template {} {}")
        connection.execute(made.format(sql.Identifier(name), sql.Identifier(template), sql.SQL(how)))
    return make_conninfo_url(admin_url, name)


def drop_database(admin_url: str, name: str) -> None:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def close_database(admin_url: str, name: str) -> None:
    """Let nobody in: TimescaleDB's scheduler would, and a database in use cannot be copied."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name))
        )
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
        )
        query = "select 1 from pg_stat_activity where datname = %s"
        wait_until(lambda: connection.execute(query, [name]).fetchone() is None)


def make_conninfo_url(url: str, database: str) -> str:
    """`url` with another database, still a URL."""
    assert make_conninfo(url)
    head, _, query = url.partition("?")
    scheme, _, rest = head.partition("://")
    host = rest.partition("/")[0]
    return f"{scheme}://{host}/{database}" + (f"?{query}" if query else "")


def migrated(admin_url: str, name: str, *, timescale: bool) -> str:
    url = create_database(admin_url, name)
    migrate.upgrade(config.load(database_url=url, enable_timescale=timescale, retention_days=0))
    return url


@pytest.fixture(scope="session")
def template(admin_url: str, has_timescale: bool) -> Iterator[str]:
    """A migrated database that tests copy."""
    name = f"sluice_template_{os.getpid()}"
    migrated(admin_url, name, timescale=has_timescale)
    close_database(admin_url, name)
    yield name
    drop_database(admin_url, name)


@pytest.fixture
def database(admin_url: str, template: str, has_timescale: bool) -> Iterator[Database]:
    """A database with the schema, of the kind that the server offers."""
    name = f"sluice_test_{os.getpid()}_{next(_number)}"
    yield Database(create_database(admin_url, name, template), has_timescale)
    drop_database(admin_url, name)


@pytest.fixture(scope="session")
def plain_template(request: pytest.FixtureRequest, admin_url: str, has_timescale: bool) -> Iterator[str]:
    """The same without TimescaleDB, whatever the server offers."""
    if not has_timescale:
        yield request.getfixturevalue("template")
        return
    name = f"sluice_plain_template_{os.getpid()}"
    migrated(admin_url, name, timescale=False)
    close_database(admin_url, name)
    yield name
    drop_database(admin_url, name)


@pytest.fixture
def plain_database(admin_url: str, plain_template: str) -> Iterator[Database]:
    """A database with the schema of plain PostgreSQL, whatever the server offers."""
    name = f"sluice_plain_{os.getpid()}_{next(_number)}"
    yield Database(create_database(admin_url, name, plain_template), timescale=False)
    drop_database(admin_url, name)


@pytest.fixture
def empty_database(admin_url: str) -> Iterator[str]:
    """The address of a database without any table."""
    name = f"sluice_empty_{os.getpid()}_{next(_number)}"
    yield create_database(admin_url, name)
    drop_database(admin_url, name)


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Starts programs in a tenth of a second."""
    with forging() as found:
        yield found


@pytest.fixture
def daemon(forge: Forge, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts workers; whatever still runs at the end is stopped."""
    with daemons(forge, tmp_path) as start:
        yield start


def require(kind: type[Broker]) -> None:
    """End the test here where there is no such broker: failed if it is needed, else left out."""
    if reason := missing(kind):
        (pytest.fail if needed(kind) else pytest.skip)(reason)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """amqtt with MQTT 3.1.1, then mosquitto with MQTT 5. A test that is too long for both says which."""
    require(request.param)
    with running(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts mosquitto with the options given; whatever still runs at the end is killed."""
    require(Mosquitto)
    with contextlib.ExitStack() as started:

        def start(**options: Any) -> Mosquitto:
            found = started.enter_context(running(Mosquitto, tmp_path, **options))
            assert isinstance(found, Mosquitto)
            return found

        yield start


@pytest.fixture
def recorder(broker: Broker) -> Iterator[Recorder]:
    with recording(broker) as found:
        yield found


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """Between publishers and the broker; the recorder goes straight to the broker."""
    with proxy_to(("127.0.0.1", broker.port)) as found:
        yield found
