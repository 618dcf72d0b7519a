"""What systemd is told: sd_notify without a package, one datagram a message.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from time import CLOCK_MONOTONIC, clock_gettime_ns

import structlog

from retry import describe


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET names; where there is none, `wanted` is false.

    `watchdog_sec`: systemd kills this process when it hears nothing for so long; 0: it does not watch.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # Of an abstract socket the first byte is NUL, and is written as @.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.wanted = address.startswith(("/", "@"))
        self.watchdog_sec = _watchdog_sec(environment)
        self._told_failure = False

    def send(self, *assignments: str) -> None:
        """Never raises and never waits: a supervisor that is gone is no reason to stop."""
        if not self.wanted:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            if not self._told_failure:
                structlog.get_logger().warning("systemd_not_told", error=describe(error))
            self._told_failure = True

    def reloading(self) -> None:
        now_us = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
        self.send("RELOADING=1", f"MONOTONIC_USEC={now_us}")


def _watchdog_sec(environment: Mapping[str, str]) -> float:
    """What WATCHDOG_USEC says, if it is meant for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdigit() else 0.0
