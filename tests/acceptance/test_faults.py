"""Shown by: workers killed, servers stopped and killed, and in the end every entry exactly once."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import psycopg

import redis_client
from standalone.servers import Postgres, Valkey
from tests.scenarios import Stage, StageOf, fault
from tests.support import Daemon, Database, books, is_long, wait_until

STREAM = "mqtt_stream:dev-0:t"


@fault("worker killed under load", how="SIGKILL, seven times; then another worker claims what is left")
def test_a_worker_killed_in_mid_load_again_and_again_loses_and_doubles_nothing(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    with stage.source() as source:
        for _ in range(6):
            before = database.count()
            worker = stage.worker("one")
            wait_until(lambda: database.count() > before + 200, 30, "some progress")  # noqa: B023
            worker.kill()
        worker = stage.worker("one")
        with stage.in_hand("one"):  # by luck the naive one is never hit in it
            worker.kill()
        stage.worker("two", claim_min_idle_sec=0.5)
        wait_until(lambda: source.acknowledged > 5000, 60)
    stage.accounted(source.acknowledged)


@fault("worker gone for good", how="entries that a consumer has read who never comes back")
def test_entries_of_a_worker_killed_for_good_are_claimed_by_another(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    stage.add(STREAM, 50)
    stage.client.xgroup_create(STREAM, "db_writer", id="0", entries_read=0)
    redis_client.execute(
        stage.client, "XREADGROUP", "GROUP", "db_writer", "dead", "COUNT", 50, "STREAMS", STREAM, ">"
    )
    stage.worker("alive", claim_min_idle_sec=0.5)
    stage.accounted(50)


@fault("worker frozen", how="SIGSTOP with a batch in hand; another claims and commits it; SIGCONT")
def test_a_frozen_worker_that_wakes_after_its_entries_were_claimed_does_no_harm(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    frozen = _frozen_with_a_batch(stage, "frozen", 2000)
    other = stage.worker("other", claim_min_idle_sec=0.5)
    stage.accounted(2000)
    frozen.thaw()
    assert [frozen.terminate(), other.terminate()] == [0, 0]
    stage.accounted(2000)


@fault("two workers of one name", how="the first is frozen with a batch in hand, wakes after the other")
def test_of_two_workers_of_one_name_the_second_waits_and_the_first_does_no_harm_when_it_wakes(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    first = _frozen_with_a_batch(stage, "one", 2000)
    second = stage.worker("one")
    stage.wait_for(second, "consumer_name_in_use")
    assert stage.naive or database.count() == 0, "it waits"
    if not is_long():  # else the 15 s of the lease run out by themselves
        redis_client.execute(stage.client, "DEL", "sluice:db_writer:worker:one")
    stage.wait_for(second, "consumer_name_taken_over")
    stage.accounted(2000)
    first.thaw()
    stage.wait_for(first, "consumer_name_in_use")
    assert [second.terminate(), first.terminate()] == [0, 0]
    stage.accounted(2000)


def _frozen_with_a_batch(stage: Stage, name: str, entries: int) -> Daemon:
    """A worker that has read a batch, and was stopped while it wrote it."""
    worker = stage.worker(name, claim_min_idle_sec=0.5)
    worker.wait_for("worker_started")
    with psycopg.connect(stage.database.url) as blocker:
        blocker.execute("lock table sensor_readings in access exclusive mode")
        stage.add(STREAM, entries)
        wait_until(lambda: books(stage.client).pending > 0, 30, "a batch in hand")
        worker.freeze()
    return worker


@fault("workers killed at random", how="ten of them started, killed, stopped, frozen, by a printed seed")
def test_ten_workers_started_and_killed_at_random_lose_and_double_nothing(
    stage_of: StageOf, database: Database, redis_url: str, tmp_path: Path
) -> None:
    stage = stage_of(database, redis_url)
    seed = int(os.environ.get("SLUICE_SEED") or random.randrange(10**6))
    print(f"SLUICE_SEED={seed}")
    chance = random.Random(seed)
    workers: dict[str, Daemon] = {}

    def start(name: str) -> Daemon:
        return stage.worker(name, claim_min_idle_sec=1, worker_timeout_sec=1)

    deaths = 0
    with stage.source(rest_sec=0.05) as source:
        until = time.monotonic() + (120 if is_long() else 5)
        while time.monotonic() < until:
            name = f"worker-{chance.randrange(10)}"
            worker = workers.pop(name, None)
            fate = chance.random()
            if worker is None:
                workers[name] = start(name)
            elif fate < 0.2:
                worker.process.terminate()  # and another of its name may start meanwhile
            elif fate < 0.4:
                worker.freeze()
                before = source.acknowledged
                wait_until(lambda: source.acknowledged > before + 400)  # noqa: B023
                worker.thaw()
                workers[name] = worker
            else:
                worker.kill()
                deaths += 1
            threading.Event().wait(chance.uniform(0.02, 0.3))
        workers["doomed"] = start("doomed")
        with stage.in_hand("doomed"):  # by luck the naive ones are never hit in it
            for worker in workers.values():
                worker.kill()
    start("last")
    stage.accounted(source.acknowledged, seconds=180, faults=deaths + len(workers))
    assert not [log.name for log in tmp_path.glob("daemon-*.log") if "Traceback" in log.read_text()]


@fault(
    "clock of a worker set back and forth",
    how="its time of day moved by up to a month while it works (injected)",
    promise="goes on, dead-letters nothing, drops nothing",
)
def test_a_clock_that_is_set_back_and_forth_costs_nothing(
    stage_of: StageOf, database: Database, redis_url: str, tmp_path: Path
) -> None:
    stage = stage_of(database, redis_url)
    offset = tmp_path / "offset"
    offset.write_text("0")
    worker = stage.worker("one", tests_clock_offset=offset, stream_retention_sec=3600)
    with stage.source(rest_sec=0.05) as source:
        for days in (1, -2, 30, -30, 0):
            before = source.acknowledged
            offset.write_text(str(days * 86_400))
            wait_until(lambda: books(stage.client).settled > before, 30, "work goes on")  # noqa: B023
    stage.accounted(source.acknowledged)
    assert worker.terminate() == 0


@fault(
    "PostgreSQL stopped for twenty seconds",
    how="stopped and started under load",
    promise="goes on by itself, one outage in the log",
)
def test_postgresql_stopped_for_twenty_seconds_costs_nothing(
    stage_of: StageOf, own_postgres: Postgres, own_database: Database, redis_url: str
) -> None:
    stage = stage_of(own_database, redis_url)
    workers = [stage.worker(name) for name in ("one", "two")]
    with stage.source() as source:
        wait_until(lambda: books(stage.client).settled > 500, 30)
        own_postgres.stop()
        at_stop = source.acknowledged
        threading.Event().wait(20)
        assert source.acknowledged > at_stop, "producers go on"
        own_postgres.start()
        wait_until(lambda: books(stage.client).settled > at_stop, 60, "work goes on by itself")
    stage.accounted(source.acknowledged)
    for worker in workers:
        assert worker.text().count("outage_began") == 1
        assert worker.text().count("outage_ended") == 1
        assert worker.terminate() == 0


@fault(
    "Valkey killed",
    how="SIGKILL under load, three times, restarted from its append-only file (always)",
    promise="goes on by itself",
)
def test_valkey_killed_and_restarted_from_its_append_only_file_costs_nothing(
    stage_of: StageOf, own_valkey: Valkey, database: Database
) -> None:
    stage = stage_of(database, own_valkey.url)
    workers = [stage.worker(name) for name in ("one", "two")]
    for worker in workers:  # one that is not there yet meets nothing, and a signal ends it
        worker.wait_for("worker_started", 60)
    with stage.source() as source:
        for _ in range(3):
            before = source.acknowledged
            wait_until(lambda: source.acknowledged > before + 500, 30)  # noqa: B023
            own_valkey.kill()
            own_valkey.start()
    stage.accounted(source.acknowledged)
    assert [worker.terminate() for worker in workers] == [0, 0]


@fault("both servers killed at once", how="SIGKILL under load, both restarted", promise="goes on by itself")
def test_both_servers_killed_at_once_cost_nothing(
    stage_of: StageOf, own_valkey: Valkey, own_postgres: Postgres, own_database: Database
) -> None:
    stage = stage_of(own_database, own_valkey.url)
    worker = stage.worker("one")
    with stage.source() as source:
        wait_until(lambda: source.acknowledged > 1000, 30)
        own_postgres.kill()
        own_valkey.kill()
        own_valkey.start()
        own_postgres.start()
        wait_until(lambda: books(stage.client).settled > 1500, 60)
    stage.accounted(source.acknowledged)
    assert worker.terminate() == 0


@fault("worker stopped under load", how="SIGTERM with a batch in hand, then another worker")
def test_sigterm_under_load_ends_with_status_0_and_nothing_pending_for_that_consumer(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    with stage.source() as source:
        worker = stage.worker("one", shutdown_timeout_sec=10)
        wait_until(lambda: database.count() > 500, 30)
        with stage.in_hand("one"):
            worker.process.terminate()
        assert worker.process.wait(10) == 0
        if not stage.naive:
            assert books(stage.client).pending == 0
            settled = books(stage.client).settled
            assert database.count() == settled
    if not stage.naive:
        assert settled < source.acknowledged, "it was under load"
    stage.worker("two")
    stage.accounted(source.acknowledged)


@fault("a second signal", how="SIGTERM twice while PostgreSQL is away", promise="ends at once, not with 0")
def test_a_second_signal_ends_at_once_with_another_status_and_loses_nothing(
    stage_of: StageOf, own_postgres: Postgres, own_database: Database, redis_url: str
) -> None:
    stage = stage_of(own_database, redis_url)
    worker = stage.worker("one")
    worker.wait_for("worker_started")
    own_postgres.stop()
    stage.add(STREAM, 1)
    worker.wait_for("outage_began")
    worker.process.terminate()
    worker.wait_for("stop_waits_for_server")
    assert worker.terminate(seconds=5) == 1
    own_postgres.start()
    stage.worker("one")
    stage.accounted(1)


@fault(
    "worker stopped in an outage",
    how="SIGTERM while PostgreSQL is away",
    promise="ends in time with 0, the batch stays pending",
)
def test_sigterm_in_an_outage_leaves_the_batch_pending_and_ends_in_time(
    stage_of: StageOf, own_postgres: Postgres, own_database: Database, redis_url: str
) -> None:
    stage = stage_of(own_database, redis_url)
    # it gives up when a quarter of the time is left: enough for closing on a busy machine too
    worker = stage.worker("one", shutdown_timeout_sec=8)
    worker.wait_for("worker_started")
    own_postgres.stop()
    stage.add(STREAM, 1)
    worker.wait_for("outage_began")
    assert worker.terminate(seconds=8) == 0
    assert books(stage.client).pending == 1
    own_postgres.start()
    stage.worker("one")
    stage.accounted(1)
