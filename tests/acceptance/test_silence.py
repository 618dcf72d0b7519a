"""Silence, seen from outside: told once, for the device's own silence, never for Sluice's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
import redis

from tests.acceptance.feeding import ONE_BROKER, Stopwatch, due, to_broker
from tests.alerts import add_rule
from tests.broker import Broker, Recorder
from tests.support import Daemon, Database, add, books, everything_settled, wait_until

SILENT_SEC = 2.0
AWAY_SEC = 4.0
STREAM = "mqtt_stream:clock:tick"
LAST_SEEN = "select extract(epoch from last_seen)::float8 from series where device_id = 'quiet'"
NOW = "select extract(epoch from clock_timestamp())::float8"
OPENED = "select count(*) from alerts"

StartDaemon = Callable[..., Daemon]


class Ticks:
    """A device that sends a reading every 0.1 s, without a time of its own."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.count = 0

    def tick(self) -> None:
        add(self._client, STREAM, [{"value": str(self.count)}])
        self.count += 1

    def tick_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        def once() -> bool:
            if condition():
                return True
            self.tick()
            threading.Event().wait(0.08)
            return False

        wait_until(once, seconds)

    def tick_for(self, seconds: float) -> None:
        watch = Stopwatch()
        self.tick_until(lambda: watch.seconds > seconds, seconds + 30)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Ticks meanwhile, in a thread."""
        over = threading.Event()
        thread = threading.Thread(target=lambda: self.tick_until(over.is_set, 120))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
def ticks(client: redis.Redis) -> Ticks:
    return Ticks(client)


@pytest.fixture
def watched(database: Database) -> Database:
    add_rule(database, id="dead", kind="silence", value=SILENT_SEC, device_pattern="*", sensor_pattern="*")
    return database


def opened(database: Database) -> int:
    return int(database.rows(OPENED)[0][0])


def moment(database: Database, query: str) -> float:
    return float(database.rows(query)[0][0])


def wait_swept(database: Database, seconds: float = 20.0) -> None:
    """Until a sweep that began after this call has looked at all series: it opens an alert of a witness,
    which names a series that never sent anything.
    """
    add_rule(database, id="witness", kind="silence", value=0.001, device_pattern="none", sensor_pattern="x")
    told = "select 1 from alerts where threshold_id = 'witness'"
    wait_until(lambda: database.rows(told), seconds, "a sweep")
    database.rows("delete from thresholds where id = 'witness'")
    database.rows("delete from alerts where threshold_id = 'witness'")


@ONE_BROKER
def test_of_two_workers_one_tells_a_silence_once_and_its_end_once(
    watched: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    broker: Broker,
    recorder: Recorder,
    ticks: Ticks,
) -> None:
    for name in ("one", "two"):
        daemon(watched, redis_url, consumer_name=name, **to_broker(broker)).wait_for("worker_started")
    ticks.tick_for(SILENT_SEC + 1.5)
    assert opened(watched) == 0
    wait_until(lambda: everything_settled(client, ticks.count))
    silence = Stopwatch()
    recorder.wait_for(1)
    print(f"\nsilence of {SILENT_SEC:.0f} s told after {silence.seconds:.2f} s")
    assert SILENT_SEC - 0.3 < silence.seconds < SILENT_SEC + 4
    wait_swept(watched)
    ticks.tick()
    wait_until(
        lambda: ("clock", "resolved") in [(b["device_id"], b["event_type"]) for _, b in recorder.messages]
    )
    wait_until(lambda: due(watched) == 0)
    ((alert, status),) = watched.rows("select id::text, status from alerts where threshold_id = 'dead'")
    assert status == "resolved"
    own = [
        (body["id"], body["event_type"]) for _, body in recorder.messages if body["device_id"] == "clock"
    ]
    assert own == [(alert, "created"), (alert, "resolved")]


@pytest.mark.parametrize("how", ["frozen", "stopped", "killed"])
def test_the_time_in_which_no_worker_listened_makes_nobody_silent(
    how: str,
    watched: Database,
    client: redis.Redis,
    redis_url: str,
    daemon: StartDaemon,
    ticks: Ticks,
) -> None:
    worker = daemon(watched, redis_url, consumer_name="one")
    ticks.tick_until(lambda: books(client).settled > 3)
    add(client, "mqtt_stream:quiet:tick", [{"value": "1"}])
    wait_until(lambda: watched.rows(LAST_SEEN))
    with ticks.going_on():
        left = moment(watched, NOW)
        _be_away(worker, how)
        back = moment(watched, NOW)
        if how == "killed":
            watched.rows("update duties set held_until = '-infinity'")
        if how == "frozen":
            worker.thaw()
        else:
            # the first may have died with entries in hand
            second = daemon(watched, redis_url, consumer_name="two", claim_min_idle_sec=1)
            back = _started_at(second)
        wait_until(lambda: opened(watched))
        told = moment(watched, "select extract(epoch from min(recorded_at))::float8 from alerts")
        assert watched.rows("select device_id, status from alerts") == [("quiet", "active")]
    listened = told - moment(watched, LAST_SEEN) - (back - left)
    print(f"\n{how}: told after {listened:.2f} s of listening, {told - back:.2f} s after the return")
    assert SILENT_SEC - 0.5 < listened < SILENT_SEC + 5
    wait_until(lambda: everything_settled(client, ticks.count + 1))


def _started_at(worker: Daemon) -> float:
    """When it began to listen, by its own log: how long a process takes to start says nothing here."""
    worker.wait_for("worker_started")
    (line,) = [line for line in worker.text().splitlines() if '"worker_started"' in line]
    return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()


def _be_away(worker: Daemon, how: str) -> None:
    """Stop a worker so that it does not listen, and wait for longer than a silence takes."""
    if how == "frozen":
        worker.freeze()
    elif how == "killed":
        worker.kill()
    else:
        assert worker.terminate() == 0
    away = Stopwatch()
    wait_until(lambda: away.seconds > AWAY_SEC)
