"""Between gRPC and every service: who may not call is turned away before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from query.access import Access
from query.refusal import Refused


class AccessInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        try:
            self._access.check(handler_call_details.method, handler_call_details.invocation_metadata)
        except Refused as refused:
            return _refusing(refused)
        return continuation(handler_call_details)


def _refusing(refused: Refused) -> Any:
    """A handler of any method that answers nothing else. It never looks at what is sent: a caller that
    sends nothing would keep a thread otherwise.
    """

    def refuse(_requests: object, context: grpc.ServicerContext) -> NoReturn:
        context.abort(refused.code.value, refused.sentence)
        raise AssertionError("abort raises")

    return grpc.stream_unary_rpc_method_handler(refuse)
