"""Many streams and several workers, seen from outside: killed, stopped, frozen, and each entry once."""

from __future__ import annotations

import redis

import redis_client
from tests.scenarios import StageOf, fault
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


@fault(
    "workers come and go over many streams",
    how="SIGKILL with a batch in hand, SIGTERM, SIGSTOP and SIGCONT, 700 streams",
)
def test_streams_move_as_workers_are_killed_stopped_frozen_and_started_and_nothing_is_lost_or_doubled(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)

    def start(name: str) -> Daemon:
        return stage.worker(name, worker_timeout_sec=1, claim_min_idle_sec=2, quiet_poll_sec=0.5)

    def progress(source: Source, entries: int) -> None:
        """All that was added until now is settled, and as many entries more as asked for; of the naive
        worker, which keeps no books and may have lost some, half of them are stored.
        """
        upto = source.acknowledged + entries
        if stage.naive:
            wait_until(lambda: database.count() >= upto // 2, 60, f"half of {upto}")
        else:
            wait_until(lambda: books(stage.client).settled >= upto, 60, f"entry {upto}")

    with stage.source(devices=STREAMS) as source:
        killed, stopped, frozen = start("killed"), start("stopped"), start("frozen")
        for worker in (killed, stopped, frozen):
            stage.wait_for(worker, '"workers": 3')
        progress(source, 2_000)
        with stage.in_hand("killed"):
            killed.kill()
        stage.wait_for(frozen, '"workers": 2')
        progress(source, 1_000)
        assert stopped.terminate() == 0
        progress(source, 1_000)
        frozen.freeze()
        last = start("last")
        wait_until(lambda: b"last" in readers(stage.client), 30)
        progress(source, 1_000)
        frozen.thaw()
        stage.wait_for(last, '"workers": 2')
        progress(source, 1_000)
    stage.accounted(source.acknowledged)
    assert readers(stage.client) == {b"killed", b"stopped", b"frozen", b"last"}
    for worker in (frozen, last):
        assert worker.terminate() == 0
    assert redis_client.execute(stage.client, "EXISTS", "sluice:db_writer:alive:mqtt_stream:*") == 0
