"""What the tests of the query service share: a server in this process, a client, and readings for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
from psycopg.conninfo import conninfo_to_dict

from query.collector_pb2_grpc import CollectorServiceStub
from query.options import QueryOptions
from query.server import QueryServer
from retry import StopFlag
from schema import Reading
from tests.faults import Proxy, proxy_to
from tests.support import Database, in_thread, wait_until
from tests.writing import batch_of, reading, rig

DEADLINE = 20.0  # of every call that a test expects to be answered


class Served:
    """A query server, and a client of it."""

    def __init__(self, server: QueryServer, channel: grpc.Channel) -> None:
        self.server = server
        self.channel = channel
        self.stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]

    def call(self, name: str, request: Any, **options: Any) -> Any:
        return getattr(self.stub, name)(request, **{"timeout": DEADLINE, **options})

    def refusal(self, name: str, request: Any, **options: Any) -> tuple[str, str]:
        """The status code and the sentence with which a call ends, which must not succeed."""
        try:
            answer = self.call(name, request, **options)
            if not hasattr(answer, "ByteSize"):
                list(answer)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"{name} was answered")


def options_for(database: Database, url: str = "", **changes: Any) -> QueryOptions:
    values: dict[str, Any] = {
        "database_url": url or database.url,
        "table": "sensor_readings",
        "enable_timescale": database.timescale,
        "host": "127.0.0.1",
        "port": 0,
        "workers": 4,
        "most_streams": 4,
        "timeout_sec": 10.0,
        "shutdown_sec": 8.0,
    }
    return QueryOptions(**(values | changes))


@contextmanager
def serving(
    database: Database, url: str = "", credentials: grpc.ChannelCredentials | None = None, **changes: Any
) -> Iterator[Served]:
    """A server until the block ends, which must be clean."""
    server = QueryServer(options_for(database, url, **changes), StopFlag(8.0))
    with in_thread(server) as errors:
        wait_until(lambda: server.port is not None or errors, what="a port")
        if errors:
            raise errors[0]
        address = f"127.0.0.1:{server.port}"
        with (
            grpc.secure_channel(address, credentials)
            if credentials
            else grpc.insecure_channel(address) as channel
        ):
            yield Served(server, channel)


@contextmanager
def through_proxy(database: Database) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the database, and the address by way of it."""
    found = conninfo_to_dict(database.url)
    host, port = str(found.get("host") or "localhost"), int(found.get("port") or 5432)
    password = f":{found['password']}" if found.get("password") else ""
    login = f"{found.get('user', 'postgres')}{password}"
    with proxy_to(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)) as proxy:
        options = "sslmode=disable&gssencmode=disable"
        yield proxy, f"postgresql://{login}@127.0.0.1:{proxy.port}/{found['dbname']}?{options}"


def store(database: Database, readings: Sequence[Reading]) -> None:
    """Through a worker's writer, so that partitions and registry are as they are in life."""
    with rig(database) as made:
        made.writer.write(batch_of(readings))


def at(number: int, value: float | None = None, **changes: Any) -> Reading:
    """A reading of the kitchen's temperature, `number` seconds after yesterday's midnight, UTC."""
    plain = reading(number * 1000, value if value is not None else float(number))
    return plain._replace(device_id="kitchen", sensor_type="temperature")._replace(**changes)


def notify(database: Database, payload: str) -> None:
    database.rows("select pg_notify('sluice_readings', %s)", payload)


def slow(database: Database) -> None:
    """Every question for a device's series takes a minute from now on."""
    with psycopg.connect(database.url) as connection:
        connection.execute("alter table series rename to series_kept")
        connection.execute("create view series as select kept.* from pg_sleep(60), series_kept kept")


def running(database: Database) -> int:
    """How many questions the database is busy with, but for ours."""
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and state = 'active' and query like '%from series%'
          and pid <> pg_backend_pid()
    """
    return int(database.rows(query)[0][0])
