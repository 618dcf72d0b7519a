"""Many streams and several workers, seen from outside: killed, stopped, frozen, and each entry once."""

from __future__ import annotations

from collections.abc import Callable

import redis

import redis_client
from tests.acceptance.test_faults import exactly_once
from tests.source import Source
from tests.support import Daemon, Database, books, wait_until

STREAMS = 700


def readers(client: redis.Redis) -> set[bytes]:
    """The workers that have read from some stream."""
    found: set[bytes] = set()
    for number in range(0, STREAMS, 10):
        consumers = client.xinfo_consumers(f"mqtt_stream:dev-{number}:t", "db_writer")
        found |= {consumer["name"] for consumer in consumers if consumer["inactive"] >= 0}
    return found


def test_streams_move_as_workers_are_killed_stopped_frozen_and_started_and_nothing_is_lost_or_doubled(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    def start(name: str) -> Daemon:
        return daemon(
            database,
            redis_url,
            consumer_name=name,
            worker_timeout_sec=1,
            claim_min_idle_sec=0.5,
            quiet_poll_sec=0.5,
        )

    def progress(source: Source, entries: int) -> None:
        """All that was added until now is settled, and as many entries more as asked for."""
        upto = source.acknowledged + entries
        wait_until(lambda: books(client).settled >= upto, 60, f"entry {upto}")

    with Source(redis_url, devices=STREAMS) as source:
        killed, stopped, frozen = start("killed"), start("stopped"), start("frozen")
        for worker in (killed, stopped, frozen):
            worker.wait_for('"workers": 3')
        progress(source, 2_000)
        killed.kill()
        frozen.wait_for('"workers": 2')
        progress(source, 1_000)
        assert stopped.terminate() == 0
        progress(source, 1_000)
        frozen.freeze()
        last = start("last")
        wait_until(lambda: b"last" in readers(client), 30)
        progress(source, 1_000)
        frozen.thaw()
        last.wait_for('"workers": 2')
        progress(source, 1_000)
    exactly_once(database, client, source.acknowledged)
    assert readers(client) == {b"killed", b"stopped", b"frozen", b"last"}
    for worker in (frozen, last):
        assert worker.terminate() == 0
    assert redis_client.execute(client, "EXISTS", "sluice:db_writer:alive:mqtt_stream:*") == 0
