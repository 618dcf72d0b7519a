"""Settings of what a process tells of itself."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class HealthSettings(BaseSettings):
    """Where probes and Prometheus ask. Raises: see `config.load`."""

    health_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address of /livez, /readyz and /metrics; whoever reaches it may read them",
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="port of them, another one for each process of a machine; 0: none"
    )
    health_stuck_sec: float = Field(
        60.0,
        ge=1,
        le=86_400,
        description="a loop that has not got on for so long, beyond the longest time that one question to "
        "a server may take, is stuck: /livez fails, and systemd's watchdog is not fed",
    )
