"""Connections to one server: how they are made, and that none outlives the server's being master."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.exceptions import MovedError, ReadOnlyError, ResponseError
from redis.retry import Retry

from redis_tls import HANGING_UP, Doubt, doubting

_RAW = ("XREADGROUP", "XINFO GROUPS", "XINFO STREAM", "XPENDING", "XRANGE", "XREVRANGE")


def options_of(url: str, timeout_sec: float, name: str) -> dict[str, Any]:
    """What redis-py takes to connect to the server at `url`. What the URL says itself wins.

    No hidden retry: a repeated XREADGROUP strands what the lost reply brought, and a repeated XADD makes
    two entries.
    """
    given: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    kind = given.pop("connection_class", Connection)
    over_tcp = not issubclass(kind, UnixDomainSocketConnection)
    return {
        **({"socket_keepalive": True, "socket_connect_timeout": 5.0} if over_tcp else {}),
        "protocol": 2,
        "socket_timeout": timeout_sec,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,  # CLIENT SETINFO is a right that Redis before 7.2 does not know
        "client_name": re.sub(r"[^!-~]", "-", name),  # all that CLIENT SETNAME takes
        **given,
        "connection_class": kind,
    }


def pool_of(options: dict[str, Any], *, in_cluster: bool = False) -> ConnectionPool:
    """Connections by `options_of`, to one server or to one node of a cluster."""
    return ConnectionPool(**connecting(options, options["connection_class"], in_cluster=in_cluster))


def connecting(
    options: dict[str, Any], kind: type[Connection], *, in_cluster: bool = False
) -> dict[str, Any]:
    """What a pool takes to make connections of `kind` that find out about TLS and demotions."""
    return {**options, "connection_class": _to_a_master(kind, in_cluster), "doubt": Doubt()}  # type: ignore[arg-type]  # classes do hash


def client_on(pool: ConnectionPool) -> redis.Redis:
    """A client that hands out replies as Redis sent them: redis-py's own would fold repeated field names
    into one. It closes `pool` with itself.
    """
    client = redis.Redis.from_pool(pool)
    set_raw(client)
    return client


def set_raw(client: redis.Redis) -> None:
    """Have the replies of what Sluice takes apart itself come as Redis sent them."""
    for command in _RAW:
        client.set_response_callback(command, lambda reply, **_: reply)


@cache
def _to_a_master(kind: type[Connection], in_cluster: bool) -> type[Connection]:
    """Connections of `kind` that end when the server turns out to be a replica.

    It was demoted while a proxy, a name or a virtual address already leads elsewhere: only a connection
    made anew gets there. On this one every command would fail for ever.
    """

    class UntilDemoted(doubting(kind)):  # type: ignore[misc]
        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except ReadOnlyError as error:
                self.disconnect()
                raise redis.ConnectionError(f"the server is a replica: {error}") from None
            except MovedError:
                if in_cluster:
                    raise
                raise ResponseError("this is a node of a Redis Cluster; set REDIS_MODE=cluster") from None
            except HANGING_UP as error:
                self.hung_up(error)
                raise

    return UntilDemoted
