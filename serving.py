"""What runs until a signal ends it, and how its end is told."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import structlog

from config import ConfigError
from schema_check import SchemaMismatch


class Service(Protocol):
    """What runs until it is stopped."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


def stop_on_signals(stop: Callable[[], object]) -> None:
    """SIGTERM or SIGINT calls `stop`; a second one ends the process at once, status 1."""

    def second(_number: int, _frame: FrameType | None) -> None:
        os._exit(1)  # no clean-up that could hang: what was in hand stays pending

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, second)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, first)


def serve(service: Service, name: str, left: str) -> int:
    """Run until a signal ends it, status 0, or a bug does, status 1: then `left` says what becomes of what
    was in hand.
    """
    stop_on_signals(service.stop)
    try:
        service.run()
    except (ConfigError, SchemaMismatch):
        raise
    except Exception as bug:  # noqa: BLE001  the outermost: a bug ends the process, and is told
        # Where, not what: the message of an error may quote what a device has sent.
        where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(bug.__traceback__)]
        structlog.get_logger().critical(
            f"{name}_crashed", error=type(bug).__name__, where=where[-8:], left=left
        )
        return 1
    return 0
