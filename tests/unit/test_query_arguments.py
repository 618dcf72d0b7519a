"""What callers send: taken, or refused with a sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st

from query import answers, arguments
from query import collector_pb2 as pb
from query.access import Access
from query.arguments import MOST_BUCKETS, SeriesWanted
from query.refusal import Code, Refused
from thresholds import Severity, Status

ROOT = Path(__file__).resolve().parent.parent.parent
NOW = 1_790_000_000
START = datetime.fromtimestamp(NOW, UTC)
HOUR = 3600


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "\n" not in caught.value.sentence
    return caught.value.sentence


def readings(**changes: Any) -> pb.GetReadingsRequest:
    values: dict[str, Any] = {
        "device_id": "kitchen",
        "keys": ["temperature"],
        "from": Timestamp(seconds=NOW),
        "to": Timestamp(seconds=NOW + HOUR),
    } | changes
    return pb.GetReadingsRequest(**{name: value for name, value in values.items() if value is not None})


def at(seconds: int, nanos: int = 0) -> Timestamp:
    return Timestamp(seconds=seconds, nanos=nanos)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_id": ""}, "device_id is empty"),
        ({"device_id": "x" * 101}, "device_id has 101 characters"),
        ({"device_id": "a\0b"}, "device_id holds a NUL"),
        ({"keys": ["a", ""]}, "a key is empty"),
        ({"keys": ["k"] * 1001}, "keys has 1,001 members"),
        ({"from": None}, "'from' is missing"),
        ({"to": None}, "'to' is missing"),
        ({"from": at(NOW + HOUR)}, "is not before 'to'"),
        ({"from": at(NOW + HOUR, 1)}, "is not before 'to'"),
        ({"from": at(-1)}, "'from' is no time from 1970 to 9999"),
        ({"to": at(253_402_300_799)}, "'to' is no time from 1970 to 9999"),
        ({"to": at(2**63 - 1)}, "'to' is no time from 1970 to 9999"),
        ({"to": at(NOW + HOUR, -1)}, "'to' is no time from 1970 to 9999"),
        ({"to": at(NOW + HOUR, 10**9)}, "'to' is no time from 1970 to 9999"),
        ({"interval_seconds": -1}, "interval_seconds is -1"),
        ({"to": at(NOW + 2 * HOUR, 1)}, "at most 2 hours; set interval_seconds"),
        (
            {"interval_seconds": 1, "to": at(NOW + MOST_BUCKETS + 1)},
            "50,001 buckets of 1 series",
        ),
        ({"interval_seconds": 1, "to": at(NOW + 25_001), "keys": ["a", "b"]}, "50,002 buckets of 2 series"),
    ],
)
def test_wrong_readings_are_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: arguments.readings_wanted(readings(**changes)))


def test_what_is_just_allowed_is_taken() -> None:
    wanted = arguments.readings_wanted(readings(to=at(NOW + 2 * HOUR), keys=["b", "a", "b"]))
    assert (wanted.device_id, wanted.sensors, wanted.interval_sec) == ("kitchen", ("b", "a"), 0)
    assert (wanted.start, wanted.end) == (START, START + timedelta(hours=2))
    arguments.readings_wanted(readings(interval_seconds=1, to=at(NOW + MOST_BUCKETS)))
    arguments.readings_wanted(readings(interval_seconds=2**31 - 1, to=at(253_402_300_798), keys=[]))


@given(st.integers(0, 999_999_999), st.integers(0, 999_999))
def test_a_stored_time_is_in_the_range_exactly_if_it_is_in_the_one_that_was_asked_for(
    nanos: int, micros: int
) -> None:
    wanted = arguments.readings_wanted(readings(**{"from": at(NOW, nanos), "to": at(NOW + 1, nanos)}))
    stored = START + timedelta(microseconds=micros)
    assert (wanted.start <= stored) == (nanos <= micros * 1000)
    assert (stored + timedelta(seconds=1) < wanted.end) == (micros * 1000 < nanos)


@given(st.integers(0, 253_402_300_000 * 10**6))
def test_a_time_comes_back_as_it_was(micros: int) -> None:
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    asked = pb.Series(device_id="d", key="k", after=answers.timestamp(time))
    assert arguments.series_wanted([asked]) == (SeriesWanted(device_id="d", sensor="k", after=time),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"page": -1}, "page is -1"),
        ({"per_page": -1}, "per_page is -1"),
        ({"per_page": 501}, "per_page is 501; it takes 1 to 500"),
        ({"page": 2_001, "per_page": 500}, "beyond the first 1,000,000 alerts"),
        ({"status": 7}, "status is 7"),
        ({"severity": -1}, "severity is -1"),
        ({"place_id": "\0"}, "place_id holds a NUL"),
        ({"sensor_id": "x" * 1001}, "sensor_id has 1001 characters"),
        ({"device_id": "x" * 101}, "device_id has 101 characters"),
        ({"from": at(NOW), "to": at(NOW)}, "is not before 'to'"),
    ],
)
def test_wrong_alerts_are_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: arguments.alerts_wanted(pb.GetAlertsRequest(**changes)))


def test_what_is_left_out_of_a_request_for_alerts_does_not_narrow_it() -> None:
    which, page, per_page = arguments.alerts_wanted(pb.GetAlertsRequest(place_id="home"))
    assert (which.place_id, page, per_page) == ("home", 1, 50)
    assert (which.status, which.severity, which.sensor_id, which.device_id) == (None, None, None, None)
    assert (which.start, which.end) == (None, None)
    asked = pb.GetAlertsRequest(
        status=pb.ALERT_STATUS_ACTIVE,
        severity=pb.ALERT_SEVERITY_CRITICAL,
        device_id="d",
        page=3,
        per_page=500,
    )
    which, page, per_page = arguments.alerts_wanted(asked)
    assert (which.status, which.severity, which.device_id) == (Status.ACTIVE, Severity.CRITICAL, "d")
    assert (page, per_page) == (3, 500)


@pytest.mark.parametrize("value", ["", "17", "{12345678-1234-5678-1234-567812345678}", "x" * 36])
def test_what_is_no_id_of_an_alert_is_refused(value: str) -> None:
    assert "alert_id" in refusal(lambda: arguments.alert(value))


@pytest.mark.parametrize("values", [[], [""], ["d"] * 1001])
def test_devices_to_be_deleted_must_be_named(values: list[str]) -> None:
    assert "device_id" in refusal(lambda: arguments.devices(values))


@pytest.mark.parametrize(
    "series",
    [[], [pb.Series(device_id="d")], [pb.Series(key="k")], [pb.Series(device_id="d", key="k")] * 201],
)
def test_series_to_be_streamed_must_be_named(series: list[pb.Series]) -> None:
    refusal(lambda: arguments.series_wanted(series))


# Who may call

READ, DELETE = "/collector.CollectorService/GetReadings", "/collector.CollectorService/DeleteReadings"


@pytest.mark.parametrize(
    ("metadata", "allowed"),
    [
        ([("authorization", "Bearer reading")], True),
        ([("authorization", "bearer  reading ")], True),
        ([("authorization", "Bearer deleting")], True),
        ([], False),
        ([("authorization", "Bearer reading2")], False),
        ([("authorization", "Bearer ")], False),
        ([("authorization", "reading")], False),
        ([("authorization", "Basic reading")], False),
        ([("authorization", "Bearer gr\u00fc\u00dfe")], False),
        ([("x", "Bearer reading")], False),
        ([("authorization", "Bearer reading"), ("authorization", "Bearer reading")], False),
    ],
)
def test_a_token_is_all_or_nothing(metadata: list[tuple[str, str]], allowed: bool) -> None:
    access = Access("reading", "deleting")
    if allowed:
        access.check(READ, metadata)
        return
    with pytest.raises(Refused) as caught:
        access.check(READ, metadata)
    assert caught.value.code is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("token", "delete_token", "given", "code"),
    [
        ("reading", "deleting", "deleting", None),
        ("reading", "deleting", "reading", Code.PERMISSION_DENIED),
        ("reading", "deleting", None, Code.UNAUTHENTICATED),
        ("reading", None, "reading", Code.PERMISSION_DENIED),
        (None, None, None, Code.PERMISSION_DENIED),
        (None, "deleting", "other", Code.PERMISSION_DENIED),
        (None, "deleting", "deleting", None),
    ],
)
def test_deleting_needs_its_own_token(
    token: str | None, delete_token: str | None, given: str | None, code: Code | None
) -> None:
    access = Access(token, delete_token)
    metadata = [("authorization", f"Bearer {given}")] if given else []
    if code is None:
        access.check(DELETE, metadata)
        return
    with pytest.raises(Refused) as caught:
        access.check(DELETE, metadata)
    assert caught.value.code is code


# Generated files


def test_the_stubs_are_those_that_the_proto_makes(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    shared = Path(protoc.__file__).parent / "_proto"
    assert protoc.main(["", f"-I{ROOT}", f"-I{shared}", *outputs, "query/collector.proto"]) == 0
    for name in ("collector_pb2.py", "collector_pb2.pyi", "collector_pb2_grpc.py"):
        made, kept = (folder / "query" / name for folder in (tmp_path, ROOT))
        assert made.read_text() == kept.read_text(), f"{name} is not of this proto; run `make proto`"
