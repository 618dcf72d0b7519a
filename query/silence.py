"""Callers who send nothing: each call keeps a thread until its request is there, so that has to be soon.

gRPC waits for a request without an end. Here every method is served as one whose requests are a stream, so
that the waiting happens in our hands: what does not come in time has its call cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NoReturn

import grpc

from query.refusal import Code
from retry import StopFlag

FIRST_SEC = 5.0  # from the beginning of a call until its request is there
NEXT_SEC = 30.0  # between two requests of a stream of them
BESIDE = 16  # calls of health checks at once, and as many of all other services beside the main one
_LOOK_SEC = 0.25
_CHECK = "/grpc.health.v1.Health/Check"


class Silence:
    """Ends calls that wait for longer than they may. Its thread calls `run`; all else is for any thread."""

    def __init__(self, stop: StopFlag, clock: Callable[[], float] = monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[float, Callable[[], None]]] = {}

    def run(self) -> None:
        """Returns after a stop: then the server ends all calls itself."""
        while not self._stop.is_set():
            self._stop.pause(_LOOK_SEC)
            self.look()

    def look(self) -> None:
        now = self._clock()
        with self._lock:
            late = [(one, end) for one, (until, end) in self._waiting.items() if until < now]
            for one, _ in late:
                del self._waiting[one]
        for _, end in late:
            end()

    @contextmanager
    def at_most(self, seconds: float, end: Callable[[], None]) -> Iterator[None]:
        """`end` is called if the block takes longer than that."""
        one = object()
        with self._lock:
            self._waiting[one] = self._clock() + seconds, end
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(one, None)

    def requests(self, sent: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """What a caller sends. A call that is ended here raises what gRPC raises for one that hangs up."""
        seconds = FIRST_SEC
        while True:
            with self.at_most(seconds, context.cancel):
                try:
                    request = next(sent)
                except StopIteration:
                    return
            yield request
            seconds = NEXT_SEC


class SilenceInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Serves every method so. `service`: the main one, whose calls are bounded elsewhere; of all others
    there are at most `BESIDE` at once.
    """

    def __init__(self, silence: Silence, service: str) -> None:
        self._silence = silence
        self._main = f"/{service}/"
        self._checks = threading.BoundedSemaphore(BESIDE)
        self._others = threading.BoundedSemaphore(BESIDE)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:  # there is no such method
            return None
        method = handler_call_details.method
        permits = None
        if not method.startswith(self._main):
            permits = self._checks if method == _CHECK else self._others
        return self._served(handler, permits)

    def _served(self, handler: Any, permits: threading.BoundedSemaphore | None) -> Any:
        behavior = next(
            one
            for one in (
                handler.unary_unary,
                handler.unary_stream,
                handler.stream_unary,
                handler.stream_stream,
            )
            if one
        )

        def serve(sent: Iterator[Any], context: grpc.ServicerContext, *callback: Any, **more: Any) -> Any:
            if permits is not None:
                _admit(permits, context)
            requests = self._silence.requests(sent, context)
            if handler.request_streaming:
                return behavior(requests, context, *callback, **more)
            request = next(requests, None)
            if request is None:
                _refuse(context, Code.INVALID_ARGUMENT, "a call needs one request; none came")
            return behavior(request, context, *callback, **more)

        # Answers without keeping the thread, as health.Watch does; gRPC looks for it at the function.
        serve.experimental_non_blocking = getattr(behavior, "experimental_non_blocking", False)  # type: ignore[attr-defined]
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(serve, handler.request_deserializer, handler.response_serializer)


def _admit(permits: threading.BoundedSemaphore, context: grpc.ServicerContext) -> None:
    if not permits.acquire(blocking=False):
        _refuse(
            context, Code.RESOURCE_EXHAUSTED, f"the server has {BESIDE} calls of this kind; try again later"
        )
    if not context.add_callback(permits.release):  # the call has ended
        permits.release()


def _refuse(context: grpc.ServicerContext, code: Code, sentence: str) -> NoReturn:
    context.abort(code.value, sentence)
    raise AssertionError("abort raises")
