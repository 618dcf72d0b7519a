"""A consumer name belongs to one process at a time: a lease in Redis, renewed by the loop's own progress.

Two processes under one name would be handed each other's pending entries. That loses nothing, since all
writing is idempotent, but it does the work twice; so the second waits, says so, and takes over when the
first is gone. A process that was stopped long enough to lose its name notices at its next renewal.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import redis
import structlog

import redis_scripts
from scripting import Script

TTL_SEC = 15.0


class NameTaken(Exception):
    """Another process holds the consumer name. The message names it."""


class Lease:
    """Holds `key` for this process. Raises redis errors as they come; the reader retries."""

    def __init__(self, client: redis.Redis, key: str, token: str) -> None:
        self._client = client
        self._key = key
        self._mine = json.dumps(
            {
                "host": socket.gethostname(),
                "place": _place(),
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "token": token,
            }
        )
        self._take = Script(client, redis_scripts.LEASE)
        self._give = Script(client, redis_scripts.RELEASE)
        self._waiting_for: str | None = None
        self.held = False

    def renew(self) -> None:
        """Take or keep the lease. Raises `NameTaken` while another process holds it."""
        holder = self._attempt("")
        if holder and _is_gone(holder):
            holder = self._attempt(holder)
        self.held = not holder
        if holder:
            raise NameTaken(_describe(holder))
        if self._waiting_for:
            structlog.get_logger().info("consumer_name_taken_over", previous=self._waiting_for)
            self._waiting_for = None

    def acquire(self, wait: Callable[[float], None], stopped: Callable[[], bool]) -> bool:
        """Wait until the name is free, saying so once. False when a stop came first."""
        while not stopped():
            try:
                self.renew()
            except NameTaken as taken:
                if self._waiting_for is None:
                    structlog.get_logger().warning("consumer_name_in_use", holder=str(taken))
                    self._waiting_for = str(taken)
                wait(0.5)
            else:
                return True
        return False

    def release(self) -> None:
        self._give(keys=[self._key], args=[self._mine])

    def _attempt(self, gone: str) -> str:
        holder = self._take(keys=[self._key], args=[self._mine, int(TTL_SEC * 1000), gone])
        return holder.decode() if isinstance(holder, bytes) else str(holder)


def _is_gone(holder: str) -> bool:
    """Whether the holder is a process of this very place that no longer runs: no need to wait then."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        known = json.loads(holder)
        if known["place"] == _place():
            # "running": another user's process, of which /proc may tell nothing (hidepid, ProtectProc=)
            return _started(int(known["pid"])) not in (known["started"], "running")
    return False


def _place() -> str:
    """Where process ids mean the same: this boot of this kernel, and this namespace of ids.

    A host's name is not enough: containers may share it, and cloned machines are all called localhost.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks, so that a reused pid is not taken for it; '' if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"


def _describe(holder: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        known = json.loads(holder)
        return f"process {known['pid']} on {known['host']}"
    return "another process"
