"""A Redis that is demoted while a proxy or an address already leads to its successor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis._parsers.base import BaseParser

import redis_client
from redis_line import Line
from standalone.servers import Valkey
from tests.faults import Proxy, proxy_to
from tests.support import started


@pytest.fixture
def successor(server_folder: Path, tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(server_folder / f"successor-{tmp_path.name[-12:]}", ["--appendonly", "no"])
    with started(server):
        yield server


@pytest.fixture
def leading(own_valkey: Valkey) -> Iterator[Proxy]:
    """An address that leads to whoever is master."""
    with proxy_to(str(own_valkey.socket)) as found:
        yield found


@pytest.fixture
def own_valkey(server_folder: Path, tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(server_folder / f"demoted-{tmp_path.name[-12:]}", ["--appendonly", "no"])
    with started(server):
        yield server


def demote(server: Valkey) -> None:
    with redis_client.connect(server.url, timeout_sec=5) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", 1)


def test_a_connection_to_a_demoted_master_ends_and_the_next_one_goes_to_its_successor(
    own_valkey: Valkey, successor: Valkey, leading: Proxy
) -> None:
    with redis_client.connect(f"redis://127.0.0.1:{leading.port}", timeout_sec=5) as client:
        line = Line(client)
        line.take(line.send([("SET", "here", 1)]))
        client.set("here", 2)  # on another connection: the line keeps its own
        demote(own_valkey)
        leading.lead_to(str(successor.socket))
        with pytest.raises(redis.ConnectionError, match="is a replica"):
            client.set("here", 3)
        with pytest.raises(redis.ConnectionError, match="is a replica"):
            line.take(line.send([("SET", "here", 3)]))
        client.set("there", 1)
        line.take(line.send([("SET", "there too", 1)]))
        line.drop()
    with redis_client.connect(successor.url, timeout_sec=5) as found:
        assert sorted(found.keys()) == [b"there", b"there too"]


@pytest.mark.parametrize(
    "reply",
    [
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
    ],
)
def test_what_passes_with_a_failover_is_waited_out(reply: str) -> None:
    assert redis_client.is_world(BaseParser.parse_error(reply))  # type: ignore[no-untyped-call]
