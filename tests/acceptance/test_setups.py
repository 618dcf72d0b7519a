"""Shown by: Redis as people run it, with its servers killed under load, and every entry exactly once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

import redis_client
from redis_cluster import slot_of
from redis_servers import RedisServers
from tests.scenarios import Stage, StageOf, fault
from tests.setups import USERS, Cluster, Node, Watched, clustered, settings_of, watched
from tests.source import Source
from tests.support import ROOT, Database, wait_until


@pytest.fixture(scope="module")
def shared_sentinels(server_folder: Path) -> Iterator[Watched]:
    users = {name: USERS[name] for name in ("sluice-worker", "sluice-sentinel")}
    with watched(server_folder / "watched", users) as found:
        yield found


@pytest.fixture
def sentinels(shared_sentinels: Watched) -> Watched:
    """A master with a replica, empty, and three sentinels."""
    for node in shared_sentinels.nodes:
        if not node.process:
            node.start()
            shared_sentinels.follow(node)
    with redis_client.connect(shared_sentinels.servers, timeout_sec=10) as client:
        client.flushall()
    return shared_sentinels


@pytest.fixture(scope="module")
def shared_cluster(server_folder: Path) -> Iterator[Cluster]:
    with clustered(server_folder / "cluster", replicas=True) as found:
        yield found


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Three masters with a replica each, empty."""
    for member in shared_cluster.members:
        if not member.process:
            member.start()
            wait_until(lambda: member.follows, 60, "a member that is back")  # noqa: B023
    with redis_client.connect(shared_cluster.servers, timeout_sec=10) as client:
        client.flushall()
    return shared_cluster


@contextlib.contextmanager
def left_behind(replica: Node, master: Node, source: Source, database: Database) -> Iterator[None]:
    """While this lasts, `replica` does not know of readings of dev-0 that workers have stored."""
    replica.lose(master)
    try:
        known = source.added + 1  # that one may be under way
        query = "select 1 from sensor_readings where device_id = 'dev-0' and value > %s limit 1"
        wait_until(lambda: database.rows(query, known), 60, "more than the replica knows of")
        yield
    finally:
        replica.find_again()


def denied(node: Node) -> list[object]:
    with node.client() as client:
        return list(redis_client.execute(client, "ACL", "LOG"))


def goes_on(source: Source, database: Database) -> None:
    before = source.acknowledged
    wait_until(lambda: source.acknowledged > before + 1000, 60, "producers that go on")
    wait_until(lambda: database.count() > before + 1000, 60, "workers that go on")


def verified(stage: Stage, servers: RedisServers) -> None:
    """`main.py verify` finds everything in order there."""
    environment = {
        **os.environ,
        **stage.database.environment(),
        "REDIS_URL": servers.url,
        **{name.upper(): str(value) for name, value in settings_of(servers).items()},
    }
    command = [sys.executable, str(ROOT / "main.py"), "verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@fault(
    "Redis master killed, failover by Sentinel",
    how="SIGKILL under load while the replica lags behind, then switched back on command; a producer that "
    "waits for the replica",
)
def test_a_failover_by_sentinel_is_followed_and_costs_nothing(
    stage_of: StageOf, database: Database, sentinels: Watched
) -> None:
    stage = stage_of(database, sentinels.servers)
    with (
        redis_client.connect(replace(sentinels.servers, master="other"), timeout_sec=5) as nobody,
        pytest.raises(redis.ConnectionError, match="No master found for 'other'"),
    ):
        nobody.ping()
    sentinel = {"redis_sentinel_username": "sluice-sentinel", "redis_sentinel_password": "secret"}
    stage.log_in("redis://sluice-worker:secret@", **sentinel)
    workers = [stage.worker(name) for name in ("one", "two")]
    with stage.source(replicas=1) as source:
        goes_on(source, database)
        killed = sentinels.master
        with left_behind(sentinels.replica_of(killed), killed, source, database):
            killed.kill()
        wait_until(lambda: sentinels.master is not killed, 60, "the failover")
        killed.start()
        sentinels.follow(killed)
        goes_on(source, database)
        if stage.naive:
            stage.accounted(source.acknowledged)
        sentinels.switch()
        wait_until(lambda: sentinels.master is killed, 60, "the switch")
        goes_on(source, database)
    stage.accounted(source.acknowledged)
    verified(stage, sentinels.servers)
    assert [worker.terminate() for worker in workers] == [0, 0]
    assert [denied(node) for node in (*sentinels.nodes, *sentinels.sentinels)] == [[]] * 5


@fault(
    "slots of a Redis Cluster moved to other nodes",
    how="SETSLOT and MIGRATE under load, key by key, four streams one after the other",
    promise="follows the slots, and counts every entry once",
)
def test_slots_that_move_under_load_cost_nothing(
    stage_of: StageOf, database: Database, cluster: Cluster
) -> None:
    stage = stage_of(database, cluster.servers)
    workers = [stage.worker(name) for name in ("one", "two")]
    with stage.source(replicas=1) as source:
        goes_on(source, database)
        for device in range(4):
            slot = slot_of(f"mqtt_stream:dev-{device}:t")
            before = cluster.owner(slot)
            cluster.move(slot, pause=lambda: threading.Event().wait(0.1))
            wait_until(lambda: cluster.owner(slot) is not before, 30, "a slot that moved")  # noqa: B023
        goes_on(source, database)
    stage.accounted(source.acknowledged)
    verified(stage, cluster.servers)
    assert [worker.terminate() for worker in workers] == [0, 0]


@fault(
    "master of a Redis Cluster killed, its replica promoted",
    how="SIGKILL under load while the replica lags behind; a producer that waits for replicas",
)
def test_a_master_of_a_cluster_that_is_killed_costs_nothing(
    stage_of: StageOf, database: Database, cluster: Cluster
) -> None:
    stage = stage_of(database, cluster.servers)
    workers = [stage.worker(name) for name in ("one", "two")]
    slot = slot_of("mqtt_stream:dev-0:t")
    with stage.source(replicas=1) as source:
        goes_on(source, database)
        killed = cluster.owner(slot)
        with left_behind(cluster.replica_of(killed), killed, source, database):
            killed.kill()
        wait_until(lambda: cluster.owner(slot) is not killed, 60, "the promotion")
        killed.start()
        wait_until(lambda: killed.follows, 60, "the old master as a replica")
        goes_on(source, database)
    stage.accounted(source.acknowledged)
    verified(stage, cluster.servers)
    assert [worker.terminate() for worker in workers] == [0, 0]
