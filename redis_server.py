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
    def evicts(self) -> bool:
        """Whether it deletes unread streams, without a word, when memory is short."""
        return self.eviction_policy.startswith("allkeys-")

    def unfit(self, *, allow_eviction: bool) -> str:
        """Why a worker had better not start with it, and what to do; empty where it may."""
        if self.too_old:
            return f"{self.name} {self.version} is too old; Sluice needs Redis 6.2 or newer"
        if self.evicts and not allow_eviction:
            return (
                f"Redis runs with maxmemory-policy {self.eviction_policy}, which deletes unread streams "
                "when memory is short; set it to noeviction, or set REDIS_ALLOW_EVICTION=true to accept "
                "the loss"
            )
        return ""

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
