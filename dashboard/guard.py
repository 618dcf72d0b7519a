"""What every request must pass: host, origin, access; and the headers that every answer carries."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.access import RENEW_SEC, SESSION_SEC, Access

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_FREE = ("/login", "/healthz", "/page/", "/assets/")  # no secret is in them, and the login needs them
_SAFE = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self';"
    " connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form would say that it comes from null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. `hosts`: what the header Host may say, with or without the port; empty: anything.

    `secure`: the page comes over https, so the cookie goes over nothing else.
    """

    def __init__(self, app: ASGIApp, access: Access, hosts: Sequence[str], *, secure: bool) -> None:
        self._app = app
        self._access = access
        self._hosts = frozenset(host.lower() for host in hosts)
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        left = self._access.session_left(_cookie(headers, self.cookie_name))
        renew = 0 < left < SESSION_SEC - RENEW_SEC and scope["type"] == "http"
        answer = self._refusal(scope, headers, left) or self._app

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    given.setdefault(name, value)
                given.setdefault("Cache-Control", "no-store")
                if renew and "set-cookie" not in given:
                    given.append("Set-Cookie", self.cookie(self._access.new_session()))
            await send(message)

        try:
            await answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # in the middle of what it asked: nobody is there to be answered
        except Exception as bug:
            # Where, not what: the message may quote what a device or a browser has sent.
            where = [
                f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(bug.__traceback__)
            ]
            structlog.get_logger().error("request_crashed", error=type(bug).__name__, where=where[-6:])
            raise

    @property
    def cookie_name(self) -> str:
        return "__Host-sluice" if self._secure else "sluice_session"

    def cookie(self, value: str) -> str:
        """The header that sets the session; an empty value ends it."""
        made = f"{self.cookie_name}={value}; Path=/; HttpOnly; SameSite=Lax"
        made += f"; Max-Age={SESSION_SEC if value else 0}"
        return made + ("; Secure" if self._secure else "")

    def _refusal(self, scope: Scope, headers: Headers, session_left: float) -> Response | None:
        """What to answer in place of the page; None: the request may pass."""
        host = headers.get("host", "").lower()
        if self._hosts and not self._is_mine(host):
            return _told(scope, 421, "this server is not called so; see DASHBOARD_ALLOWED_HOSTS")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        origin = headers.get("origin")
        if changes and origin is not None and _site(origin) != host:
            return _told(scope, 403, "the request comes from a page of another site")
        if self._access.open or str(scope["path"]).startswith(_FREE) or session_left > 0:
            return None
        if self._access.is_token(headers.get("authorization", "")):
            return None
        if scope["type"] == "http" and scope["path"] == "/":
            query = scope["query_string"].decode("latin-1")
            target = f"/?{query}" if query else "/"
            return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)
        return _told(scope, 401, "log in first, or show the header 'Authorization: Bearer TOKEN'")

    def _is_mine(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return host in self._hosts or name in self._hosts


def _told(scope: Scope, status: int, sentence: str) -> Response:
    if scope["type"] == "http" and str(scope["path"]).startswith("/api/"):
        return JSONResponse({"error": sentence}, status)
    return PlainTextResponse(f"{sentence}\n", status)


def _site(origin: str) -> str | None:
    """Host and port of an origin; None where it has none, or is no address at all."""
    try:
        return urlsplit(origin.lower()).netloc or None
    except ValueError:
        return None


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
