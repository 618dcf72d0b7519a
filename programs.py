"""The programs beside the worker: each made from its settings, and run until a signal ends it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Protocol

import config
import log
import wiring
from config import ConfigError, Settings
from edge_settings import EdgeSettings
from mqtt.bridge import Bridge
from retry import StopFlag
from serving import Service, serve
from signs import Signs


class Program(Service, Protocol):
    """What runs until it is stopped, and shows meanwhile how it does."""

    def signs(self) -> Signs: ...


def run(
    program: Program, name: str, settings: EdgeSettings, load: Callable[[], EdgeSettings], *, left: str
) -> int:
    """Run it with what tells of it; the exit status. `load` reads the settings again, at a reload; `left`:
    what becomes of what was in hand when a bug ends it.
    """
    vitals = wiring.vitals(settings, name, program.signs(), os.environ, load)
    return serve(program, name, left=left, vitals=vitals)


def bridge() -> int:
    """Run a bridge, which needs neither a database nor a worker's settings."""
    settings = config.load_edge()
    log.configure(settings.log_level, settings.log_format)
    program = Bridge(wiring.bridge_options(settings), StopFlag(settings.shutdown_timeout_sec))
    return run(program, "bridge", settings, config.load_edge, left="unacknowledged")


def query(settings: Settings) -> int:
    """Run the query service, whose packages not everybody has installed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read at the import; what goes wrong is told here
    try:
        from query.server import QueryServer
    except ModuleNotFoundError as missing:
        raise _without(missing, "the query service", "query") from None
    program = QueryServer(wiring.query_options(settings), StopFlag(settings.shutdown_timeout_sec))
    return run(program, "query", settings, config.load, left="nothing")


def dashboard(settings: Settings) -> int:
    """Run the dashboard, whose packages not everybody has installed."""
    # Read at the import. The address of a WebSocket names up to a hundred series.
    os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", "65536")
    try:
        from dashboard.server import DashboardServer
    except ModuleNotFoundError as missing:
        raise _without(missing, "the dashboard", "dashboard") from None
    program = DashboardServer(wiring.dashboard_options(settings), StopFlag(settings.shutdown_timeout_sec))
    return run(program, "dashboard", settings, config.load, left="nothing")


def simulate(chosen: argparse.Namespace) -> int:
    """Publish what devices would, as `chosen` on the command line. Needs no database either."""
    from mqtt import simulate as simulated

    settings = config.load_edge()
    log.configure(settings.log_level, settings.log_format)
    mqtt = wiring.mqtt_options(settings, simulated.client_id())
    return simulated.main(mqtt, chosen, wiring.limits(settings).payload_formats)


def _without(missing: ModuleNotFoundError, program: str, requirements: str) -> ConfigError:
    return ConfigError(
        f"the package {missing.name} is missing for {sys.executable}; {program} needs "
        f"pip install --require-hashes -r requirements/{requirements}.txt"
    )
