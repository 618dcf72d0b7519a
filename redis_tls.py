"""Whether a first connection failed because one side has TLS and the other has none: asked at the port.

A Redis without TLS takes the beginning of a handshake for half a line and waits for the rest: all that this
side would see is a time-out. One with TLS hangs up on what it cannot decipher. Both look like outages, and
no waiting mends them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import redis
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import InvalidResponse

ANSWER_SEC = 1.0
HANGING_UP = (redis.ConnectionError, InvalidResponse)  # the latter: the alert of a handshake


class WrongTls(redis.ConnectionError):
    """TLS on one side only. The message: on which, and the remedy."""


class Doubt:
    """Whether TLS may be what is wrong with the connections of one client: until one of them was made."""

    def __init__(self) -> None:
        self.over = False
        self.found: WrongTls | None = None


def doubt_of(pool: ConnectionPool) -> Doubt:
    """The one that the pool's connections share."""
    doubt: Doubt = pool.connection_kwargs["doubt"]
    return doubt


def mismatch(host: str, port: int, *, tls: bool) -> WrongTls | None:
    """What is wrong with TLS, or without, at this port; None where it is not that, or nobody answers.

    Takes up to two times ANSWER_SEC. Nothing is sent but a PING without login, or a handshake's beginning.
    """
    if tls and _speaks_plainly(host, port):
        return WrongTls(
            f"there is no TLS at {host}:{port}; write redis:// in REDIS_URL or REDIS_TLS=false, or name "
            "the port that has it (tls-port in redis.conf)"
        )
    if not tls and _speaks_tls(host, port):
        return WrongTls(
            f"there is nothing but TLS at {host}:{port}; write rediss:// in REDIS_URL or set REDIS_TLS=true"
        )
    return None


def doubting(kind: type[Connection]) -> type[Connection]:
    """Connections of `kind` that say so where TLS is on one side only. They take a `doubt`.

    Raises: `WrongTls`, in place of a time-out or a connection that was closed.
    """
    secured = issubclass(kind, SSLConnection)
    over_tcp = not issubclass(kind, UnixDomainSocketConnection)

    class Doubting(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, doubt: Doubt, **options: Any) -> None:
            self._doubt = doubt
            super().__init__(*args, **options)

        def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
            sock.settimeout(self.socket_connect_timeout)  # not as long as an answer may take
            try:
                secure: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)
            except TimeoutError:
                self._ask()
                raise
            secure.settimeout(self.socket_timeout)
            return secure

        def on_connect_check_health(self, *args: Any, **options: Any) -> None:
            super().on_connect_check_health(*args, **options)
            if secured or self.client_name:  # else nothing was said so far
                self._doubt.over = True

        def hung_up(self, error: Exception) -> None:
            """To be told of what came in place of a reply. Raises: `WrongTls` where that is why."""
            if over_tcp and not secured and type(error) in HANGING_UP:  # others are answers
                self._ask()

        def _ask(self) -> None:
            if not self._doubt.over:
                self._doubt.found = mismatch(self.host, self.port, tls=secured)
                if self._doubt.found:
                    raise self._doubt.found

    return Doubting


def _speaks_plainly(host: str, port: int) -> bool:
    """Whether a command without TLS is answered: with PONG, or with a refusal of who has not logged in."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=ANSWER_SEC) as plain,
    ):
        plain.settimeout(ANSWER_SEC)
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in (b"+", b"-")
    return False


def _speaks_tls(host: str, port: int) -> bool:
    """Whether a handshake is answered: to its end, or with an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # whoever it is: nothing is sent there
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=ANSWER_SEC) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
