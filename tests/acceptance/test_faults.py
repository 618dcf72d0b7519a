"""Shown by: workers killed, servers stopped and killed, and in the end every entry exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import redis

import redis_client
from standalone.servers import Postgres, Valkey
from tests.scenarios import StageOf, fault
from tests.source import Source
from tests.support import Daemon, Database, add, books, everything_settled, wait_until


def numbered(entries: int) -> list[dict[str, str]]:
    return [{"value": str(n), "timestamp": str(1_767_225_600 + n)} for n in range(entries)]


def exactly_once(database: Database, client: redis.Redis, produced: int) -> None:
    """The check that ends every scenario."""
    wait_until(lambda: everything_settled(client, produced), 90, f"the end of {produced} entries")
    assert database.rows("select value::int from sensor_readings order by 1") == [
        (n,) for n in range(produced)
    ]
    total = books(client)
    assert (total.stored, total.duplicate, total.dead_lettered) == (produced, 0, 0)
    assert redis_client.execute(client, "XLEN", "mqtt_stream:failed") == 0


@fault("worker killed under load", how="SIGKILL, six times; then another worker claims what is left")
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
        stage.worker("two", claim_min_idle_sec=0.5)
        wait_until(lambda: source.acknowledged > 5000, 60)
    stage.accounted(source.acknowledged)


def test_entries_of_a_worker_killed_for_good_are_claimed_by_another(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    add(
        client,
        "mqtt_stream:dev-0:t",
        [{"value": str(n), "timestamp": str(1_767_225_600 + n)} for n in range(50)],
    )
    group = ("db_writer", "dead")
    client.xgroup_create("mqtt_stream:dev-0:t", group[0], id="0", entries_read=0)
    redis_client.execute(
        client, "XREADGROUP", "GROUP", *group, "COUNT", 50, "STREAMS", "mqtt_stream:dev-0:t", ">"
    )
    daemon(database, redis_url, consumer_name="alive", claim_min_idle_sec=0.5)
    exactly_once(database, client, 50)


def test_a_frozen_worker_that_wakes_after_its_entries_were_claimed_does_no_harm(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    frozen = daemon(database, redis_url, consumer_name="frozen", claim_min_idle_sec=0.5)
    frozen.wait_for("worker_started")
    with psycopg.connect(database.url) as blocker:
        blocker.execute("lock table sensor_readings in access exclusive mode")
        add(client, "mqtt_stream:dev-0:t", numbered(2000))
        wait_until(lambda: books(client).pending > 0, 30, "a batch in hand")
        frozen.freeze()
    daemon(database, redis_url, consumer_name="other", claim_min_idle_sec=0.5)
    exactly_once(database, client, 2000)
    frozen.thaw()
    assert frozen.terminate() == 0
    exactly_once(database, client, 2000)


def test_postgresql_stopped_for_twenty_seconds_costs_nothing(
    own_postgres: Postgres,
    own_database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    workers = [daemon(own_database, redis_url, consumer_name=name) for name in ("one", "two")]
    with Source(redis_url) as source:
        wait_until(lambda: books(client).settled > 500, 30)
        own_postgres.stop()
        at_stop = source.acknowledged
        threading.Event().wait(20)
        assert source.acknowledged > at_stop, "producers go on"
        own_postgres.start()
        wait_until(lambda: books(client).settled > at_stop, 60, "work goes on by itself")
    exactly_once(own_database, client, source.acknowledged)
    for worker in workers:
        assert worker.text().count("outage_began") == 1
        assert worker.text().count("outage_ended") == 1
        assert worker.terminate() == 0


def test_valkey_killed_and_restarted_from_its_append_only_file_costs_nothing(
    own_valkey: Valkey, database: Database, daemon: Callable[..., Daemon]
) -> None:
    client = redis_client.connect(own_valkey.url, timeout_sec=10)
    workers = [daemon(database, own_valkey.url, consumer_name=name) for name in ("one", "two")]
    with Source(own_valkey.url) as source:
        for _ in range(3):
            before = source.acknowledged
            wait_until(lambda: source.acknowledged > before + 500, 30)  # noqa: B023
            own_valkey.kill()
            own_valkey.start()
    exactly_once(database, client, source.acknowledged)
    assert [worker.terminate() for worker in workers] == [0, 0]
    client.close()


def test_both_servers_killed_at_once_cost_nothing(
    own_valkey: Valkey, own_postgres: Postgres, own_database: Database, daemon: Callable[..., Daemon]
) -> None:
    client = redis_client.connect(own_valkey.url, timeout_sec=10)
    worker = daemon(own_database, own_valkey.url, consumer_name="one")
    with Source(own_valkey.url) as source:
        wait_until(lambda: source.acknowledged > 1000, 30)
        own_postgres.kill()
        own_valkey.kill()
        own_valkey.start()
        own_postgres.start()
        wait_until(lambda: books(client).settled > 1500, 60)
    exactly_once(own_database, client, source.acknowledged)
    assert worker.terminate() == 0
    client.close()


def test_sigterm_under_load_ends_with_status_0_and_nothing_pending_for_that_consumer(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    with Source(redis_url) as source:
        worker = daemon(database, redis_url, consumer_name="one", shutdown_timeout_sec=10)
        wait_until(lambda: books(client).settled > 500, 30)
        assert worker.terminate(seconds=10) == 0
        assert books(client).pending == 0
        settled = books(client).settled
    assert settled < source.acknowledged, "it was under load"
    assert database.count() == settled


def test_a_second_signal_ends_at_once_with_another_status_and_loses_nothing(
    own_postgres: Postgres,
    own_database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    worker = daemon(own_database, redis_url, consumer_name="one")
    worker.wait_for("worker_started")
    own_postgres.stop()
    add(client, "mqtt_stream:dev-0:t", [{"value": "0", "timestamp": "1767225600"}])
    worker.wait_for("outage_began")
    worker.process.terminate()
    worker.wait_for("stop_waits_for_server")
    assert worker.terminate(seconds=5) == 1
    own_postgres.start()
    daemon(own_database, redis_url, consumer_name="one")
    exactly_once(own_database, client, 1)


def test_sigterm_in_an_outage_leaves_the_batch_pending_and_ends_in_time(
    own_postgres: Postgres,
    own_database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: Callable[..., Daemon],
) -> None:
    # it gives up when a quarter of the time is left: enough for closing on a busy machine too
    worker = daemon(own_database, redis_url, consumer_name="one", shutdown_timeout_sec=8)
    worker.wait_for("worker_started")
    own_postgres.stop()
    add(client, "mqtt_stream:dev-0:t", [{"value": "0", "timestamp": "1767225600"}])
    worker.wait_for("outage_began")
    assert worker.terminate(seconds=8) == 0
    assert books(client).pending == 1
    own_postgres.start()
    daemon(own_database, redis_url, consumer_name="one")
    exactly_once(own_database, client, 1)
