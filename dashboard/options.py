"""What the dashboard is told: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from query.options import Tls
from redis_servers import RedisServers


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOptions:
    """Which consumer group of which Redis is shown. `named`: streams beside those of `pattern`."""

    redis: RedisServers | str = field(repr=False)
    group: str
    pattern: str
    dead_letter_stream: str
    named: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DashboardOptions:
    """Plain values of the settings that the dashboard depends on. Times in seconds.

    `direct_url`: the database's address past a pooler, None where there is none. `allowed_hosts`: what a
    browser may call this server beside the names of loopback; empty off loopback: anything.
    `clients`: most WebSockets at once. `publish_alerts`: whether the end of an alert is marked as due for
    publishing.
    """

    database_url: str = field(repr=False)
    direct_url: str | None = field(default=None, repr=False)
    table: str
    enable_timescale: bool
    host: str
    port: int
    clients: int
    timeout_sec: float
    shutdown_sec: float
    stuck_sec: float = 60.0
    pipeline: PipelineOptions
    tls: Tls | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    publish_alerts: bool = False

    @property
    def open(self) -> bool:
        """Whether nobody is asked who they are."""
        return self.password is None and self.token is None
