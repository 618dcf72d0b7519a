"""Every setting as text: its value without secrets, its default, what it takes. Pure."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from config import Settings
from setting_sources import SECRETS

# The setting that each part of the reference begins with.
SECTIONS = {
    "database_url": "PostgreSQL or TimescaleDB",
    "redis_host": "Redis",
    "stream_pattern": "Streams",
    "mqtt_url": "MQTT",
    "bridge_name": "Bridge (main.py bridge)",
    "max_future_sec": "What is accepted",
    "device_events": "Device events",
    "log_level": "Logs",
    "query_host": "Query service (main.py query)",
    "dashboard_host": "Dashboard (main.py dashboard)",
    "consumer_group_name": "Workers",
    "unknown_series": "Registry and rules",
}
_MASK = "***"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One setting. `value` and `default` as text, empty where there is none."""

    name: str
    section: str
    value: str
    default: str
    origin: str
    takes: str
    meaning: str
    secret: bool

    @property
    def changed(self) -> bool:
        """Whether it is not what it would be if nobody had said anything."""
        return self.origin != "default" and (self.secret or self.value != self.default)


def shown(settings: Settings, origins: Mapping[str, str]) -> list[Shown]:
    """Every setting, in the order of the reference."""
    found: list[Shown] = []
    section = ""
    for name, field in Settings.model_fields.items():
        section = SECTIONS.get(name, section)
        found.append(
            Shown(
                name=name.upper(),
                section=section,
                value=value_text(name, getattr(settings, name)),
                default=default_text(field),
                origin=origins[name],
                takes=takes(field),
                meaning=field.description or "",
                secret=name in SECRETS,
            )
        )
    return found


def value_text(name: str, value: object) -> str:
    """A value as it would stand in `.env`; of a secret no more than where it leads."""
    if name in SECRETS:
        if not isinstance(value, SecretStr):
            return "" if value is None else _MASK
        return _masked(value.get_secret_value())
    return _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _masked(secret: str) -> str:
    """Scheme, host, port and what follows them, without user, password and options, each of which may be
    one. All of it where it is no address.
    """
    scheme, separator, rest = secret.partition("://")
    if not separator:
        return _MASK
    if scheme == "postgresql":
        return _conninfo(secret)
    address, mark, options = rest.partition("?")
    if "@" in options:  # in an option, or in a password with a question mark: nobody can tell
        return f"{scheme}://{_MASK}"
    login, at, host = address.rpartition("@")
    return f"{scheme}://{_MASK if at else login}{at}{host}" + (f"?{_MASK}" if mark else "")


def _conninfo(secret: str) -> str:
    try:
        parts = conninfo_to_dict(secret)
    except ProgrammingError:
        return _MASK
    port = f":{parts['port']}" if "port" in parts else ""
    host = f"{parts.get('host') or ''}{port}"
    return f"postgresql://{_MASK}@{host}/{parts.get('dbname') or ''}"


def default_text(field: FieldInfo) -> str:
    """The default; for those that depend on the machine see their meaning."""
    if field.is_required() or field.default_factory is not None:
        return ""
    return _plain(field.default)


def takes(field: FieldInfo) -> str:
    """What values it takes, in a few words."""
    kind = _kind(field.annotation)
    bounds = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("ge", "gt", "le", "lt", "max_length")
        if hasattr(rule, name)
    }
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(member.value) for member in kind)
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return f"{'whole number' if kind is int else 'number'}{_range(bounds)}"
    if kind is Path:
        return "path of a file"
    if kind is SecretStr:
        return "text, secret"
    if get_origin(kind) is tuple:
        return "list, comma-separated"
    return f"text, at most {bounds['max_length']}" if "max_length" in bounds else "text"


def _range(bounds: Mapping[str, Any]) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return "".join(f" {words[name]} {_plain(bounds[name])}" for name in words if name in bounds)


def _kind(annotation: Any) -> Any:
    """The type itself, without `| None` and what checks it."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    if hasattr(annotation, "__metadata__"):
        return _kind(get_args(annotation)[0])
    return str if get_origin(annotation) is Literal else annotation
