"""Kinds of values that settings take: enumerations, and texts that are checked. Pure.

A check raises ValueError with what the setting takes, as the end of a sentence: `config.load` puts the
variable and its value before it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode
from redis.connection import parse_url

from redis_servers import RedisMode
from schema import PayloadFormat

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,51}")
_TAKEN_TABLES = (
    "alembic_version",
    "alerts",
    "applied_events",
    "device_deletions",
    "devices",
    "duties",
    "readings_day",
    "readings_hour",
    "readings_minute",
    "retention",
    "rollup_dirty",
    "rollup_state",
    "series",
    "thresholds",
)
_ESCAPED = "an address in whose user and password @ is written as %40, / as %2F, ? as %3F and # as %23"
_ALERT_NAMES = ("{place_id}", "{device_id}", "{sensor_type}", "{severity}")
# Names of a template that mean the same part of a topic
_SAME_PART = (
    ("{device_id}", "{device_code}"),
    ("{sensor_type}", "{feed_key}"),
    ("{place_id}", "{user_id}", "{owner}"),
    ("{node_id}",),
)


class _LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class _LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class UnknownSeries(StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"


class MqttProtocol(StrEnum):
    V311 = "3.1.1"
    V5 = "5"


class Layout(StrEnum):
    """How the bridge spreads messages over streams."""

    SHARDS = "shards"
    SERIES = "series"


class WhenFull(StrEnum):
    """What the bridge does with a message for which its queue has no room."""

    STOP = "stop"
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"


class Unmatched(StrEnum):
    """What the bridge does with a message whose topic no template matches."""

    COUNT = "count"
    DEAD_LETTER = "dead_letter"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _template_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for template in value:
        levels = template.split("/")
        if any("{" in level and not re.fullmatch(r"\{[a-z_]+\}", level) for level in levels):
            raise ValueError(f"templates whose names are whole levels; in {template!r} one is not")
        if set(template) & set("+#\x00"):
            raise ValueError(f"templates with names in place of + and #; {template!r} holds one")
        for names in _SAME_PART:
            if sum(levels.count(name) for name in names) > 1:
                raise ValueError(f"templates with {' or '.join(names)} once; {template!r} has more")
        if not {"{device_id}", "{device_code}"} & set(levels):
            raise ValueError(f"templates with {{device_id}}; {template!r} has none")
    return value


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError("at least one template with {device_id}")
    return value


def _filter_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for wanted in value:
        levels = wanted.split("/")
        wild = any(level not in ("+", "#") and set(level) & set("+#") for level in levels)
        if wild or "#" in levels[:-1] or "\x00" in wanted or len(wanted.encode()) > 65_000:
            raise ValueError(
                f"topic filters, whose + and # are whole levels and # the last one; {wanted!r} is none"
            )
        if levels[0] == "$share":
            raise ValueError("topic filters without $share; set BRIDGE_SHARE to the name of the group")
    return value


def _format_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        wanted, equals, form = entry.rpartition("=")
        if not equals or not wanted or form not in list(PayloadFormat):
            known = ", ".join(PayloadFormat)
            raise ValueError(f"filter=format, where the format is one of {known}; {entry!r} is not so")
        _filter_list((wanted,))
    return value


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, KeyError):  # not found is a KeyError, a folder an OSError
        raise ValueError("the name of a time zone that this machine knows, such as Europe/Berlin") from None
    return value


def _share(value: str) -> str:
    if set(value) & set("/+#\x00"):
        raise ValueError("a name without /, + and #")
    return value


def _plain_topic(value: str) -> str:
    if not value.isprintable() or set(value) & set("+#"):
        raise ValueError("a topic without wildcards")
    return value


def _alert_topic(value: str) -> str:
    literal = value
    for name in _ALERT_NAMES:
        literal = literal.replace(name, "")
    if not literal.isprintable() or set(literal) & set("+#{}"):
        raise ValueError(f"a topic without wildcards, whose names are of {', '.join(_ALERT_NAMES)}")
    return value


def _table_name(value: str) -> str:
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError(
            "a name of letters, digits and underscores, at most 52 long, not starting with a digit"
        )
    if value.lower() in _TAKEN_TABLES:
        raise ValueError(f"another name than those of the tables beside it: {', '.join(_TAKEN_TABLES)}")
    return value


def _database_address(value: SecretStr) -> SecretStr:
    scheme, separator, rest = value.get_secret_value().partition("://")
    if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ValueError("an address such as postgresql://user:password@host:5432/database")
    try:
        parts = conninfo_to_dict(f"postgresql://{rest}")
    except ProgrammingError:
        raise ValueError("an address that libpq understands; a part or an option is not one") from None
    # libpq takes the first @ and / for the end of the password: the rest of it would be told as a host.
    if any("@" in str(parts.get(name, "")) for name in ("host", "hostaddr", "port", "dbname")):
        raise ValueError(_ESCAPED)
    port = parts.get("port")
    if port and not all(part.isdigit() for part in str(port).split(",")):
        raise ValueError("an address whose port is a number")
    return SecretStr(f"postgresql://{rest}")


def _redis_address(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("an address that starts with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise ValueError("an address whose port, database and options are well formed") from None
    # What stands before the first / would be told as host and port.
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(_ESCAPED)
    return value


def _mqtt_address(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        usable = (
            parts.scheme in ("mqtt", "mqtts")
            and bool((parts.hostname or "").encode("idna"))
            and parts.port != 0
            and parts.path in ("", "/")
            and not parts.query + parts.fragment
        )
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("an address such as mqtt://user:password@host:1883 or mqtts://host:8883")
    return value


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("at least 16 ASCII characters without spaces, such as openssl rand -hex 32 prints")
    return value


def _password(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 12:
        raise ValueError("at least 12 characters, such as four words")
    return value


def _host_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", name):
            raise ValueError(f"names such as sluice.example or sluice.example:8443; {name!r} is none")
    return value


def _present(value: Path) -> Path:
    if not value.is_file():
        raise ValueError("the path of a file that is there")
    return value


def _node_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        host, port = host_and_port(name, 1)
        if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host) or not 1 <= port <= 65535:
            raise ValueError(f"hosts with their ports, such as 10.0.0.1:26379; {name!r} is none")
    return value


def host_and_port(name: str, port: int) -> tuple[str, int]:
    """The parts of `host:port` or `[address]:port`; `port` where there is none, 0 where it is no number."""
    host, _, last = name.rpartition(":")
    if not host or name.endswith("]"):
        host, last = name, str(port)
    return host.removeprefix("[").removesuffix("]"), int(last) if last.isdecimal() else 0


_ANY_CASE = BeforeValidator(_lower)
LogFormat = Annotated[_LogFormat, _ANY_CASE]
LogLevel = Annotated[_LogLevel, _ANY_CASE]
Templates = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_template_list)]
SomeTemplates = Annotated[Templates, AfterValidator(_not_empty)]
TopicFilters = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_filter_list)]
PayloadFormats = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_format_list)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Share = Annotated[str, AfterValidator(_share)]
PlainTopic = Annotated[str, AfterValidator(_plain_topic)]
AlertTopic = Annotated[str, AfterValidator(_alert_topic)]
TableName = Annotated[str, AfterValidator(_table_name)]
DatabaseAddress = Annotated[SecretStr, AfterValidator(_database_address)]
RedisAddress = Annotated[SecretStr, AfterValidator(_redis_address)]
MqttAddress = Annotated[SecretStr, AfterValidator(_mqtt_address)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Password = Annotated[SecretStr, AfterValidator(_password)]
HostNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_host_list)]
RedisNodes = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_node_list)]
PresentFile = Annotated[Path, AfterValidator(_present)]
AnyCaseUnknownSeries = Annotated[UnknownSeries, _ANY_CASE]
AnyCaseRedisMode = Annotated[RedisMode, _ANY_CASE]
AnyCaseLayout = Annotated[Layout, _ANY_CASE]
AnyCaseWhenFull = Annotated[WhenFull, _ANY_CASE]
AnyCaseUnmatched = Annotated[Unmatched, _ANY_CASE]
