"""Streams of new readings: what a caller is told, after which news, and what a slow caller costs."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import live_listener
import query.streams
from query import collector_pb2 as pb
from schema import Reading
from tests.querying import Served, at, notify, serving, store, through_proxy
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, InBackground, Rig, batch_of, rig

SECONDS = 10.0


class Heard:
    """A caller that streams, in a thread of its own: what it got, and how the stream ended."""

    def __init__(self, served: Served, request: pb.StreamReadingsRequest, **options: Any) -> None:
        self.call = served.stub.StreamReadings(request, **options)
        self.ended: grpc.RpcError | None = None
        self._told: queue.Queue[pb.StreamReadingsResponse] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for one in self.call:
                self._told.put(one)
        except grpc.RpcError as error:
            self.ended = error

    def next(self) -> tuple[str, float, float | str]:
        """Sensor, seconds since yesterday's midnight, and what was measured."""
        one = self._told.get(timeout=SECONDS)
        return one.key, seconds(one.time), one.text if one.WhichOneof("measured") == "text" else one.value

    def message(self) -> pb.StreamReadingsResponse:
        return self._told.get(timeout=SECONDS)

    def end(self) -> str:
        self._thread.join(SECONDS)
        assert self.ended is not None
        return str(self.ended.code().name)

    @property
    def quiet(self) -> bool:
        return self._told.empty()


def seconds(time: Timestamp) -> float:
    return float(time.ToMicroseconds() - YESTERDAY_US) / 1e6


def asking(*keys: str, after: float | None = None) -> pb.StreamReadingsRequest:
    made = [pb.Series(device_id="kitchen", key=key) for key in keys or ("temperature",)]
    for one in made:
        if after is not None:
            one.after.FromMicroseconds(YESTERDAY_US + int(after * 1e6))
    return pb.StreamReadingsRequest(series=made)


@contextmanager
def hearing(served: Served, request: pb.StreamReadingsRequest) -> Iterator[Heard]:
    """Streams, from the moment on at which the server knows of it."""
    hub = served.server.hub
    before = hub.begun
    heard = Heard(served, request, timeout=60)
    try:
        wait_until(lambda: hub.begun > before, what="a stream")
        yield heard
    finally:
        heard.call.cancel()


@pytest.fixture
def served(database: Database) -> Iterator[Served]:
    store(database, [at(1), at(1, sensor_type="humidity"), at(1, device_id="hall")])
    with serving(database) as made:
        yield made


def state(number: float, text: str) -> Reading:
    return at(int(number), sensor_type="door")._replace(value=None, value_text=text)


def said(*rows: list[Any]) -> str:
    return json.dumps({"v": 1, "readings": rows})


def us(number: float) -> int:
    return YESTERDAY_US + int(number * 1e6)


def test_a_worker_that_stores_is_heard(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    store(database, [at(1)])
    monkeypatch.setattr(live_listener, "SETTLED_SEC", 3600.0)  # nothing is looked at without being told
    numbers = itertools.count(2)
    with serving(database) as served, rig(database) as worker, hearing(served, asking()) as heard:

        def told() -> bool:
            worker.writer.write(batch_of([at(next(numbers))]))  # it looks for readers once a second
            return not heard.quiet

        wait_until(told)
        written = range(2, next(numbers))
        assert [heard.next()[1] for _ in written] == list(written)


def test_every_reading_since_the_last_one_is_told_once_and_of_chosen_series_only(
    database: Database, served: Served
) -> None:
    with hearing(served, asking("temperature", "humidity")) as heard:
        store(database, [at(n) for n in (2, 3, 4)] + [at(9, device_id="hall"), at(9, sensor_type="x")])
        notify(
            database,
            said(
                ["hall", "temperature", us(9), 9.0, None],
                ["kitchen", "x", us(9), 9.0, None],
                ["kitchen", "temperature", us(4), 4.0, None, 2_000_000],
            ),
        )
        assert [heard.next() for _ in range(3)] == [("temperature", n, n) for n in (2, 3, 4)]
        notify(database, said(["kitchen", "temperature", us(4), 4.0, None]))  # again: nothing is newer
        store(database, [at(5, sensor_type="humidity")])
        notify(database, '{"v":1,"series":[["kitchen","humidity"]]}')
        assert heard.next() == ("humidity", 5, 5)
        store(database, [at(6), at(6, sensor_type="humidity")])
        notify(database, "what is this?")  # not understood: everything is looked at
        assert {heard.next(), heard.next()} == {("temperature", 6, 6), ("humidity", 6, 6)}
        assert heard.quiet


def test_states_are_told_as_text(database: Database, served: Served) -> None:
    with hearing(served, asking("door")) as heard:
        store(database, [state(5, "open"), state(6, "closed")])
        notify(database, said(["kitchen", "door", us(6), None, "closed", 1_000_000]))
        assert [heard.next(), heard.next()] == [("door", 5, "open"), ("door", 6, "closed")]


def test_a_stream_may_begin_where_another_one_broke_off(database: Database, served: Served) -> None:
    store(database, [at(2), at(3)])
    with hearing(served, asking(after=1)) as heard:
        assert [heard.next(), heard.next()] == [("temperature", 2, 2), ("temperature", 3, 3)]


def test_who_is_too_far_behind_gets_the_newest_and_holds_up_nobody(
    database: Database, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query.streams, "MOST_AT_ONCE", 5)
    monkeypatch.setattr(query.streams, "MOST_REPLAYED", 5)
    with hearing(served, asking()) as heard:
        store(database, [at(n) for n in range(2, 50)])
        notify(database, said(["kitchen", "temperature", us(49), 49.0, None, 47_000_000]))
        message = heard.message()
        assert (seconds(message.time), message.value, message.skipped) == (49, 49, True)
        store(database, [at(50)])
        notify(database, said(["kitchen", "temperature", us(50), 50.0, None]))
        message = heard.message()
        assert (seconds(message.time), message.value, message.skipped) == (50, 50, False)


def test_a_caller_that_takes_nothing_keeps_nobody_waiting(database: Database, served: Served) -> None:
    stuck = served.stub.StreamReadings(asking(), timeout=60)  # never read from
    wait_until(lambda: served.server.hub.begun == 1)
    with hearing(served, asking()) as heard:
        for round_ in range(3):
            numbers = range(100 + 1000 * round_, 1000 + 1000 * round_)
            store(database, [at(n) for n in numbers])
            notify(database, '{"v":1,"many":true}')
            assert [heard.next()[1] for _ in numbers] == list(numbers)
    stuck.cancel()


def test_a_stream_outlives_an_outage_and_goes_on_where_it_was(database: Database) -> None:
    store(database, [at(1)])
    with (
        through_proxy(database) as (proxy, url),
        serving(database, url) as served,
        hearing(served, asking()) as heard,
    ):
        proxy.refuse = True
        proxy.cut()
        store(database, [at(2), at(0)])
        proxy.refuse = False
        assert [heard.next(), heard.next()] == [("temperature", 0, 0), ("temperature", 2, 2)]


def test_states_that_are_stored_during_an_outage_are_told_after_it(database: Database) -> None:
    store(database, [state(1, "open")])
    with (
        through_proxy(database) as (proxy, url),
        serving(database, url) as served,
        hearing(served, asking("door")) as heard,
    ):
        proxy.refuse = True
        proxy.cut()
        store(database, [state(2, "closed"), state(3, "open")])
        proxy.refuse = False
        assert [heard.next(), heard.next()] == [("door", 2, "closed"), ("door", 3, "open")]


def test_a_batch_that_is_committed_after_one_with_newer_readings_is_told(
    database: Database, served: Served
) -> None:
    with hearing(served, asking()) as heard, rig(database) as slow, rig(database) as quick:
        at_commit, go_on = threading.Event(), threading.Event()
        hold(slow, at_commit, go_on)
        writing = InBackground(lambda: slow.writer.write(batch_of([at(2), at(3)])))
        assert at_commit.wait(SECONDS)
        quick.writer.write(batch_of([at(3)._replace(message_id=b"q" * 16), at(4)]))
        assert [heard.next()[1], heard.next()[1]] == [3, 4]
        go_on.set()
        writing.result()
        assert [heard.next()[1], heard.next()[1]] == [2, 3]
        assert heard.quiet


def hold(one: Rig, at_commit: threading.Event, go_on: threading.Event) -> None:
    """The writer stops before its next COMMIT, with all done."""
    commit = one.writer._alerting.judge

    def held(connection: Any, stored: Any) -> Any:
        judged = commit(connection, stored)
        at_commit.set()
        assert go_on.wait(SECONDS)
        return judged

    one.writer._alerting.judge = held  # type: ignore[method-assign]


def test_a_stream_ends_when_the_database_stays_away(database: Database) -> None:
    store(database, [at(1)])
    with (
        through_proxy(database) as (proxy, url),
        serving(database, url, timeout_sec=1.0) as served,
        hearing(served, asking()) as heard,
    ):
        proxy.refuse = True
        proxy.cut()
        assert heard.end() == "UNAVAILABLE"


def test_more_streams_than_allowed_are_turned_away_and_room_comes_back(
    database: Database,
) -> None:
    with serving(database, most_streams=1) as served:
        with hearing(served, asking()):
            assert served.refusal("StreamReadings", asking())[0] == "RESOURCE_EXHAUSTED"
        wait_until(lambda: not served.server.hub.begun)
        with hearing(served, asking()) as heard:
            assert heard.quiet


def test_a_stop_ends_the_streams(database: Database) -> None:
    with serving(database) as served, hearing(served, asking()) as heard:
        served.server.stop()
        assert heard.end() == "UNAVAILABLE"
