"""`python main.py lag`: what is unread and pending, what Redis does not know, and exit codes for alerts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import redis

from ops import backlog, lag_views
from redis_client import execute
from tests.commands import Command, commands
from tests.integration.readers import GROUP, deliver, make_stale
from tests.support import add

STREAM = "mqtt_stream:kitchen:temperature"
OTHER = "mqtt_stream:hall:humidity"


@pytest.fixture
def run(redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)  # it takes none
    return commands(None, capsys, monkeypatch)


def looked(run: Command, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("lag", "--json", *words).told)
    return found


def of(found: dict[str, Any], stream: str = STREAM) -> dict[str, Any]:
    (one,) = [one for one in found["streams"] if one["stream"] == stream]
    return dict(one)


def fill(client: redis.Redis, count: int, stream: str = STREAM) -> None:
    add(client, stream, [{"value": str(number)} for number in range(count)])


def test_lag_pending_idle_and_deliveries_are_those_of_redis(run: Command, client: redis.Redis) -> None:
    fill(client, 10)
    deliver(client, "worker-1", [STREAM], 3)
    deliver(client, "worker-2", [STREAM], 2)
    make_stale(client, STREAM)
    fill(client, 4, OTHER)
    client.set(f"sluice:{GROUP}:worker:worker-2", "holder")
    found = looked(run)
    one = of(found)
    assert (one["lag"], one["pending"], one["deliveries"], one["whole"]) == (5, 5, 1, True)
    assert one["idle_sec"] == pytest.approx(3_600, abs=60)
    assert 0 <= one["lag_sec"] < 60
    assert one["consumers"]["worker-1"]["pending"] == 3
    assert (of(found, OTHER)["lag"], of(found, OTHER)["grouped"]) == (4, False)
    assert found["totals"]["lag"] == 9
    assert (found["consumers"]["worker-1"]["alive"], found["consumers"]["worker-2"]["alive"]) == (
        False,
        True,
    )
    text = run("lag").told
    assert "group db_writer, 2 streams: 9 entries unread, the oldest for " in text
    assert "no worker has found it yet" in text
    assert [line.split()[-1] for line in text.splitlines()[-2:]] == ["gone", "alive"]


def test_the_age_of_the_oldest_unread_entry_is_by_its_id(run: Command, client: redis.Redis) -> None:
    old = int(time.time() * 1000) - 90_000
    execute(client, "XADD", STREAM, f"{old}-0", "value", "1")
    fill(client, 1)
    assert of(looked(run))["lag_sec"] == pytest.approx(90, abs=30)
    done = run("lag", "--max-age", "1m")
    assert done.status == 1
    assert f"sluice: {STREAM}: age " in done.errors
    assert run("lag", "--max-age", "1h").status == 0


def test_a_lag_that_redis_does_not_know_is_told_as_unknown_and_counted_for_a_limit(
    run: Command, client: redis.Redis
) -> None:
    fill(client, 10)
    deliver(client, "worker-1", [STREAM], 2)
    middle = execute(client, "XRANGE", STREAM, "-", "+")[5][0]
    client.xdel(STREAM, middle)
    one = of(looked(run))
    assert one["lag"] is None
    assert one["lag_sec"] < 60
    assert "unknown" in run("lag").told
    assert run("lag", "--max-lag", "7").status == 0
    done = run("lag", "--max-lag", "6")
    assert (done.status, done.errors) == (
        1,
        f"sluice: {STREAM}: lag is more than 6; Redis does not know how much\n",
    )
    deliver(client, "worker-1", [STREAM])
    assert of(looked(run))["lag"] == 0  # whatever Redis says: there is no unread entry


def test_what_was_trimmed_unread_is_told_apart_from_the_lag(run: Command, client: redis.Redis) -> None:
    fill(client, 10)
    deliver(client, "worker-1", [STREAM], 2)
    client.xtrim(STREAM, maxlen=5, approximate=False)
    one = of(looked(run))
    assert (one["lag"], one["trimmed_unread"]) == (5, 3)
    done = run("lag", "--max-trimmed", "2")
    assert (done.status, done.errors) == (1, f"sluice: {STREAM}: trimmed 3 is more than 2\n")


def test_a_limit_says_which_stream_exceeds_it(run: Command, client: redis.Redis) -> None:
    for number in range(15):
        fill(client, 1 + number, f"mqtt_stream:{number}:t")
    assert run("lag", "--max-lag", "15").status == 0
    done = run("lag", "--max-lag", "14")
    assert (done.status, done.errors) == (1, "sluice: mqtt_stream:14:t: lag 15 is more than 14\n")
    done = run("lag", "--max-lag", "0", "--top", "1")
    assert done.errors.splitlines()[-1] == "sluice: and 5 more"
    assert "and 14 more streams (--top 0 shows all)" in done.told


def test_sorted_filtered_and_cut_off(run: Command, client: redis.Redis) -> None:
    for number in (1, 3, 2):
        fill(client, number, f"mqtt_stream:{number}:t")
    deliver(client, "worker-1", ["mqtt_stream:1:t"])
    assert [one["lag"] for one in looked(run)["streams"]] == [3, 2, 0]
    assert next(one["stream"] for one in looked(run, "--sort", "pending")["streams"]) == "mqtt_stream:1:t"
    assert [one["stream"][-3] for one in looked(run, "--sort", "stream")["streams"]] == ["1", "2", "3"]
    assert [one["stream"] for one in looked(run, "--top", "1")["streams"]] == ["mqtt_stream:3:t"]
    assert [one["lag"] for one in looked(run, "--stream", "*:[23]:*")["streams"]] == [3, 2]
    assert [one["lag"] for one in looked(run, "--stream", "mqtt_stream:2:t")["streams"]] == [2]
    assert [one["pending"] for one in looked(run, "--consumer", "worker-*")["streams"]] == [1]
    assert looked(run, "--consumer", "nobody")["streams"] == []


def test_more_pending_than_is_looked_at_is_marked(
    run: Command, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MOST_PENDING", 3)
    fill(client, 5)
    deliver(client, "worker-1", [STREAM])
    one = of(looked(run))
    assert (one["pending"], one["whole"], one["consumers"]["worker-1"]["pending"]) == (5, False, 5)
    assert "1+" in run("lag").told


def test_watch_looks_again_until_it_is_interrupted_and_through_an_outage(
    run: Command, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 1)
    looks = 0

    def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            monkeypatch.setattr(backlog, "streams_of", away)
        elif looks == 2:
            monkeypatch.undo()
            monkeypatch.setattr(time, "sleep", sleep)
        else:
            raise KeyboardInterrupt

    def away(*_: object) -> list[bytes]:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(time, "sleep", sleep)
    done = run("lag", "--watch", "0.1", "--json")
    assert done.status == 130
    assert [json.loads(line)["totals"]["lag"] for line in done.told.splitlines()] == [1, 1]
    assert "Redis is not usable: ConnectionError: gone; trying again" in done.errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-lag", "-1"), "whole number"),
        (("--max-idle", "soon"), "a duration"),
        (("--watch", "0"), "0.1 to 86400"),
        (("--top", "many"), "whole number"),
        (("--sort", "size"), "invalid choice"),
    ],
)
def test_wrong_usage_is_exit_2(run: Command, words: tuple[str, ...], told: str) -> None:
    done = run("lag", *words)
    assert done.status == 2
    assert told in done.errors


def test_a_stream_that_is_not_there_is_said(run: Command) -> None:
    assert run("lag", "--stream", "nowhere").errors == "sluice: there is no stream 'nowhere'\n"
    done = run("lag", "--stream", "no*")
    assert (done.status, done.errors) == (1, "sluice: no stream that workers read matches 'no*'\n")
    assert run("lag").told.startswith("group db_writer, 0 streams: 0 entries unread")


def test_redis_away_is_one_line_and_exit_1(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1")
    done = run("lag")
    assert (done.status, done.told) == (1, "")
    assert done.errors.startswith("sluice: Redis is not usable: ")
    assert "main.py config --changed shows which server is asked" in done.errors
    assert "s3cret" not in done.errors


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59, "59 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_ages_are_told_in_two_units(seconds: float, text: str) -> None:
    assert lag_views.age_text(seconds) == text
