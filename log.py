"""structlog, set up once. One event a batch, with fixed name and keys; never a payload or secret."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def configure(level: str, log_format: str, out: TextIO = sys.stderr) -> None:
    """Send every event to `out`, as a JSON object a line or as text for people.

    `level` and `log_format` as in LOG_LEVEL and LOG_FORMAT.
    """
    console = log_format == "console"
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer if console else structlog.processors.format_exc_info,
            *([] if console else [renderer]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
