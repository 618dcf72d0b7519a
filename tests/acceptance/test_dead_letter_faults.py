"""Shown by: the dead-letter stream out of order, and floods of dead letters."""

from __future__ import annotations

import pytest
import redis

from tests.scenarios import StageOf, fault
from tests.support import Database, add, books, dead_letters, wait_until

FAILED = "mqtt_stream:failed"
BEGIN = 1_767_225_600


def good(count: int, start: int) -> list[dict[str, str]]:
    return [{"value": str(start + n), "timestamp": str(BEGIN + start + n)} for n in range(count)]


def is_bad(number: int) -> bool:
    return number % 50 == 49


@fault("dead-letter stream unavailable", how="its key holds a string, while one reading in fifty is bad")
def test_nothing_is_acknowledged_before_its_dead_letter_is_safe(
    stage_of: StageOf, database: Database, client: redis.Redis, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    client.set(FAILED, "in the way")
    worker = stage.worker("one")
    with stage.source(value_of=lambda n: "" if is_bad(n) else str(n)) as source:
        worker.wait_for("outage_began")
        wait_until(lambda: source.acknowledged > 3000, 60)
    worker.kill()
    worker = stage.worker("one")
    worker.wait_for("outage_began")
    assert not any("dead_lettered:" in str(name) for name in client.hkeys("sluice:db_writer:ledger"))
    client.delete(FAILED)
    worker.wait_for("outage_ended")
    stage.accounted(source.acknowledged, dead=set(filter(is_bad, range(source.acknowledged))))
    assert len({fields[3] for fields in dead_letters(client)}) == client.xlen(FAILED), "no letter twice"


@fault(
    "Redis full, dead letters due",
    how="maxmemory below what is used",
    promise="letters and acks get through",
)
def test_a_redis_that_is_full_still_takes_dead_letters_and_acknowledgements(
    stage_of: StageOf, database: Database, client: redis.Redis, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    streams = [f"mqtt_stream:dev-{n}:t" for n in range(4)]
    for n, stream in enumerate(streams):
        values = range(n * 250, (n + 1) * 250)
        entries = [{"value": "NaN" if is_bad(v) else str(v), "timestamp": str(BEGIN + v)} for v in values]
        add(client, stream, entries)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.xadd(streams[0], {"value": "1"})
        stage.worker("one")
        stage.accounted(1000, dead=set(filter(is_bad, range(1000))))
    finally:
        client.config_set("maxmemory", 0)


@fault(
    "flood of dead letters",
    how="2,000 unreadable entries of all devices between good ones; then a restart, then somebody accepts",
    promise="pauses and says so, dead-letters nothing; goes on when told, and accounts for everything",
)
def test_a_flood_of_dead_letters_pauses_the_worker_until_somebody_accepts_it(
    stage_of: StageOf, database: Database, client: redis.Redis, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    for device in range(4):
        stream = f"mqtt_stream:dev-{device}:t"
        add(client, stream, [*good(50, device * 50), *[{"value": "NaN"}] * 500])
    worker = stage.worker("one", dead_letter_flood_count=400, batch_size=5000)
    worker.wait_for("dead_letter_flood")
    alarm = next(line for line in worker.text().splitlines() if '"dead_letter_flood"' in line)
    assert '"reason": "value_nan"' in alarm
    assert '"stream": "mqtt_stream:dev-' in alarm
    assert "redis-cli SET sluice:db_writer:flood_accepted yes EX 3600" in alarm
    before = books(client)
    assert before.dead_lettered < 400
    add(client, "mqtt_stream:dev-9:t", good(10, 200))
    worker.kill()  # somebody restarts it, and has mended nothing
    worker = stage.worker("one", dead_letter_flood_count=400, batch_size=5000)
    worker.wait_for("dead_letter_flood")
    wait_until(lambda: database.count() >= 200, what="the good ones, which are stored all the same")
    assert books(client).dead_lettered < 2 * 400, "at most so many for each start"
    client.set("sluice:db_writer:flood_accepted", "yes", ex=60)
    worker.wait_for("dead_letter_flood_accepted")
    wait_until(lambda: books(client).settled == 2210, 60, "the end of all entries")
    total = books(client)
    assert (total.stored, total.dead_lettered, total.pending) == (210, 2000, 0), total
    assert client.xlen(FAILED) == 2000
    assert database.rows("select value::int from sensor_readings order by 1") == [(n,) for n in range(210)]
    stage.report.append({"entries": 2210, "lost": 0, "doubled": 0, "dead_lettered": 2000})
    assert worker.terminate() == 0


@fault(
    "a handful of broken devices",
    how="3 of 100 devices send nothing but rubbish, more than all others together",
    promise="pauses nobody",
)
def test_a_handful_of_broken_devices_never_pauses_the_others(
    stage_of: StageOf, database: Database, client: redis.Redis, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    for device in range(100):
        add(client, f"mqtt_stream:dev-{device}:t", good(5, device * 5))
    worker = stage.worker("one", dead_letter_flood_count=200)
    wait_until(lambda: database.rows("select count(*) from devices") == [(100,)], 60, "the registry")
    assert worker.terminate() == 0
    worker = stage.worker(
        "one", dead_letter_flood_count=200
    )  # it has to know of the others after a restart too
    for device in range(3):
        add(client, f"mqtt_stream:dev-{device}:t", [{"value": "NaN"}] * 1000)
    wait_until(lambda: books(client).dead_lettered == 3000, 60, "the letters")
    add(client, "mqtt_stream:dev-50:t", good(1, 500))
    wait_until(lambda: database.count() == 501)
    assert "dead_letter_flood" not in worker.text()
    stage.report.append({"entries": 3501, "lost": 0, "doubled": 0, "dead_lettered": 3000})
