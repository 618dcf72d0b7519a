"""Which servers a worker had better not start with."""

from __future__ import annotations

import pytest

from redis_server import RedisServer


def server(speaks: tuple[int, int] = (7, 2), policy: str = "noeviction") -> RedisServer:
    return RedisServer(name="Valkey", version="9.1.2", speaks=speaks, eviction_policy=policy)


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "unknown"])
@pytest.mark.parametrize("speaks", [(6, 2), (7, 0), (10, 0)])
def test_a_server_that_keeps_streams_is_fit(speaks: tuple[int, int], policy: str) -> None:
    assert server(speaks, policy).unfit(allow_eviction=False) == ""


@pytest.mark.parametrize("speaks", [(6, 1), (5, 0)])
def test_an_old_server_is_unfit_whatever_is_accepted(speaks: tuple[int, int]) -> None:
    said = server(speaks).unfit(allow_eviction=True)
    assert said == "Valkey 9.1.2 is too old; Sluice needs Redis 6.2 or newer"


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_deletes_unread_streams_is_unfit_unless_the_loss_is_accepted(policy: str) -> None:
    assert server(policy=policy).unfit(allow_eviction=False) == (
        f"Redis runs with maxmemory-policy {policy}, which deletes unread streams when memory is short; "
        "set it to noeviction, or set REDIS_ALLOW_EVICTION=true to accept the loss"
    )
    assert server(policy=policy).unfit(allow_eviction=True) == ""
