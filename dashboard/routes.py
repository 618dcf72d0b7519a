"""What is asked over HTTP: the page, logging in and out, charts, and resolving an alert."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs
from uuid import UUID

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dashboard import messages, wanted
from dashboard.access import Access, Attempts
from dashboard.asking import Asking, Unanswered
from dashboard.assets import Assets
from dashboard.charts import Charts
from dashboard.guard import Guard
from dashboard.hub import Hub, utc_now
from query import queries

_Handler = Callable[[Request], Awaitable[Response]]
_MOST_BODY = 4_096
_BODY_SEC = 10.0  # that a password may take to come
_WRONG_SEC = 0.5  # that a wrong one takes at least


class Routes:
    """`guard` makes the cookies; `healthy`: whether the database answers."""

    def __init__(
        self,
        access: Access,
        assets: Assets,
        asking: Asking,
        charts: Charts,
        hub: Hub,
        healthy: Callable[[], bool],
        *,
        publish_alerts: bool,
    ) -> None:
        self._access = access
        self._attempts = Attempts()
        self._assets = assets
        self._asking = asking
        self._charts = charts
        self._hub = hub
        self._healthy = healthy
        self._publish_alerts = publish_alerts
        self.guard: Guard | None = None

    def all(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/login", self.login_page, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/healthz", self.health),
            Route("/api/readings", _answered(self.readings)),
            Route("/api/alerts/{id}/resolve", _answered(self.resolve), methods=["POST"]),
            Route("/page/{name}", self._assets.serve),
            Route("/assets/{name}", self._assets.serve),
        ]

    async def page(self, request: Request) -> Response:
        return self._assets["/page/index.html"].answer(request)

    async def login_page(self, request: Request) -> Response:
        if self._access.open:
            return RedirectResponse("/", 303)
        return self._assets["/page/login.html"].answer(request)

    async def login(self, request: Request) -> Response:
        """Answers JSON to the page's script, and a redirect to a form without one."""
        address = request.client.host if request.client else ""
        try:
            async with asyncio.timeout(_BODY_SEC):
                body = await _body(request)
        except TimeoutError:
            return JSONResponse({"error": "the password took too long to come"}, 408)
        # With the password in hand, and no wait until it is judged: of many that come at once, each counts.
        wait = self._attempts.wait_sec(address)
        if wait > 0:
            return JSONResponse(
                {"error": f"too many wrong passwords; try again in {math.ceil(wait)} s"},
                429,
                headers={"Retry-After": str(math.ceil(wait))},
            )
        given = parse_qs(body.decode(errors="replace")).get("password", [""])[0]
        if not self._access.is_secret(given):
            self._attempts.wrong(address)
            structlog.get_logger().warning("dashboard_login_refused", address=address)
            await asyncio.sleep(_WRONG_SEC)
            return JSONResponse({"error": "this is not the password"}, 401)
        self._attempts.right(address)
        answer = JSONResponse({"next": "/"})
        answer.headers.append("Set-Cookie", self._cookie(self._access.new_session()))
        return answer

    async def logout(self, _request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.headers.append("Set-Cookie", self._cookie(""))
        answer.headers["Clear-Site-Data"] = '"cache"'
        return answer

    async def health(self, _request: Request) -> Response:
        healthy = self._healthy()
        return JSONResponse({"database": healthy}, 200 if healthy else 503)

    async def readings(self, request: Request) -> Response:
        """A range of one series for a chart."""
        given = wanted.Parameters(request.scope["query_string"].decode("latin-1"))
        series, span = wanted.chart_series(given), wanted.chart_range(given)
        found = await self._asking.ask(
            lambda connection: self._charts.chart(connection, series, span, utc_now())
        )
        return JSONResponse(dataclasses.asdict(found))

    async def resolve(self, request: Request) -> Response:
        """End an active alert by hand: it, as it is then."""
        text = request.path_params["id"]
        try:
            alert_id = UUID(text)
        except ValueError:
            return JSONResponse({"error": "this is no id of an alert; it takes a UUID"}, 400)
        row = await self._asking.ask(
            lambda connection: queries.resolve_alert(
                connection, alert_id, utc_now(), publish=self._publish_alerts
            ),
            writes=True,
        )
        if row is None:
            return JSONResponse({"error": f"there is no alert {alert_id}"}, 404)
        structlog.get_logger().info("alert_resolved_by_hand", alert=str(alert_id))
        self._hub.stirred.set()
        return Response(messages.message("alert", messages.alert(row)), media_type="application/json")

    def _cookie(self, value: str) -> str:
        if self.guard is None:
            raise AssertionError("wired by the server")
        return self.guard.cookie(value)


def _answered(handler: _Handler) -> _Handler:
    """What people asked wrongly, and what the database does not answer, told in a sentence."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except wanted.Wrong as wrong:
            return JSONResponse({"error": str(wrong)}, 400)
        except Unanswered as unanswered:
            return JSONResponse({"error": str(unanswered)}, 503)

    return answer


async def _body(request: Request) -> bytes:
    """At most `_MOST_BODY` bytes of it: the rest is cut off, and so no password."""
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > _MOST_BODY:
            return b""
    return found
