"""What runs until a signal ends it, and how its end is told."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Protocol

import structlog

import log
from config import ConfigError
from edge_settings import EdgeSettings
from health.vitals import Vitals
from schema_check import SchemaMismatch


class Service(Protocol):
    """What runs until it is stopped."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


def stop_on_signals(stop: Callable[[], object], reload: Callable[[], object] = lambda: None) -> None:
    """SIGTERM or SIGINT calls `stop`, a second one ends the process at once, status 1; SIGHUP: `reload`."""

    def second(_number: int, _frame: FrameType | None) -> None:
        os._exit(1)  # no clean-up that could hang: what was in hand stays pending

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, second)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, first)
    signal.signal(signal.SIGHUP, lambda _number, _frame: reload())


def serve(service: Service, name: str, left: str, vitals: Vitals | None = None) -> int:
    """Run until a signal ends it, status 0, or a bug does, status 1: then `left` says what becomes of what
    was in hand. `vitals` tell of it meanwhile.
    """
    stop_on_signals(service.stop, vitals.reload if vitals else lambda: None)
    if not faulthandler.is_enabled():
        faulthandler.enable()  # systemd's watchdog sends SIGABRT: then the log has where each thread was
    try:
        with vitals or nullcontext():
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


def reread_logs(load: Callable[[], EdgeSettings]) -> None:
    """Take LOG_LEVEL and LOG_FORMAT anew; of a setting that is wrong now, say so and change nothing."""
    try:
        settings = load()
    except ConfigError as error:
        structlog.get_logger().error("reload_refused", error=str(error))
        return
    log.configure(settings.log_level, settings.log_format)
    structlog.get_logger().info("reloaded", log_level=str(settings.log_level))
