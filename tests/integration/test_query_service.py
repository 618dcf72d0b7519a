"""The query service over real gRPC and a real database: every call, every way to fail, and its end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Self

import grpc
import psycopg
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc
from structlog.testing import capture_logs

import query.queries
import query.server
import query.service
import query.silence
from config import ConfigError
from query import collector_pb2 as pb
from query.calls import Calls
from query.collector_pb2_grpc import CollectorServiceStub
from query.options import Tls
from query.refusal import Code, Refused
from schema_check import SchemaMismatch
from standalone.ports import free_port
from tests.querying import Served, at, running, serving, slow, store, through_proxy
from tests.support import Daemon, Database, wait_until
from tests.writing import YESTERDAY_US, InBackground

MIDNIGHT = datetime.fromtimestamp(YESTERDAY_US / 1e6, UTC)
KITCHEN = pb.GetLatestReadingsRequest(device_id="kitchen")


def stamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(MIDNIGHT + timedelta(seconds=seconds))
    return made


def wanted(start: float, end: float, interval: int = 0, *keys: str) -> pb.GetReadingsRequest:
    return pb.GetReadingsRequest(
        device_id="kitchen",
        keys=keys or ["temperature"],
        to=stamp(end),
        interval_seconds=interval,
        **{"from": stamp(start)},
    )


def add_alert(database: Database, **columns: Any) -> str:
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "threshold_id": "rule",
        "device_id": "kitchen",
        "sensor_type": "temperature",
        "place_id": "home",
        "threshold_type": "max",
        "severity": "warning",
        "threshold_value": 30.0,
        "status": "active",
        "value": 31.0,
        "first_time": MIDNIGHT,
        "last_time": MIDNIGHT,
        "created_at": MIDNIGHT,
    } | columns
    names = ", ".join(values)
    marks = ", ".join(["%s"] * len(values))
    database.rows(f"insert into alerts ({names}) values ({marks})", *values.values())
    return str(values["id"])


@pytest.fixture
def served(database: Database) -> Iterator[Served]:
    with serving(database) as made:
        yield made


def test_the_newest_number_of_each_series_is_answered(database: Database, served: Served) -> None:
    store(database, [at(1, 20.0), at(2, 21.5), at(3, 55.0, sensor_type="humidity")])
    answer = served.call("GetLatestReadings", KITCHEN)
    assert [(one.key, one.value, one.time) for one in answer.readings] == [
        ("humidity", 55.0, stamp(3)),
        ("temperature", 21.5, stamp(2)),
    ]
    store(database, [at(4, 22.0)])
    database.rows("delete from sensor_readings where sensor_type = 'humidity'")
    answer = served.call("GetLatestReadings", KITCHEN)
    assert [(one.key, one.value, one.time) for one in answer.readings] == [("temperature", 22.0, stamp(4))]
    nobody = served.call("GetLatestReadings", pb.GetLatestReadingsRequest(device_id="nobody"))
    assert list(nobody.readings) == []


def test_readings_come_as_they_are_or_in_buckets_of_the_whole_range(
    database: Database, served: Served
) -> None:
    store(database, [at(n) for n in (60, 61, 179, 180)])
    (raw,) = served.call("GetReadings", wanted(61, 180)).series
    assert [(one.key, one.value, one.time) for one in raw.raw_points] == [
        ("temperature", 61.0, stamp(61)),
        ("temperature", 179.0, stamp(179)),
    ]
    (series,) = served.call("GetReadings", wanted(0, 240, 60)).series
    assert [(one.time, one.avg, one.min, one.max) for one in series.points] == [
        (stamp(0), 0.0, 0.0, 0.0),
        (stamp(60), 60.5, 60.0, 61.0),
        (stamp(120), 179.0, 179.0, 179.0),
        (stamp(180), 180.0, 180.0, 180.0),
    ]
    assert [one.HasField("avg") for one in series.points] == [False, True, True, True]


def test_series_are_answered_in_the_order_of_the_keys_and_all_where_none_is_named(
    database: Database, served: Served
) -> None:
    store(database, [at(1), at(1, sensor_type="humidity")])
    asked = served.call("GetReadings", wanted(0, 9, 0, "temperature", "nothing", "humidity", "temperature"))
    assert [(one.key, len(one.raw_points)) for one in asked.series] == [
        ("temperature", 1),
        ("nothing", 0),
        ("humidity", 1),
    ]
    for interval in (0, 3):
        all_of_them = wanted(0, 9, interval)
        all_of_them.ClearField("keys")
        found = served.call("GetReadings", all_of_them).series
        assert [one.key for one in found] == ["humidity", "temperature"]


def test_too_many_raw_readings_are_cut_and_the_answer_says_so(
    database: Database, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(database, [at(n, sensor_type=kind) for n in range(3) for kind in ("a", "b")])
    monkeypatch.setattr(query.service, "MOST_ROWS", 4)
    answer = served.call("GetReadings", wanted(0, 9, 0, "a", "b"))
    assert [len(one.raw_points) for one in answer.series] == [3, 1]
    assert answer.truncated
    monkeypatch.setattr(query.service, "MOST_ROWS", 6)
    assert not served.call("GetReadings", wanted(0, 9, 0, "a", "b")).truncated


def test_as_many_raw_readings_come_without_keys_as_with_them(database: Database, served: Served) -> None:
    store(database, [at(n, sensor_type=kind) for n in range(6_000) for kind in ("a", "b")])
    request = wanted(0, 7000)
    del request.keys[:]
    answer = served.call("GetReadings", request)
    assert [len(series.raw_points) for series in answer.series] == [6_000, 6_000]
    assert not answer.truncated


def test_one_absurd_number_fails_no_buckets(database: Database, served: Served) -> None:
    store(database, [at(0, 1e200), at(1, 0.0), at(61, 4.0)])
    (series,) = served.call("GetReadings", wanted(0, 120, 60)).series
    assert [one.avg for one in series.points] == [5e199, 4.0]
    store(database, [at(2, 1.7e308), at(3, 1.7e308)])
    code, sentence = served.refusal("GetReadings", wanted(0, 120, 60))
    assert (code, "too large" in sentence) == ("INVALID_ARGUMENT", True)


def test_alerts_are_listed_counted_and_resolved(database: Database, served: Served) -> None:
    old = add_alert(
        database, status="resolved", resolved_at=MIDNIGHT, severity="critical", threshold_type="min"
    )
    new = add_alert(database, created_at=MIDNIGHT + timedelta(hours=1), sensor_id="s-1")
    add_alert(database, place_id="elsewhere", sensor_type="other", threshold_type="rate")
    listed = served.call("GetAlerts", pb.GetAlertsRequest(place_id="home"))
    assert [one.id for one in listed.items] == [new, old]
    assert listed.total == 2
    first = listed.items[0]
    assert (first.sensor_id, first.threshold_id, first.device_id, first.key) == (
        "s-1",
        "rule",
        "kitchen",
        "temperature",
    )
    assert (first.value, first.threshold_value, first.threshold_type) == (
        31,
        30,
        pb.ALERT_THRESHOLD_TYPE_MAX,
    )
    assert (first.severity, first.status) == (pb.ALERT_SEVERITY_WARNING, pb.ALERT_STATUS_ACTIVE)
    assert not first.HasField("resolved_at")
    for changes, ids in (
        ({"status": pb.ALERT_STATUS_RESOLVED}, [old]),
        ({"severity": pb.ALERT_SEVERITY_CRITICAL}, [old]),
        ({"sensor_id": "s-1"}, [new]),
        ({"device_id": "nobody"}, []),
        ({"from": stamp(1)}, [new]),
        ({"to": stamp(1)}, [old]),
        ({"page": 2, "per_page": 1}, [old]),
        ({"status": pb.ALERT_STATUS_UNSPECIFIED}, [new, old]),
    ):
        found = served.call("GetAlerts", pb.GetAlertsRequest(place_id="home", **changes))
        assert [one.id for one in found.items] == ids, changes
    (rate,) = served.call("GetAlerts", pb.GetAlertsRequest(place_id="elsewhere")).items
    assert rate.threshold_type == pb.ALERT_THRESHOLD_TYPE_UNSPECIFIED

    counted = served.call("GetAlertCounts", pb.GetAlertCountsRequest(place_id=["home", "nowhere"]))
    assert (dict(counted.unresolved_by_place), counted.total_unresolved) == ({"home": 1}, 1)
    nothing = served.call("GetAlertCounts", pb.GetAlertCountsRequest())
    assert (dict(nothing.unresolved_by_place), nothing.total_unresolved) == ({}, 0)

    resolved = served.call("ResolveAlert", pb.ResolveAlertRequest(alert_id=new)).alert
    assert (resolved.id, resolved.status) == (new, pb.ALERT_STATUS_RESOLVED)
    assert resolved.HasField("resolved_at")
    assert database.rows("select status from alerts where id = %s", new) == [("resolved",)]
    code, sentence = served.refusal("ResolveAlert", pb.ResolveAlertRequest(alert_id=str(uuid.uuid4())))
    assert code == "NOT_FOUND"
    assert "there is no alert" in sentence


def test_deleting_takes_alerts_and_readings_of_these_devices_only(database: Database) -> None:
    store(database, [at(n) for n in range(20)] + [at(99, device_id="hall")])
    add_alert(database)
    request = pb.DeleteReadingsRequest(device_ids=["kitchen", "nobody"])
    with serving(database, delete_token="d" * 16) as served:
        answer = served.call("DeleteReadings", request, metadata=bearer("d" * 16))
    assert answer.deleted == 21
    assert database.rows("select device_id from sensor_readings") == [("hall",)]
    assert database.rows("select 1 from alerts") == []


def test_deleting_does_not_say_that_all_is_gone_while_somebody_holds_an_alert(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query.service, "_LOCKED_SEC", 0.2)
    add_alert(database)
    request = pb.DeleteReadingsRequest(device_ids=["kitchen"])
    with serving(database, delete_token="d" * 16) as served, psycopg.connect(database.url) as holder:
        holder.execute("select from alerts for update")
        code, sentence = served.refusal("DeleteReadings", request, metadata=bearer("d" * 16))
        assert (code, "lock" in sentence) == ("UNAVAILABLE", True)
        holder.rollback()
        assert served.call("DeleteReadings", request, metadata=bearer("d" * 16)).deleted == 1


def test_an_account_that_may_not_read_is_told_in_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("permission denied for table sensor_readings")

    monkeypatch.setattr(query.queries, "latest", forbidden)
    with capture_logs() as logs:
        code, sentence = served.refusal("GetLatestReadings", KITCHEN)
    assert (code, "see its log" in sentence) == ("UNAVAILABLE", True)
    told = [log["event"] for log in logs if log["event"] != "query_started"]  # that may come late
    assert told == ["query_refused_by_database"]


@pytest.mark.parametrize(
    ("name", "request_", "word"),
    [
        ("GetLatestReadings", pb.GetLatestReadingsRequest(), "device_id"),
        ("GetReadings", pb.GetReadingsRequest(device_id="kitchen"), "'from'"),
        ("GetAlerts", pb.GetAlertsRequest(per_page=501), "per_page"),
        ("GetAlertCounts", pb.GetAlertCountsRequest(place_id=["a\0b"]), "place_id"),
        ("ResolveAlert", pb.ResolveAlertRequest(alert_id="17"), "alert_id"),
        ("StreamReadings", pb.StreamReadingsRequest(), "series"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    served: Served, name: str, request_: Any, word: str
) -> None:
    code, sentence = served.refusal(name, request_)
    assert code == "INVALID_ARGUMENT"
    assert word in sentence


def test_a_bug_is_told_in_the_log_and_not_to_the_caller(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("room 7, 21.5 degrees")

    monkeypatch.setattr(query.queries, "latest", broken)
    with capture_logs() as logs:
        code, sentence = served.refusal("GetLatestReadings", KITCHEN)
    assert (code, "21.5" in sentence + str(logs)) == ("INTERNAL", False)
    (told,) = [log for log in logs if log["event"] == "call_crashed"]
    assert (told["method"], told["error"]) == ("GetLatestReadings", "ValueError")
    monkeypatch.undo()
    assert list(served.call("GetLatestReadings", KITCHEN).readings) == []


# Time


def test_calls_one_after_the_other_share_a_connection(database: Database, served: Served) -> None:
    def sessions() -> list[tuple[Any, ...]]:
        return database.rows(
            "select pid from pg_stat_activity where application_name = 'sluice'"
            " and datname = current_database() order by pid"
        )

    served.call("GetLatestReadings", KITCHEN)
    wait_until(lambda: len(sessions()) == 3, what="the sessions of health, listener and call")
    before = sessions()
    for _ in range(10):
        served.call("GetLatestReadings", KITCHEN)
    assert sessions() == before


def test_a_deadline_ends_the_call_and_its_query(database: Database, served: Served) -> None:
    store(database, [at(1)])
    slow(database)
    began = monotonic()
    code, _ = served.refusal("GetLatestReadings", KITCHEN, timeout=0.5)
    assert code == "DEADLINE_EXCEEDED"
    wait_until(lambda: not running(database), what="the end of the query")
    assert monotonic() - began < 15


def test_without_a_deadline_the_servers_own_limit_holds(database: Database) -> None:
    store(database, [at(1)])
    slow(database)
    with serving(database, timeout_sec=0.4) as served:
        code, sentence = served.refusal("GetLatestReadings", KITCHEN)
    assert (code, "QUERY_TIMEOUT_SEC" in sentence) == ("DEADLINE_EXCEEDED", True)
    assert not running(database)


def test_hanging_up_cancels_the_query_in_the_database(database: Database, served: Served) -> None:
    store(database, [at(1)])
    slow(database)
    call = served.stub.GetLatestReadings.future(KITCHEN)
    wait_until(lambda: running(database), what="the query")
    call.cancel()
    wait_until(lambda: not running(database), what="the end of the query")
    database.rows("drop view series")
    database.rows("alter table series_kept rename to series")
    # nobody else's query was hit, and the connection that was is not used again
    for _ in range(5):
        assert served.call("GetLatestReadings", KITCHEN).readings


# The database away


def health_of(served: Served, **options: Any) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=20, **options).status)


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_frozen_database_is_unavailable_within_seconds_and_used_again_when_it_thaws(
    database: Database,
) -> None:
    store(database, [at(1)])
    with through_proxy(database) as (proxy, url), serving(database, url) as served:
        assert served.call("GetLatestReadings", KITCHEN).readings
        assert health_of(served) == SERVING
        proxy.deaf = True
        began = monotonic()
        code, sentence = served.refusal("GetLatestReadings", KITCHEN)
        assert (code, "database" in sentence) == ("UNAVAILABLE", True)
        assert monotonic() - began < 10
        wait_until(lambda: health_of(served) == NOT_SERVING)
        proxy.deaf = False
        proxy.cut()
        wait_until(lambda: health_of(served) == SERVING)
        assert served.call("GetLatestReadings", KITCHEN).readings


def test_a_restarted_database_costs_no_call(database: Database) -> None:
    store(database, [at(1)])
    with through_proxy(database) as (proxy, url), serving(database, url) as served:
        for _ in range(3):
            assert served.call("GetLatestReadings", KITCHEN).readings
            proxy.cut()


def test_a_database_that_refuses_connections_is_unavailable_at_once_also_at_the_start(
    database: Database,
) -> None:
    with through_proxy(database) as (proxy, url):
        proxy.refuse = True
        with serving(database, url) as served:
            began = monotonic()
            assert served.refusal("GetLatestReadings", KITCHEN)[0] == "UNAVAILABLE"
            assert monotonic() - began < 8
            assert health_of(served) == NOT_SERVING
            proxy.refuse = False
            wait_until(lambda: health_of(served) == SERVING)
            assert list(served.call("GetLatestReadings", KITCHEN).readings) == []


def test_a_database_without_the_schema_is_refused_at_the_start(empty_database: str) -> None:
    with pytest.raises(SchemaMismatch, match="upgrade"), serving(Database(empty_database, timescale=False)):
        pass


# Limits


def test_more_calls_than_there_is_room_for_are_turned_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(database, [at(1)])
    slow(database)
    monkeypatch.setattr(query.server, "WAITING_PER_WORKER", 0)
    monkeypatch.setattr(query.server, "SPARE", 0)
    with serving(database, workers=1, most_streams=1) as served:
        calls = [served.stub.GetLatestReadings.future(KITCHEN) for _ in range(2)]
        wait_until(lambda: running(database), what="the query")
        wait_until(
            lambda: served.refusal("GetLatestReadings", KITCHEN, timeout=0.2)[0] == "RESOURCE_EXHAUSTED"
        )
        for call in calls:
            call.cancel()


class Alone:
    """A call without a deadline, of nobody."""

    def time_remaining(self) -> None:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True


@pytest.mark.parametrize(("answers", "code"), [(True, Code.RESOURCE_EXHAUSTED), (False, Code.UNAVAILABLE)])
def test_who_waits_too_long_for_a_turn_is_told_why(database: Database, answers: bool, code: Code) -> None:
    calls = Calls(database.url, workers=1, timeout_sec=0.3, answers=lambda: answers)
    begun, done = threading.Event(), threading.Event()

    def work(_connection: object) -> bool:
        begun.set()
        return done.wait(20)

    first = InBackground(lambda: calls.ask(Alone(), work))
    assert begun.wait(20)
    with pytest.raises(Refused) as caught:
        calls.ask(Alone(), work)
    done.set()
    assert first.result()
    assert calls.ask(Alone(), work)  # the turn was given back
    calls.close()
    assert caught.value.code is code


def test_a_request_that_is_too_large_is_turned_away(served: Served) -> None:
    large = pb.GetAlertCountsRequest(place_id=["x" * 1000] * 1100)
    assert served.refusal("GetAlertCounts", large)[0] == "RESOURCE_EXHAUSTED"


# Who may call


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def test_tokens_say_who_may_ask_and_who_may_delete(database: Database) -> None:
    token, deleting = "t" * 16, "d" * 16
    request = pb.DeleteReadingsRequest(device_ids=["kitchen"])
    with capture_logs() as logs, serving(database, token=token, delete_token=deleting) as served:
        for metadata in ((), bearer("x" * 16), [("authorization", token)]):
            code, sentence = served.refusal("GetLatestReadings", KITCHEN, metadata=metadata)
            assert (code, "QUERY_TOKEN" in sentence) == ("UNAUTHENTICATED", True)
        asked = pb.StreamReadingsRequest(series=[pb.Series(device_id="a", key="b")])
        assert served.refusal("StreamReadings", asked)[0] == "UNAUTHENTICATED"
        for good in (token, deleting):
            served.call("GetLatestReadings", KITCHEN, metadata=bearer(good))
        assert served.refusal("DeleteReadings", request)[0] == "UNAUTHENTICATED"
        assert served.refusal("DeleteReadings", request, metadata=bearer(token))[0] == "PERMISSION_DENIED"
        served.call("DeleteReadings", request, metadata=bearer(deleting))
        assert health_of(served) == SERVING  # asked by whatever watches the process, without a token
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(), timeout=5)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert token not in str(logs)
    assert deleting not in str(logs)


def test_callers_without_a_token_who_send_nothing_keep_nobody_out(database: Database) -> None:
    token = "t" * 16
    silent = threading.Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(20)
        yield from ()

    with serving(database, token=token, workers=1, most_streams=1) as served:
        path = "/collector.CollectorService/GetLatestReadings"
        method = served.channel.stream_unary(path, bytes, bytes)
        calls = [method.future(nothing(), timeout=20) for _ in range(60)]
        try:
            wait_until(lambda: all(call.done() for call in calls), 10, "every refusal")
            assert {call.code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
            served.call("GetLatestReadings", KITCHEN, metadata=bearer(token))
        finally:
            silent.set()


class Mute:
    """Calls of one method that are open and never send their request, until the block ends."""

    def __init__(self, served: Served, path: str, count: int) -> None:
        self._end = threading.Event()
        method = served.channel.stream_stream(path, bytes, bytes)
        self.calls = [method(self._nothing(), timeout=60) for _ in range(count)]

    def _nothing(self) -> Iterator[bytes]:
        self._end.wait(60)
        yield from ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for call in self.calls:
            call.cancel()

    def codes(self) -> set[grpc.StatusCode]:
        return {call.code() for call in self.calls if not call.is_active()}


CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LATEST, STREAM = (f"/collector.CollectorService/{one}" for one in ("GetLatestReadings", "StreamReadings"))
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize("path", [CHECK, WATCH, LATEST, STREAM, REFLECT])
def test_a_call_whose_request_does_not_come_is_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(query.silence, "FIRST_SEC", 0.3)
    with serving(database, workers=1, most_streams=1) as served, Mute(served, path, 200) as mute:
        wait_until(lambda: not any(call.is_active() for call in mute.calls), 10, "the end of the calls")
        assert grpc.StatusCode.CANCELLED in mute.codes()
        assert health_of(served) == SERVING
        served.call("GetLatestReadings", KITCHEN)


def test_mute_health_checks_without_a_token_keep_no_other_call_out(database: Database) -> None:
    token = "t" * 16
    with serving(database, token=token, workers=1, most_streams=1) as served, Mute(served, CHECK, 200):
        wait_until(
            lambda: refused(lambda: health_of(served)) == "RESOURCE_EXHAUSTED", what="as many as may be"
        )
        served.call("GetLatestReadings", KITCHEN, metadata=bearer(token))


def test_health_is_watched_by_few_and_room_comes_back(database: Database, served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    asked = health_pb2.HealthCheckRequest()
    watches = [stub.Watch(asked, timeout=60) for _ in range(query.silence.BESIDE)]
    assert {next(watch).status for watch in watches} == {SERVING}
    assert refused(lambda: next(stub.Watch(asked, timeout=10))) == "RESOURCE_EXHAUSTED"
    assert health_of(served) == SERVING
    watches.pop().cancel()
    wait_until(lambda: refused(lambda: next(stub.Watch(asked, timeout=10))) == "", what="room for one")
    for watch in watches:
        watch.cancel()


def refused(call: Callable[[], object]) -> str:
    """The status with which a call is refused; empty for one that is answered."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""


def test_without_a_delete_token_nobody_may_delete(served: Served) -> None:
    request = pb.DeleteReadingsRequest(device_ids=["kitchen"])
    code, sentence = served.refusal("DeleteReadings", request, metadata=bearer("any"))
    assert (code, "QUERY_DELETE_TOKEN" in sentence) == ("PERMISSION_DENIED", True)


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority (ca.pem), and for 127.0.0.1 a certificate that it vouches for (own.pem, own.key)."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl(tmp_path, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test")
    openssl(
        tmp_path,
        "req",
        *[n for n in new if n not in ("-days", "2")],
        "-keyout",
        "own.key",
        "-out",
        "own.csr",
        "-subj",
        "/CN=127.0.0.1",
    )
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
    openssl(tmp_path, "x509", "-req", "-in", "own.csr", *signing, "-out", "own.pem")
    return tmp_path


def test_with_an_authority_only_callers_with_its_certificate_are_let_in(
    database: Database, certificates: Path
) -> None:
    ca, own, key = (certificates / name for name in ("ca.pem", "own.pem", "own.key"))
    known = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), own.read_bytes())
    stranger = grpc.ssl_channel_credentials(ca.read_bytes())
    tls = Tls(certificate=own, key=key, client_ca=ca)
    with serving(database, credentials=known, tls=tls) as served:
        assert list(served.call("GetLatestReadings", KITCHEN).readings) == []
        for credentials in (stranger, None):
            address = f"127.0.0.1:{served.server.port}"
            with (
                grpc.secure_channel(address, credentials)
                if credentials
                else grpc.insecure_channel(address) as channel
            ):
                other = Served(served.server, channel)
                assert other.refusal("GetLatestReadings", KITCHEN, timeout=5)[0] == "UNAVAILABLE"


def test_tls_and_a_token_go_together(database: Database, certificates: Path) -> None:
    tls = Tls(certificate=certificates / "own.pem", key=certificates / "own.key")
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    with serving(database, credentials=credentials, tls=tls, token="t" * 16) as served:
        assert served.refusal("GetLatestReadings", KITCHEN)[0] == "UNAUTHENTICATED"
        served.call("GetLatestReadings", KITCHEN, metadata=bearer("t" * 16))


def test_certificates_that_cannot_be_used_and_a_port_in_use_are_refused_at_the_start(
    database: Database, certificates: Path
) -> None:
    wrong = Tls(certificate=certificates / "ca.pem", key=certificates / "own.key")
    with pytest.raises(ConfigError, match="QUERY_CERTIFICATE"), serving(database, tls=wrong):
        pass
    with (
        serving(database) as served,
        pytest.raises(ConfigError, match="QUERY_PORT"),
        serving(database, port=served.server.port),
    ):
        pass


# Health, reflection, and programs that were compiled elsewhere


def test_reflection_tells_what_there_is(served: Served) -> None:
    told = ProtoReflectionDescriptorDatabase(served.channel)
    assert set(told.get_services()) >= {"collector.CollectorService", "grpc.health.v1.Health"}
    file = told.FindFileContainingSymbol("collector.CollectorService")
    assert "StreamReadings" in [method.name for method in file.service[0].method]


def test_health_names_the_service_too(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    asked = health_pb2.HealthCheckRequest(service="collector.CollectorService")
    assert stub.Check(asked, timeout=20).status == SERVING


ELSEWHERE = """
syntax = "proto3";
package collector;
import "google/protobuf/timestamp.proto";
message LatestAsk { string d = 1; }
message Reading { string k = 1; double v = 2; google.protobuf.Timestamp t = 3; }
message LatestTold { repeated Reading r = 1; }
message ReadingsAsk {
  string d = 1; repeated string k = 2; google.protobuf.Timestamp f = 3; google.protobuf.Timestamp t = 4;
  int32 i = 5;
}
message Bucket {
  google.protobuf.Timestamp t = 1; optional double a = 2; optional double n = 3; optional double x = 4;
}
message Series { string k = 1; repeated Bucket b = 2; repeated Reading r = 3; }
message ReadingsTold { repeated Series s = 1; }
enum Type { T_UNSPECIFIED = 0; T_MIN = 1; T_MAX = 2; }
enum Severity { S_UNSPECIFIED = 0; S_WARNING = 1; S_CRITICAL = 2; }
enum Status { U_UNSPECIFIED = 0; U_ACTIVE = 1; U_RESOLVED = 2; }
message AlertTold {
  string id = 1; string sensor = 2; string threshold = 3; string device = 4; string place = 5;
  string key = 6;
  double value = 7; double limit = 8; Type type = 9; Severity severity = 10; Status status = 11;
  google.protobuf.Timestamp created = 12; optional google.protobuf.Timestamp resolved = 13;
}
message AlertsAsk {
  string place = 1; optional Status status = 2; optional Severity severity = 3; optional string sensor = 4;
  optional string device = 5; optional google.protobuf.Timestamp f = 6;
  optional google.protobuf.Timestamp t = 7; int32 page = 8; int32 per_page = 9;
}
message AlertsTold { repeated AlertTold items = 1; int32 total = 2; }
message CountsAsk { repeated string place = 1; }
message CountsTold { map<string, int32> places = 1; int32 total = 2; }
message ResolveAsk { string id = 1; }
message ResolveTold { AlertTold alert = 1; }
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, Any]:
    """Messages of a program that knows the numbers of the interface, and none of our names."""
    (tmp_path / "elsewhere.proto").write_text(ELSEWHERE)
    made = tmp_path / "made"
    shared = Path(protoc.__file__).parent / "_proto"
    status = protoc.main(
        [
            "",
            f"-I{tmp_path}",
            f"-I{shared}",
            f"--descriptor_set_out={made}",
            "--include_imports",
            "elsewhere.proto",
        ]
    )
    assert status == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file:
        pool.Add(file)
    return dict(
        message_factory.GetMessages(
            descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file, pool=pool
        )
    )


def test_a_program_that_was_compiled_elsewhere_is_understood(
    database: Database, served: Served, elsewhere: dict[str, Any]
) -> None:
    store(database, [at(1, 20.0), at(65, 22.0)])
    alert = add_alert(database, sensor_id="s-1")

    def call(name: str, asked: str, told: str, **fields: Any) -> Any:
        method = served.channel.unary_unary(
            f"/collector.CollectorService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=elsewhere[f"collector.{told}"].FromString,
        )
        return method(elsewhere[f"collector.{asked}"](**fields), timeout=20)

    latest = call("GetLatestReadings", "LatestAsk", "LatestTold", d="kitchen")
    assert [(one.k, one.v, one.t.seconds) for one in latest.r] == [("temperature", 22.0, stamp(65).seconds)]
    times = {"f": {"seconds": stamp(0).seconds}, "t": {"seconds": stamp(180).seconds}}
    raw = call("GetReadings", "ReadingsAsk", "ReadingsTold", d="kitchen", k=["temperature"], **times)
    assert [[(one.k, one.v) for one in series.r] for series in raw.s] == [
        [("temperature", 20.0), ("temperature", 22.0)]
    ]
    made = call("GetReadings", "ReadingsAsk", "ReadingsTold", d="kitchen", k=["temperature"], i=60, **times)
    (series,) = made.s
    assert [(one.t.seconds, one.a, one.n, one.x, one.HasField("x")) for one in series.b] == [
        (stamp(0).seconds, 20.0, 20.0, 20.0, True),
        (stamp(60).seconds, 22.0, 22.0, 22.0, True),
        (stamp(120).seconds, 0.0, 0.0, 0.0, False),
    ]
    listed = call("GetAlerts", "AlertsAsk", "AlertsTold", place="home", status=1, page=1, per_page=20)
    (one,) = listed.items
    assert (listed.total, one.id, one.sensor, one.threshold, one.device, one.place, one.key) == (
        1,
        alert,
        "s-1",
        "rule",
        "kitchen",
        "home",
        "temperature",
    )
    assert (one.value, one.limit, one.type, one.severity, one.status) == (31.0, 30.0, 2, 1, 1)
    assert one.created.seconds == stamp(0).seconds
    counted = call("GetAlertCounts", "CountsAsk", "CountsTold", place=["home"])
    assert (dict(counted.places), counted.total) == ({"home": 1}, 1)
    ended = call("ResolveAlert", "ResolveAsk", "ResolveTold", id=alert).alert
    assert (ended.status, ended.HasField("resolved")) == (2, True)


# The process


def test_sigterm_finishes_the_calls_in_hand_and_ends_with_status_0(
    database: Database, tmp_path: Path
) -> None:
    store(database, [at(1)])
    database.rows("alter table series rename to series_kept")
    database.rows("create view series as select kept.* from pg_sleep(1), series_kept kept")
    port = free_port()
    settings = {"QUERY_PORT": str(port), "SHUTDOWN_TIMEOUT_SEC": "10"}
    daemon = Daemon(database.environment() | settings, tmp_path / "query.log", "query")
    try:
        daemon.wait_for("query_started")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = CollectorServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.GetLatestReadings.future(KITCHEN, timeout=20)
            wait_until(lambda: running(database), what="the query")
            ending = InBackground(lambda: daemon.terminate(10))
            assert call.result(20).readings
            assert ending.result() == 0
    finally:
        daemon.kill()
    assert "query_stopped" in daemon.text()
    assert "Traceback" not in daemon.text()


def test_who_connects_and_says_nothing_keeps_no_file_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = dict(query.server._CHANNEL) | {"grpc.server_handshake_timeout_ms": 1_500}
    monkeypatch.setattr(query.server, "_CHANNEL", list(limits.items()))
    monkeypatch.setattr(query.server, "MORE_CONNECTIONS", -110)  # so that there are ten
    with serving(database) as served, ExitStack() as held:
        address = ("127.0.0.1", served.server.port or 0)
        silent = [held.enter_context(socket.create_connection(address, timeout=20)) for _ in range(30)]
        greetings = Counter(len(_greeting(one)) > 0 for one in silent)
        assert greetings[True] <= 10
        for one in silent:
            with suppress(ConnectionResetError):
                while one.recv(1_000):  # until the server ends it
                    pass
        served.stub.GetLatestReadings(KITCHEN, timeout=10)


def _greeting(connection: socket.socket) -> bytes:
    """What a server of HTTP/2 says first; nothing where it closes at once."""
    with suppress(ConnectionResetError):
        return connection.recv(1)
    return b""
