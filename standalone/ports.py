"""Ports on loopback: the usual ones for one run, others for those beside it."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
from types import TracebackType
from typing import Self


def free_port(preferred: int = 0) -> int:
    """A port that nobody listens on: the preferred one where it is free. It stays free until it is listened
    on: it is below those that the system hands to connections, and not the first free one, which another
    run would find too.
    """
    others = (random.randrange(10_000, 30_000) for _ in range(1000))
    for port in [preferred, *others] if preferred else others:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("there is no free port on 127.0.0.1")


class Ports:
    """The ports of one run, for as long as the block lasts. Two runs that begin together would both find
    the usual ones free, seconds before either listens there: so the first claims them all, under a name
    without a file, which is gone with whoever holds it. (On macOS, which has none, it is left to luck.)
    """

    def __init__(self, name: str = "sluice-usual-ports") -> None:
        self._name = name
        self._claim = socket.socket(socket.AF_UNIX)
        self._mine = True

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            try:
                self._claim.bind(f"\0{self._name}")
            except OSError:
                self._mine = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claim.close()

    def free(self, usual: int = 0) -> int:
        """A free one; the usual one, where it is this run's and free."""
        return free_port(usual if self._mine else 0)
