"""Which server answers, and what follows for Sluice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

OLDEST = (6, 2)  # XAUTOCLAIM, and XTRIM by MINID


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisServer:
    """`speaks`: the version of Redis whose commands it knows; of Valkey that is not its own version."""

    name: str
    version: str
    speaks: tuple[int, int]
    eviction_policy: str

    @property
    def too_old(self) -> bool:
        return self.speaks < OLDEST

    @property
    def script_flags(self) -> bool:
        """Whether scripts say that they may run while memory is full (`scripting.py`)."""
        return self.speaks >= (7, 0)

    @property
    def counts_reads(self) -> bool:
        """Whether it counts what a group has read, which the ledger is compared with."""
        return self.speaks >= (7, 0)


def look(client: redis.Redis) -> RedisServer:
    """Ask the server. Raises redis errors."""
    info: dict[str, Any] = client.info()
    speaks = str(info.get("redis_version", "0.0"))
    name, version = "Redis", speaks
    if "valkey_version" in info:
        name, version = "Valkey", str(info["valkey_version"])
    major, minor = (int(part) for part in (*speaks.split("."), "0")[:2])
    return RedisServer(
        name=name,
        version=version,
        speaks=(major, minor),
        eviction_policy=str(info.get("maxmemory_policy", "unknown")),
    )
