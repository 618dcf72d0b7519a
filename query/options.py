"""What the query service is told: plain values, and which of them may not go together."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Files in PEM. With `client_ca`, callers must show a certificate that it vouches for."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryOptions:
    """Plain values of the settings that the query service depends on. Times in seconds.

    `direct_url`: the database's address past a pooler, None where there is none. `workers`: most calls that
    use the database at once. `most_streams`: most streams at once. `publish_alerts`: whether
    the end of an alert is marked as due for publishing.
    """

    database_url: str = field(repr=False)
    direct_url: str | None = field(default=None, repr=False)
    table: str
    enable_timescale: bool
    host: str
    port: int
    workers: int
    most_streams: int
    timeout_sec: float
    shutdown_sec: float
    stuck_sec: float = 60.0
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    delete_token: str | None = field(default=None, repr=False)
    publish_alerts: bool = False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
