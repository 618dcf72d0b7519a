"""Which servers are Redis, and how one logs in there: plain values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class RedisMode(StrEnum):
    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


Node = tuple[str, int]  # host and port


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisServers:
    """One server, or those that say which one to take.

    `url`: the server; or, with sentinels or a cluster, only the login, database number and options (TLS is
    one, by rediss://) for whichever server it turns out to be. `nodes`: the sentinels, or the nodes of the
    cluster that are asked first. `master`: its name at the sentinels, which have a login of their own.
    """

    url: str = field(repr=False)
    mode: RedisMode = RedisMode.SINGLE
    nodes: tuple[Node, ...] = ()
    master: str = ""
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
