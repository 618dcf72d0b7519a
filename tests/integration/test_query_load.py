"""The query service under load: calls of all kinds at once, many ended early, of which nothing is left."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from query import collector_pb2 as pb
from query.collector_pb2_grpc import CollectorServiceStub
from tests.integration.test_query_service import stamp
from tests.querying import at, serving
from tests.support import Database, wait_until
from tests.writing import batch_of, rig

CLIENTS, CALLS, STREAMS, WORKERS = 24, 40, 8, 4
LATEST = pb.GetLatestReadingsRequest(device_id="kitchen")
SERIES = pb.StreamReadingsRequest(series=[pb.Series(device_id="kitchen", key="temperature")])
# What a call may end with that was ended early, or found no room.
EXPECTED = {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


def readings(interval: int, end: float = 600) -> pb.GetReadingsRequest:
    return pb.GetReadingsRequest(
        device_id="kitchen", to=stamp(end), interval_seconds=interval, **{"from": stamp(0)}
    )


class Client:
    """Calls of all kinds in an order of chance; some are cancelled, some have no time, some are wrong."""

    def __init__(self, address: str, number: int) -> None:
        self._address = address
        self._chance = random.Random(number)
        self.ends: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()

    def run(self) -> None:
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]
            for _ in range(CALLS):
                self._one(stub)

    def _one(self, stub: Any) -> None:
        chance = self._chance
        name, request = chance.choice(
            [
                ("GetLatestReadings", LATEST),
                ("GetReadings", readings(0)),
                ("GetReadings", readings(1)),
                ("GetAlerts", pb.GetAlertsRequest(place_id="home")),
                ("GetAlertCounts", pb.GetAlertCountsRequest(place_id=["home"])),
            ]
        )
        manner = chance.choice(["waits", "waits", "hangs up", "hangs up later", "has no time"])
        call = getattr(stub, name).future(request, timeout=0.002 if manner == "has no time" else 60)
        if manner == "hangs up later":
            with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError):
                call.result(timeout=chance.random() * 0.02)
        if manner.startswith("hangs up"):
            call.cancel()
        try:
            call.result()
        except grpc.FutureCancelledError:
            self.ends["CANCELLED"] += 1
        except grpc.RpcError as error:
            self.ends[error.code().name] += 1
        else:
            self.answered[name] += 1


class Listening:
    """A caller that streams, hangs up after a while and comes again."""

    def __init__(self, address: str, done: threading.Event) -> None:
        self._address = address
        self._done = done
        self.heard = 0

    def run(self) -> None:
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]
            while not self._done.is_set():
                call = stub.StreamReadings(SERIES, timeout=2.0)
                with contextlib.suppress(grpc.RpcError):
                    for _ in itertools.islice(call, 20):
                        self.heard += 1
                call.cancel()


@contextlib.contextmanager
def storing(database: Database) -> Iterator[None]:
    """A worker that stores all the time."""
    done = threading.Event()

    def run() -> None:
        with rig(database) as worker:
            for number in itertools.count():
                if done.is_set():
                    return
                first = 10_000 + 5 * number
                worker.writer.write(batch_of([at(n) for n in range(first, first + 5)]))

    with running([run]):
        yield
        done.set()


@contextlib.contextmanager
def running(calls: list[Callable[[], None]]) -> Iterator[list[threading.Thread]]:
    """Each in a thread until it ends, which it must without an error."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    if errors:
        raise errors[0]


def left(database: Database) -> list[tuple[Any, ...]]:
    """Sessions and locks of ours in this database."""
    return database.rows(
        "select a.pid, a.query, l.mode from pg_stat_activity a left join pg_locks l using (pid)"
        " where a.application_name = 'sluice' and a.datname = current_database()"
    )


def threads_of_the_service() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name.startswith(("call", "cancel"))}


def test_nothing_is_left_over_of_many_calls_that_end_in_all_ways(database: Database) -> None:
    with rig(database) as worker:
        worker.writer.write(batch_of([at(n) for n in range(600)]))
    before = threads_of_the_service()
    done = threading.Event()
    with serving(database, workers=WORKERS, most_streams=STREAMS) as served, storing(database):
        address = f"127.0.0.1:{served.server.port}"
        clients = [Client(address, number) for number in range(CLIENTS)]
        listeners = [Listening(address, done) for _ in range(STREAMS)]
        with running([one.run for one in listeners]):
            with running([client.run for client in clients]):
                pass
            wait_until(lambda: all(one.heard for one in listeners), what="a reading for every stream")
            done.set()
        ends = sum((client.ends for client in clients), Counter[str]())
        answered = sum((client.answered for client in clients), Counter[str]())
        assert set(ends) <= EXPECTED
        assert min(ends["CANCELLED"], ends["DEADLINE_EXCEEDED"]) > 0
        assert len(answered) == 4
        wait_until(lambda: served.server.hub.begun == 0, what="the end of the streams")
        # All permits are back: as many calls at once as may be are answered.
        for _ in range(2 * WORKERS):
            assert served.call("GetLatestReadings", LATEST).readings
    wait_until(lambda: not left(database), 10, "the end of every session")
    wait_until(lambda: threads_of_the_service() <= before, 10, "the end of every thread")
