"""Faults on purpose: a proxy in front of a server that cuts, stalls or swallows what passes.

The proxy listens on loopback only.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

Watch = Callable[[bytes], bool]


class Proxy:
    """Passes bytes between clients on a loopback port and a server on a Unix socket or a TCP port.

    `cut_when`: a look at each piece sent to the server; True cuts the connection instead of passing it
    on. `cut_reply_when`: the same for pieces that come back; the server has done its work by then.
    `alter`: what is passed to the server in place of each piece.
    `deaf`: accept and keep connections, pass nothing. `mute`: swallow the server's answers only.
    `most_per_sec`: bytes that reach the server in a second, over all connections.
    """

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.deaf = False
        self.mute = False
        self.refuse = False
        self.most_per_sec = math.inf
        self.cut_when: Watch = lambda _: False
        self.cut_reply_when: Watch = lambda _: False
        self.alter: Callable[[bytes], bytes] = lambda piece: piece
        self.cuts = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lead_to(self, upstream: str | tuple[str, int]) -> None:
        """Where connections go that are made from now on."""
        self._upstream = upstream

    def cut(self) -> None:
        """Cut every connection now."""
        with self._lock:
            for side in list(self._pairs):
                self._close(side)

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._pairs) // 2

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._listener.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(0.02):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pass(key.fileobj, to_server=bool(key.data))

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.refuse:
            client.close()
            return
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        self._pairs[client], self._pairs[server] = server, client
        self._selector.register(client, selectors.EVENT_READ, True)
        self._selector.register(server, selectors.EVENT_READ, False)

    def _connect(self) -> socket.socket:
        if isinstance(self._upstream, tuple):
            return socket.create_connection(self._upstream)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._upstream)
        except OSError:
            server.close()
            raise
        return server

    def _pass(self, side: socket.socket, *, to_server: bool) -> None:
        try:
            piece = side.recv(self._most_at_once(to_server=to_server))
        except OSError:
            piece = b""
        if not piece:
            self._close(side)
        elif self.deaf or (self.mute and not to_server):
            return
        elif (self.cut_when if to_server else self.cut_reply_when)(piece):
            self.cuts += 1
            self._close(side)
        else:
            try:
                self._pairs[side].sendall(self.alter(piece) if to_server else piece)
            except OSError:
                self._close(side)

    def _most_at_once(self, *, to_server: bool) -> int:
        """How much to take now; of a slow server's, a hundredth of a second's after just that time."""
        rate = self.most_per_sec  # once: it may change during the sleep
        if not to_server or rate == math.inf:
            return 1 << 20
        time.sleep(0.01)
        return max(1, int(rate * 0.01))

    def _close(self, side: socket.socket) -> None:
        other = self._pairs.pop(side, None)
        for end in (side, other):
            if end is not None:
                self._pairs.pop(end, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()


@contextlib.contextmanager
def proxy_to(upstream: str | tuple[str, int]) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
