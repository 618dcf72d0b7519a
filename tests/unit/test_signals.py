"""Signals arrive in the middle of anything."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import structlog

import config
import log
from main import DatabaseWriterService
from retry import StopFlag
from serving import stop_on_signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """Give the signals back to whoever had them."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Interrupting(io.StringIO):
    """A log that is interrupted by SIGTERM while it is written, with the logger's lock held."""

    def write(self, text: str) -> int:
        if not self.tell():
            super().write("begun ")
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


@pytest.mark.timeout(10)
@pytest.mark.usefixtures("handlers")
def test_a_signal_while_a_log_line_is_written_does_not_deadlock() -> None:
    settings = config.load(database_url="postgresql://localhost/none", redis_url="redis://127.0.0.1:1")
    service = DatabaseWriterService(settings)
    stop_on_signals(service.stop)
    out = Interrupting()
    log.configure("info", "json", out)
    try:
        structlog.get_logger().info("batch")
    finally:
        log.configure("info", "console", sys.stderr)
        structlog.reset_defaults()
    assert "batch" in out.getvalue()


@pytest.mark.timeout(10)
@pytest.mark.usefixtures("handlers")
def test_a_signal_that_interrupts_a_pause_ends_it() -> None:
    for _ in range(20):
        flag = StopFlag(timeout_sec=1)
        signal.signal(signal.SIGALRM, lambda *_: flag.set())  # noqa: B023
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        flag.pause(60)
        assert flag.is_set()
