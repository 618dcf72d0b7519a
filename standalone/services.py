"""What serves the readings back in a one-command run: each on its usual port where that is free."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from standalone.children import Child
from standalone.ports import Ports

_STARTED_SEC = 10.0
# Where each process tells of itself, where that is free: /livez, /readyz, /metrics.
_HEALTH_PORTS = {"worker": 9464, "bridge": 9465, "query": 9466, "dashboard": 9467}


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """`child` None: a package that it needs is not installed. `address`: what to tell the user."""

    name: str
    address: str
    child: Child | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    name: str
    command: str
    package: str
    usual_port: int
    address: str


def with_health(environment: Mapping[str, str], command: str, ports: Ports) -> dict[str, str]:
    """`environment`, and a port on which the process of this command tells of itself."""
    port = ports.free(_HEALTH_PORTS[command]) if command in _HEALTH_PORTS else 0
    return {**environment, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}


_KINDS = (
    _Kind(
        name="dashboard",
        command="dashboard",
        package="nicegui",
        usual_port=8050,
        address="http://127.0.0.1:{port}/",
    ),
    _Kind(
        name="query service",
        command="query",
        package="grpc",
        usual_port=50054,
        address="127.0.0.1:{port} (gRPC)",
    ),
)


def start_services(
    home: Path, environment: dict[str, str], ports: Ports, stack: contextlib.ExitStack
) -> tuple[Service, ...]:
    """Start what is installed; `stack` stops it. The ports go into `environment`."""
    return tuple(_start(kind, home, environment, ports, stack) for kind in _KINDS)


def _start(
    kind: _Kind, home: Path, environment: dict[str, str], ports: Ports, stack: contextlib.ExitStack
) -> Service:
    if not importlib.util.find_spec(kind.package):
        return Service(name=kind.name, address=f"left out ({kind.package} is not installed)", child=None)
    setting = f"{kind.command.upper()}_PORT"
    for preferred in (kind.usual_port, 0):  # somebody may take a port that has just been free
        port = ports.free(preferred)
        environment[setting] = str(port)
        child = Child(kind.command, home, with_health(environment, kind.command, ports), kind.command)
        stack.callback(child.end)
        if child.wait_for(f"{kind.command}_started", _STARTED_SEC) or child.running:
            break
    return Service(name=kind.name, address=kind.address.format(port=port), child=child)
