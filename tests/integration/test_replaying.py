"""Dead letters replayed: each once, exact, with the time and identity of the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from main import DatabaseWriterService
from ops import letters
from ops.letters import Letter, Wanted
from ops.replay import Replayer, record_of
from redis_client import execute
from replays import MARK
from tests.commands import Command
from tests.support import (
    Database,
    add,
    books,
    dead_letters,
    everything_settled,
    in_thread,
    settings_for,
    wait_until,
)

STREAM = "mqtt_stream:kitchen:temperature"
SHARD = "mqtt_stream:shard:1"
FAILED = "mqtt_stream:failed"


@contextmanager
def working(database: Database, redis_url: str, **changes: Any) -> Iterator[None]:
    """A worker that runs meanwhile."""
    with in_thread(DatabaseWriterService(settings_for(database, redis_url, **changes))):
        yield


def worked(database: Database, redis_url: str, client: redis.Redis, entries: int, **changes: Any) -> None:
    """A worker settles so many entries in all."""
    with working(database, redis_url, **changes):
        wait_until(lambda: everything_settled(client, entries))


def rows(database: Database) -> list[tuple[Any, ...]]:
    return database.rows(
        'select sensor_type, value, extract(epoch from "timestamp")::bigint, message_id'
        " from sensor_readings order by sensor_type, value"
    )


def fields_of(client: redis.Redis, stream: str) -> list[list[bytes]]:
    return [fields for _, fields in execute(client, "XRANGE", stream, "-", "+")]


def letters_now(client: redis.Redis) -> list[Letter]:
    return list(letters.read(client, FAILED, Wanted()))


def test_the_good_readings_of_a_mended_entry_are_duplicates_and_the_bad_one_is_stored(
    run: Command, database: Database, redis_url: str, client: redis.Redis
) -> None:
    payload = b'[{"n": "a", "v": 1}, {"n": "b", "v": 2}, {"n": "c", "v": 3, "t": 4000000000}]'
    (entry_id,) = add(client, SHARD, [{"topic": "devices/kitchen/telemetry", "payload": payload}])
    worked(database, redis_url, client, 1)
    before = rows(database)
    assert [row[0] for row in before] == ["a", "b"]
    assert [letter.reason for letter in letters_now(client)] == ["timestamp_in_future"]

    assert "left out: would be rejected again: timestamp_in_future" in run("dead-letters", "replay").told
    done = run("dead-letters", "replay", "--rejected", "--yes")
    assert (done.status, done.errors) == (0, "")
    worked(database, redis_url, client, 2, max_future_sec=3_000_000_000)
    after = rows(database)
    assert [row[0] for row in after] == ["a", "b", "c"]
    assert after[:2] == before  # not doubled
    assert {row[3] for row in after} == {before[0][3]}  # of one message: the original entry's
    assert (books(client).stored, books(client).dead_lettered, letters_now(client)) == (1, 1, [])
    assert fields_of(client, SHARD)[1] == [
        MARK,
        entry_id + b" 1",
        b"topic",
        b"devices/kitchen/telemetry",
        b"payload",
        payload,
    ]


def test_a_replayed_entry_without_a_time_keeps_the_one_it_came_at(
    run: Command, database: Database, redis_url: str, client: redis.Redis
) -> None:
    came = "1700000000000-5"
    execute(client, "XADD", SHARD, came, "topic", "plant/kitchen/temperature", "payload", "21.5")
    worked(database, redis_url, client, 1)
    assert [letter.reason for letter in letters_now(client)] == ["topic_unknown"]
    mended = "plant/{device_id}/{sensor_type}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPIC_TEMPLATES", mended)
        done = run("dead-letters", "replay", "--yes")
    assert "replayed 1 into 1 stream" in done.told
    worked(database, redis_url, client, 2, topic_templates=(mended,))
    ((sensor, value, seconds, message),) = rows(database)
    assert (sensor, value, seconds) == ("temperature", 21.5, 1_700_000_000)
    assert message.int == (1_700_000_000_000 << 64) + 5


def test_what_fails_again_says_how_often_and_is_left_out_in_the_end(
    run: Command, database: Database, redis_url: str, client: redis.Redis
) -> None:
    (entry_id,) = add(client, STREAM, [{"value": "nan"}])
    worked(database, redis_url, client, 1)
    for times in (1, 2):
        assert run("dead-letters", "replay", "--rejected", "--yes", "--max-replays", "2").status == 0
        worked(database, redis_url, client, 1 + times)
        (letter,) = letters_now(client)
        assert (letter.replays, letter.entry.id, letter.entry.fields) == (
            times,
            entry_id,
            [b"value", b"nan"],
        )
        assert letter.replayed_id == fields_id(client, STREAM)
    done = run("dead-letters", "replay", "--rejected", "--yes", "--max-replays", "2")
    assert "left out: failed again after 2 replays (--max-replays)" in done.told
    assert len(letters_now(client)) == 1
    assert (
        "replayed       2 times, and failed again"
        in run("dead-letters", "show", letters_now(client)[0].id.decode()).told
    )


def fields_id(client: redis.Redis, stream: str) -> bytes:
    newest = letters.newest_id(client, stream)
    assert newest is not None
    return newest


def test_without_yes_nothing_changes(run: Command, client: redis.Redis) -> None:
    made(client, 3)
    before = dead_letters(client)
    done = run("dead-letters", "replay")
    assert done.status == 0
    assert "3 would be replayed: 3 topic_unknown" in done.told
    assert "nothing was replayed: --yes does it" in done.told
    assert dead_letters(client) == before
    assert client.exists(STREAM) == 0


def made(client: redis.Redis, count: int, stream: str = STREAM, **more: str) -> None:
    """Letters whose entries would be accepted now, of entries 1-0, 2-0 and so on."""
    for number in range(1, count + 1):
        header = {"original_stream": stream, "original_id": f"{number}-0", "device_id": "kitchen"}
        tail = {"error": "topic_unknown: none", "failed_at": "1.5", **more, "original_fields": "1"}
        letter: dict[Any, Any] = {}
        letter.update(header, **tail, value=str(number))
        client.xadd(FAILED, letter)


def replayer(client: redis.Redis, *, apart: bool = False, rate: float = 0) -> Replayer:
    return Replayer(client, FAILED, rate=rate, clock=lambda: 0.0, sleep=lambda _: None, apart=apart)


def values_in(client: redis.Redis, stream: str = STREAM) -> list[bytes]:
    return [fields[-1] for fields in fields_of(client, stream)]


@pytest.mark.parametrize("apart", [False, True])
def test_letters_are_replayed_in_their_order_once_each_however_often(
    client: redis.Redis, apart: bool
) -> None:
    made(client, 1_200)
    found = letters_now(client)
    for _ in range(2):  # the second time as by another command that had read them before
        job = replayer(client, apart=apart)
        job.run(found, lambda _: None)
    assert (job.done.replayed, job.done.gone) == (0, 1_200)
    assert values_in(client) == [b"%d" % number for number in range(1, 1_201)]
    assert letters_now(client) == []


class Killed(BaseException):
    """In place of SIGKILL."""


def test_killed_between_adding_and_deleting_nothing_is_added_twice(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(client, 5)
    job = replayer(client, apart=True)

    def killed(*_: object) -> list[Any]:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Replayer, "_deleted", killed)
        with pytest.raises(Killed):
            job.run(letters_now(client), lambda _: None)
    assert len(letters_now(client)) == 5
    assert len(values_in(client)) == 5
    assert client.ttl(record_of(STREAM.encode())) > 86_400

    again = replayer(client, apart=True)
    again.run(letters_now(client), lambda _: None)
    assert len(values_in(client)) == 5
    assert letters_now(client) == []


def test_interrupted_half_way_the_same_command_goes_on(
    run: Command, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(client, 25)
    replay = Replayer._replay
    steps = []

    def interrupted(self: Replayer, step: Sequence[Letter]) -> None:
        replay(self, step)
        steps.append(len(step))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Replayer, "_replay", interrupted)
        done = run("dead-letters", "replay", "--yes", "--rate", "50")
    assert (done.status, steps) == (130, [10])
    assert "replayed 10 for certain; the same command goes on with the rest" in done.told
    done = run("dead-letters", "replay", "--yes", "--rate", "0")
    assert "replayed 15 into 1 stream" in done.told
    assert values_in(client) == [b"%d" % number for number in range(1, 26)]


def test_the_rate_is_kept_on_the_average(client: redis.Redis) -> None:
    made(client, 50)
    now = 0.0
    seen: list[tuple[float, int]] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    job = Replayer(client, FAILED, rate=10, clock=lambda: now, sleep=sleep)
    job.run(letters_now(client), lambda done: seen.append((now, done)))
    assert now == pytest.approx(5.0)
    assert all(done <= 10 * at + 2 for at, done in seen)  # never more than a step ahead
    assert job.done.replayed == 50


def test_what_redis_refuses_of_one_stream_stays_and_the_others_go_on(
    run: Command, client: redis.Redis
) -> None:
    client.set("mqtt_stream:taken:t", "no stream")
    made(client, 2, "mqtt_stream:taken:t")
    made(client, 2)
    done = run("dead-letters", "replay", "--yes")
    assert done.status == 1
    assert "2 are still dead letters: Redis answered WRONGTYPE" in done.errors
    assert len(letters_now(client)) == 2
    assert len(values_in(client)) == 2


def test_streams_that_no_worker_reads_are_left_out(run: Command, client: redis.Redis) -> None:
    made(client, 1, "elsewhere:a:b")
    made(client, 1, FAILED)
    client.xadd(FAILED, {"some": "body's"})
    done = run("dead-letters", "replay", "--yes", "--rejected")
    assert "2 left out: no worker reads its stream (STREAM_PATTERN)" in done.told
    assert "1 left out: no dead letter of Sluice" in done.told
    assert len(letters_now(client)) == 3


def test_a_device_event_keeps_its_moment(
    database: Database, redis_url: str, client: redis.Redis, run: Command
) -> None:
    """The threshold was deleted after it was changed: the change, replayed, must not bring it back."""
    event: dict[Any, Any] = {"threshold_id": "t1", "device_id": "kitchen", "key": "temperature"}
    more = {"threshold_type": "max", "value": "30", "severity": "warning"}
    client.xadd("devices.threshold.deleted", event)
    worked_on = settings_for(database, redis_url)
    with working(database, redis_url):
        wait_until(lambda: database.rows("select 1 from applied_events"))
    raw = [part for pair in {**event, **more}.items() for part in pair]
    header = ["original_stream", "devices.threshold.updated", "original_id", "1700000000000-0"]
    tail = ["error", "event_malformed: it was", "failed_at", "1", "original_fields", str(len(raw) // 2)]
    execute(client, "XADD", FAILED, "*", *header, *tail, *raw)
    assert "replayed 1 into 1 stream" in run("dead-letters", "replay", "--yes").told
    with working(database, redis_url):
        stream, group = "devices.threshold.updated", worked_on.consumer_group_name
        wait_until(lambda: client.exists(stream) and settled(client, stream, group))
    assert database.rows("select id from thresholds") == []


def settled(client: redis.Redis, stream: str, group: str) -> bool:
    groups = execute(client, "XINFO GROUPS", stream)
    found = [dict(zip(one[::2], one[1::2], strict=True)) for one in groups]
    return any(
        one[b"name"] == group.encode() and one[b"pending"] == 0 and one[b"entries-read"] for one in found
    )
