"""The connection to Redis: how it is made, and which of its errors are the world's fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import redis
import redis.exceptions
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from redis_cluster import ClusterClient
from redis_node import client_on, connecting, options_of, pool_of
from redis_servers import Node, RedisMode, RedisServers
from redis_tls import doubt_of

T = TypeVar("T")
Argument = bytes | str | int
CHUNK = 500  # streams in one command: more would hold up other clients (docs/internals.md)
SENTINEL_SEC = 1.0  # for each of the sentinels to answer, before the next one is asked
_WORLD = ("LOADING", "BUSY ", "MISCONF", "OOM", "READONLY", "MASTERDOWN", "NOREPLICAS", "UNKILLABLE")
_SCRIPT_6_2 = re.compile(
    r"^(?:Error running script \(call to f_[0-9a-f]+\): )?(?:@user_script: ?\d+: ?)+-?"
)
_DENIED_IN_SCRIPT = "The user executing the script can't "  # before Redis 7.2, without the command
_WORLD_TYPES = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,  # a replica without its master, too
    redis.exceptions.TryAgainError,
)


def connect(servers: RedisServers | str, timeout_sec: float, name: str = "sluice") -> redis.Redis:
    """A client that retries nothing by itself and hands out replies as Redis sent them (`redis_node.py`).

    `servers`: an address is one server. With sentinels each connection goes to whoever is master then, and
    ends when that is no longer so. In a cluster each command goes to the node that its key is on.
    """
    if isinstance(servers, str):
        servers = RedisServers(url=servers)
    options = options_of(servers.url, timeout_sec, name)
    if servers.mode is RedisMode.SENTINEL:
        return client_on(_pool_by_sentinels(servers, options))
    if servers.mode is RedisMode.CLUSTER:
        here = options.get("host", "localhost"), int(options.get("port", 6379))
        return ClusterClient(options, servers.nodes or (here,))
    return client_on(pool_of(options))


def _pool_by_sentinels(servers: RedisServers, options: dict[str, Any]) -> SentinelConnectionPool:
    """Connections to the master. The sentinels are reached like it, with TLS or without, and asked in turn
    until one knows.
    """
    kind: type[Connection] = options.pop("connection_class")
    here = {name: value for name, value in options.items() if name not in ("host", "port", "path")}
    theirs = {name: value for name, value in here.items() if name.startswith(("socket_", "ssl_"))}
    login = {"username": servers.sentinel_username, "password": servers.sentinel_password}
    asked = {
        **theirs,
        **{name: value for name, value in login.items() if value},
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": SENTINEL_SEC,
        "socket_connect_timeout": SENTINEL_SEC,
        "retry": Retry(NoBackoff(), 0),
        "connection_class": kind,
    }
    secured = issubclass(kind, SSLConnection)
    managed = SentinelManagedSSLConnection if secured else SentinelManagedConnection
    sentinels = _Sentinels(servers.nodes, asked)
    return SentinelConnectionPool(servers.master, sentinels, **connecting(here, managed))  # type: ignore[no-untyped-call]


class _Sentinels(Sentinel):
    """Those of redis-py, which say so where TLS is what keeps them from being asked."""

    def __init__(self, nodes: Sequence[Node], options: dict[str, Any]) -> None:
        super().__init__(())  # type: ignore[no-untyped-call]
        pools = [pool_of({**options, "host": host, "port": port}) for host, port in nodes]
        self.sentinels = [client_on(pool) for pool in pools]

    def discover_master(self, service_name: str) -> Node:
        """Raises: `WrongTls` too."""
        doubts = [doubt_of(sentinel.connection_pool) for sentinel in self.sentinels]
        for doubt in doubts:
            doubt.found = None
        try:
            found: Node = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except MasterNotFoundError:
            if wrong := next((doubt.found for doubt in doubts if doubt.found), None):
                raise wrong from None
            raise
        for doubt in doubts:
            doubt.over = True
        return found


def execute(client: redis.Redis | redis.client.Pipeline, *command: bytes | str | int) -> Any:
    """One command as it is written in Redis's documentation, with its raw reply."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def packed(*command: bytes | str | int) -> bytes:
    """A command in the form in which it is sent (RESP), for `execute_packed`."""
    sent: bytes = pack_command(command)  # type: ignore[arg-type]  # redis-py's own takes four times as long
    return sent


def execute_packed(client: redis.Redis, command: bytes) -> Any:
    """As `execute`, with a `packed` command: for those that are long and sent again and again."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_packed_command([command])  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def is_world(error: BaseException) -> bool:
    """Whether this is the world's fault and passes by itself, rather than a bug."""
    if isinstance(error, _WORLD_TYPES):
        return True
    return isinstance(error, redis.exceptions.ResponseError) and message(error).startswith(_WORLD)


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key that should be ours, or a stream, holds something else."""
    return isinstance(error, redis.exceptions.ResponseError) and message(error).startswith("WRONGTYPE")


def is_denied(error: BaseException) -> bool:
    """Whether the user's ACL forbids a command or a key."""
    return isinstance(error, redis.exceptions.ResponseError) and (
        isinstance(error, redis.exceptions.NoPermissionError)
        or message(error).startswith(("NOPERM", "ACL failure in script", _DENIED_IN_SCRIPT))
    )


def is_gone(error: BaseException) -> bool:
    """Whether a stream or its group is not there any more, or is something else now."""
    return isinstance(error, redis.exceptions.ResponseError) and message(error).startswith(
        ("NOGROUP", "WRONGTYPE")
    )


def message(error: BaseException) -> str:
    """What Redis said. redis-py puts the command before it when the command was in a pipeline, Redis 6.2
    where in a script it was.
    """
    said = str(error).rpartition(" of pipeline caused error: ")[2]
    return _SCRIPT_6_2.sub("", said)


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterable[Sequence[T]]:
    """`items` in order, in parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
