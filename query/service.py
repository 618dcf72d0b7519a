"""The calls of the interface: arguments in, one question to the database, messages out. Nothing more."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from time import monotonic, sleep
from typing import Any, TypeVar

import grpc
import structlog

from database import BoundedConnection
from query import answers, arguments, queries
from query import collector_pb2 as pb
from query.calls import Calls, LongCall
from query.collector_pb2_grpc import CollectorServiceServicer
from query.refusal import Code, Refused
from query.streams import Streams

Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")
MOST_ROWS = 50_000
DELETED_AT_ONCE = 5_000
MOST_SEEN = 10_000  # devices
# Clients take messages of 4 MiB unless told otherwise; a point is its key and at most so much beside it.
_MOST_BYTES = 4_000_000
_LOCKED_SEC = 5.0  # how long deleting waits for whoever has locked an alert
_LOCKED_AGAIN_SEC = 0.1


def _answered(method: Callable[[S, Q, Any], R]) -> Callable[[S, Q, Any], R]:
    """What is refused becomes a status, and so does a bug, whose details are for the log alone."""

    @functools.wraps(method)
    def call(self: S, request: Q, context: Any) -> R:
        try:
            return method(self, request, context)
        except Exception as error:  # noqa: BLE001  the outermost of this call: others go on
            refused = _told(error, method.__name__)
        context.abort(refused.code.value, refused.sentence)
        raise AssertionError("abort raises")

    return call


def _told(error: Exception, method: str) -> Refused:
    if isinstance(error, Refused):
        return error
    # Where, not what: the message of an error may quote what a device has sent.
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    structlog.get_logger().error(
        "call_crashed", method=method, error=type(error).__name__, where=where[-8:]
    )
    return Refused(Code.INTERNAL, "this is a bug in the server; its log says where")


class CollectorService(CollectorServiceServicer):
    """May be called by any thread. `now`: the time that a resolved alert is given."""

    def __init__(
        self,
        calls: Calls,
        streams: Streams,
        table: str,
        *,
        now: Callable[[], datetime],
        publish_alerts: bool,
    ) -> None:
        self._calls = calls
        self._streams = streams
        self._table = table
        self._now = now
        self._publish_alerts = publish_alerts
        self._kind: queries.BucketKind | None = None
        # The newest reading that each device was answered with: where the next look begins. Each access is
        # one operation of a dict, which threads may do at once.
        self._seen: dict[str, datetime] = {}

    @_answered
    def GetLatestReadings(  # noqa: N802  gRPC's name
        self, request: pb.GetLatestReadingsRequest, context: grpc.ServicerContext
    ) -> pb.GetLatestReadingsResponse:
        device = arguments.device(request.device_id)
        seen = self._seen.get(device)
        found = self._calls.ask(context, lambda c: queries.latest(c, device, table=self._table, seen=seen))
        if found:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen[device] = max(one.time for one in found)
        else:
            self._seen.pop(device, None)
        return answers.latest(found)

    @_answered
    def GetReadings(  # noqa: N802
        self, request: pb.GetReadingsRequest, context: grpc.ServicerContext
    ) -> pb.GetReadingsResponse:
        wanted = arguments.readings_wanted(request)
        if wanted.interval_sec:
            return answers.buckets(self._calls.ask(context, lambda c: self._buckets(c, wanted)))
        found = self._calls.ask(
            context,
            lambda c: queries.raw(
                c,
                wanted.device_id,
                wanted.sensors,
                wanted.start,
                wanted.end,
                MOST_ROWS + 1,
                table=self._table,
            ),
        )
        return answers.raw(found, MOST_ROWS, _MOST_BYTES)

    @_answered
    def GetAlerts(  # noqa: N802
        self, request: pb.GetAlertsRequest, context: grpc.ServicerContext
    ) -> pb.GetAlertsResponse:
        which, page, per_page = arguments.alerts_wanted(request)
        return answers.alerts(*self._calls.ask(context, lambda c: queries.alerts(c, which, page, per_page)))

    @_answered
    def GetAlertCounts(  # noqa: N802
        self, request: pb.GetAlertCountsRequest, context: grpc.ServicerContext
    ) -> pb.GetAlertCountsResponse:
        places = arguments.places(request.place_id)
        if not places:  # whoever may see no place is told of none
            return pb.GetAlertCountsResponse()
        by_place, total = self._calls.ask(context, lambda c: queries.alert_counts(c, places))
        return pb.GetAlertCountsResponse(unresolved_by_place=by_place, total_unresolved=total)

    @_answered
    def ResolveAlert(  # noqa: N802
        self, request: pb.ResolveAlertRequest, context: grpc.ServicerContext
    ) -> pb.ResolveAlertResponse:
        alert_id = arguments.alert(request.alert_id)
        row = self._calls.ask(
            context,
            lambda c: queries.resolve_alert(c, alert_id, self._now(), publish=self._publish_alerts),
            writes=True,
        )
        if row is None:
            raise Refused(Code.NOT_FOUND, f"there is no alert {alert_id}")
        return pb.ResolveAlertResponse(alert=answers.alert(row))

    @_answered
    def DeleteReadings(  # noqa: N802
        self, request: pb.DeleteReadingsRequest, context: grpc.ServicerContext
    ) -> pb.DeleteReadingsResponse:
        devices = arguments.devices(request.device_ids)
        call, deleted = LongCall(context), 0
        try:
            for device in devices:
                deleted += self._delete(call, device)
        finally:
            # Whoever asks for less than it seems, or twice: what is gone is told in the log too.
            structlog.get_logger().info("readings_deleted", devices=len(devices), rows=deleted)
        return pb.DeleteReadingsResponse(deleted=deleted)

    def StreamReadings(  # noqa: N802
        self, request: pb.StreamReadingsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamReadingsResponse]:
        try:
            wanted = arguments.series_wanted(request.series)
            yield from self._streams.stream(wanted, LongCall(context))
        except Exception as error:  # noqa: BLE001  as in `_answered`
            refused = _told(error, "StreamReadings")
        else:
            return
        context.abort(refused.code.value, refused.sentence)

    def _buckets(
        self, connection: BoundedConnection, wanted: arguments.ReadingsWanted
    ) -> dict[str, list[queries.Bucket]]:
        if self._kind is None:
            self._kind = queries.kind_of(connection)
        sensors = wanted.sensors or tuple(queries.sensors(connection, wanted.device_id))
        wanted.check_buckets(len(sensors))
        if not sensors:
            return {}
        return queries.buckets(
            connection,
            self._kind,
            wanted.device_id,
            sensors,
            wanted.start,
            wanted.end,
            wanted.interval_sec,
            table=self._table,
        )

    def _delete(self, call: LongCall, device: str) -> int:
        """Step by step, each committed: a call that ends in the middle has deleted the first ones."""
        total, give_up = 0, monotonic() + _LOCKED_SEC
        while True:
            step = self._calls.ask(
                call,
                lambda c: queries.delete_readings(c, [device], DELETED_AT_ONCE, table=self._table),
                writes=True,
            )
            total += step
            if step:
                continue
            if not self._calls.ask(call, lambda c: queries.alerts_left(c, device)):
                break
            if monotonic() > give_up:
                raise Refused(
                    Code.UNAVAILABLE, f"somebody else holds a lock on an alert of {device!r}; call again"
                )
            sleep(_LOCKED_AGAIN_SEC)
        while self._calls.ask(
            call,
            lambda c: queries.delete_rollups(c, device, DELETED_AT_ONCE, table=self._table),
            writes=True,
        ):
            pass
        return total
