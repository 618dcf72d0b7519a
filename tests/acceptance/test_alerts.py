"""Alerts, seen by a subscriber: one created and one resolved an excursion, whatever dies in between."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import psycopg
import pytest
import redis

from standalone.servers import Postgres
from tests.acceptance.feeding import (
    BEGIN,
    ONE_BROKER,
    PLACE,
    Stopwatch,
    due,
    expire,
    ids,
    open_alerts,
    packed,
    rfc3339,
    send,
    to_broker,
)
from tests.alerts import add_rule, alerts
from tests.broker import Broker, Recorder, recording
from tests.faults import Proxy
from tests.support import Daemon, Database, add, books, everything_settled, wait_until

OUTAGE_SEC = 30.0
SHARD = "mqtt_stream:shard:0"

StartDaemon = Callable[..., Daemon]


def test_an_excursion_is_told_once_when_it_begins_and_once_when_it_ends(
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
    recorder: Recorder,
) -> None:
    rule = {"id": "hot", "value": 30, "hysteresis": 2, "severity": "critical", "sensor_id": "s-17"}
    add_rule(database, kind="max", **rule)
    daemon(database, redis_url, **to_broker(broker))

    def measure(*values: float) -> None:
        first = books(client).added
        add(client, SHARD, [packed("kitchen", {"temperature": v}, first + n) for n, v in enumerate(values)])
        wait_until(lambda: everything_settled(client, first + len(values)))

    measure(29)
    measure(31)
    recorder.wait_for(1)
    measure(33)
    measure(32, 29, 30)  # 29 is no violation, but not behind the margin either
    assert open_alerts(database) == 1
    wait_until(lambda: due(database) == 0)
    measure(28)
    recorder.wait_for(2)
    wait_until(lambda: due(database) == 0)

    (alert,) = ids(database)
    created = {
        "id": alert,
        "event_type": "created",
        "sensor_id": "s-17",
        "threshold_id": "hot",
        "device_id": "kitchen",
        "place_id": PLACE,
        "key": "temperature",
        "value": 31.0,
        "threshold_value": 30.0,
        "threshold_type": "max",
        "severity": "critical",
        "created_at": rfc3339(1),
        "resolved_at": None,
    }
    resolved = created | {"event_type": "resolved", "resolved_at": rfc3339(6)}
    assert recorder.messages == [(f"placebrain/{PLACE}/alerts", body) for body in (created, resolved)]
    (row,) = alerts(database)
    assert (row.status, row.value, row.last, row.peak, row.violations) == ("resolved", 31, 28, 33, 3)
    times = [(BEGIN + second) * 1_000_000 for second in (1, 1, 6)]
    assert [row.first, row.created, row.resolved] == times
    assert database.rows("select extract(epoch from last_time)::bigint from alerts") == [(BEGIN + 6,)]


@ONE_BROKER
def test_a_broker_that_is_down_for_30_s_holds_up_no_reading_and_loses_no_alert(
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
    recorder: Recorder,
    proxy: Proxy,
) -> None:
    for device in ("before", "within", "after"):
        add_rule(database, kind="max", value=30, device_pattern=device)
    daemon(database, redis_url, **to_broker(broker, proxy.port))
    send(client, [31], 0, "before")
    recorder.wait_for(1)
    wait_until(lambda: due(database) == 0)
    proxy.refuse = True  # until the recorder is back, since the broker keeps nothing for it
    proxy.cut()
    broker.kill()
    outage, sent, slowest = Stopwatch(), 1, 0.0
    while outage.seconds < OUTAGE_SEC:
        moment = Stopwatch()
        send(client, range(20), sent, "bystander")
        sent += 20
        wait_until(lambda: everything_settled(client, sent))  # noqa: B023  called at once
        slowest = max(slowest, moment.seconds)
        if sent == 101:
            send(client, [29], 1, "before")
            send(client, [31, 29], 0, "within")
            send(client, [31], 0, "after")
            sent += 4
    assert database.count() == sent
    assert due(database) == 3
    assert slowest < 3
    print(
        f"\n{sent} readings in {outage.seconds:.0f} s without a broker, the slowest 20 in {slowest:.2f} s"
    )
    broker.start()
    recorder.wait_subscribed()
    proxy.refuse = False
    recorder.wait_for(5, 60)
    wait_until(lambda: due(database) == 0)
    told = [(body["device_id"], body["event_type"]) for _, body in recorder.messages]
    assert told[0] == ("before", "created")
    assert Counter(told) == Counter(
        [
            ("before", "created"),
            ("before", "resolved"),
            ("within", "created"),
            ("within", "resolved"),
            ("after", "created"),
        ]
    )
    assert told.index(("within", "created")) < told.index(("within", "resolved"))
    numbers = {row[0]: row[1] for row in database.rows("select device_id, number from alerts")}
    recorded = [numbers[device] for device, _ in told[1:]]
    assert recorded == sorted(recorded), "in the order in which they were recorded"


@pytest.mark.parametrize("reached_broker", [False, True], ids=["before sending", "before PUBACK"])
def test_a_worker_killed_between_commit_and_publishing_leaves_that_to_the_next(
    reached_broker: bool,
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
    recorder: Recorder,
    proxy: Proxy,
) -> None:
    add_rule(database, kind="max", value=30)
    first = daemon(database, redis_url, consumer_name="first", **to_broker(broker, proxy.port))
    first.wait_for("mqtt_connected")
    wait_until(lambda: database.rows("select 1 from duties where name = 'publish'"))
    if reached_broker:
        proxy.mute = True
    else:
        proxy.refuse = True
        proxy.cut()
    send(client, [31], 0)
    wait_until(lambda: everything_settled(client, 1))
    if reached_broker:
        recorder.wait_for(1)
    first.kill()
    assert due(database) == 1
    assert len(recorder.told) == reached_broker
    expire(database, "publish")
    daemon(database, redis_url, consumer_name="second", **to_broker(broker))
    recorder.wait_for(1 + reached_broker)
    send(client, [32, 29], 1)
    recorder.wait_for(2 + reached_broker)
    wait_until(lambda: due(database) == 0)
    (alert,) = ids(database)
    assert recorder.told == [(alert, "created")] * (1 + reached_broker) + [(alert, "resolved")]


RULES = {
    "hot": {"kind": "max", "value": 6, "device_pattern": "*", "sensor_pattern": "*"},
    "cold": {"kind": "min", "value": 2, "device_pattern": "*", "sensor_pattern": "*"},
    "calm": {"kind": "max", "value": 7, "hysteresis": 4, "device_pattern": "dev-?", "sensor_pattern": "t"},
}
DEVICES = [f"dev-{number}" for number in range(8)]
WORKERS = 3
WAITING = """
    select count(distinct pid)::int from pg_locks
    where not granted and database = (select oid from pg_database where datname = current_database())
"""
PUBLISHES = "select split_part(holder, ' ', 1) from duties where name = 'publish' and held_until > now()"
MOST_OPEN = """
    select coalesce(max(open), 0) from (
        select count(*) as open from alerts where status <> 'resolved'
        group by threshold_id, device_id, sensor_type
    ) as each
"""
ROUNDS = 500


def load(client: redis.Redis, seed: int) -> dict[str, list[int]]:
    """Values of a few devices, a second apart: half of them in their own streams, half in one shard."""
    rng = random.Random(seed)
    values: dict[str, list[int]] = {device: [] for device in DEVICES}
    with client.pipeline(transaction=False) as pipe:
        for second in range(ROUNDS):
            for number, device in enumerate(DEVICES):
                value = rng.randrange(10)
                values[device].append(value)
                if number % 2:
                    pipe.xadd(SHARD, packed(device, {"t": value}, second))  # type: ignore[arg-type]
                else:
                    flat = {"value": value, "timestamp": BEGIN + second}
                    pipe.xadd(f"mqtt_stream:{device}:t", flat)  # type: ignore[arg-type]
        pipe.execute()
    return values


def assert_newest_decided(database: Database, values: dict[str, list[int]]) -> None:
    """What is open at the end is what the newest reading of each series says, or left to the margin."""
    found = database.rows("select threshold_id, device_id from alerts where status = 'active'")
    for device, measured in values.items():
        newest = measured[-1]
        assert (("hot", device) in found) == (newest > 6), (device, newest)
        assert (("cold", device) in found) == (newest < 2), (device, newest)
        if newest > 7 or newest <= 3:
            assert (("calm", device) in found) == (newest > 7), (device, newest)


def assert_one_after_the_other(database: Database) -> None:
    """No two alerts of one rule and series were open at the same time, by the times of the readings."""
    found = database.rows(
        "select threshold_id, device_id, first_time, resolved_at from alerts order by 1, 2, 3, number"
    )
    for before, after in pairwise(found):
        if before[:2] == after[:2]:
            assert before[3] is not None, before
            assert before[3] <= after[2], (before, after)


@ONE_BROKER
def test_workers_that_share_a_series_and_die_keep_one_alert_for_each_rule_and_series(
    database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
    recorder: Recorder,
) -> None:
    for name, rule in RULES.items():
        add_rule(database, id=name, **rule)
    settings = {**to_broker(broker), "batch_size": 40, "claim_min_idle_sec": 1}
    workers = [daemon(database, redis_url, consumer_name=f"w{n}", **settings) for n in range(WORKERS)]
    for worker in workers:
        worker.wait_for("worker_started")
    wait_until(lambda: database.rows(PUBLISHES))
    victim = database.rows(PUBLISHES)[0][0]  # the one that publishes, so that it is a crash for that too
    values = load(client, seed=7)
    produced = ROUNDS * len(DEVICES)
    wait_until(lambda: books(client).settled > produced // 5)
    with psycopg.connect(database.url) as blocker:
        blocker.execute("lock table sensor_readings in share mode")  # who writes waits, who reads does not
        wait_until(lambda: database.rows(WAITING) == [(WORKERS,)], what="a batch in everybody's hands")
        workers[int(victim[1:])].kill()
    died_with = _pending_of(client, victim)
    assert died_with > 0
    expire(database, "publish")
    workers.append(daemon(database, redis_url, consumer_name="w3", **settings))

    def settled() -> bool:
        assert database.rows(MOST_OPEN)[0][0] <= 1
        return everything_settled(client, produced)

    wait_until(settled, 90)
    wait_until(lambda: due(database) == 0, 60)
    assert database.count() == produced
    assert_newest_decided(database, values)
    assert_one_after_the_other(database)
    wrote = [worker.text().count('"event": "batch"') for worker in workers]
    assert min(wrote[:WORKERS]) > 0, f"everybody has written something: {wrote}"
    assert all(
        worker.process.poll() is None for worker in workers if worker is not workers[int(victim[1:])]
    )
    events = database.rows("select id::text, resolved_at is not null from alerts")
    told = Counter(recorder.told)
    assert set(told) == {(one, "created") for one, _ in events} | {
        (one, "resolved") for one, over in events if over
    }
    repeated = sum(told.values()) - len(told)
    assert repeated <= 100, "only what was in flight at the crash is repeated"
    print(
        f"\n{produced} readings, {len(events)} alerts, {repeated} told twice, {died_with} entries claimed"
    )


def _pending_of(client: redis.Redis, consumer: str) -> int:
    total = 0
    for stream in client.scan_iter("mqtt_stream:*"):
        found = client.xpending_range(stream, "db_writer", "-", "+", 10_000, consumername=consumer)
        total += len(found)
    return total


def test_after_a_restart_of_everything_what_is_still_violated_is_no_news(
    own_postgres: Postgres,
    own_database: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
) -> None:
    add_rule(own_database, id="hot", kind="max", value=30)
    add_rule(own_database, id="lasting", kind="max", value=30, debounce_count=4)
    worker = daemon(own_database, redis_url, consumer_name="first", **to_broker(broker))
    with recording(broker) as recorder:
        send(client, [31, 32], 0)
        recorder.wait_for(1)
        wait_until(lambda: due(own_database) == 0)
    before = own_database.rows("select id, status from alerts order by threshold_id")
    assert [status for _, status in before] == ["active", "pending"]
    worker.kill()
    own_postgres.kill()
    broker.kill()
    broker.start()
    own_postgres.start()
    expire(own_database, "publish")
    with recording(broker) as recorder:
        daemon(own_database, redis_url, consumer_name="second", **to_broker(broker))
        send(client, [33], 2)
        wait_until(lambda: everything_settled(client, 3))
        assert own_database.rows("select id, status from alerts order by threshold_id") == before
        send(client, [34], 3)  # the fourth: a debounce that was half served goes on
        recorder.wait_for(1)
        send(client, [29], 4)
        recorder.wait_for(3)
        wait_until(lambda: due(own_database) == 0)
        (hot, lasting) = [str(one) for one, _ in before]
        assert recorder.told[0] == (lasting, "created")
        assert Counter(recorder.told[1:]) == Counter([(hot, "resolved"), (lasting, "resolved")])
    assert [row.violations for row in alerts(own_database)] == [4, 4]
