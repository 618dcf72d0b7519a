"""Settings: the only reader of the environment.

Every setting comes from an environment variable of the same name in capitals, or from `.env`. A secret
may be given as `NAME_FILE`, the path of a file that holds it. Wrong values are refused, each with a line
that names the variable, what it got and what it takes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings

from dashboard_settings import DashboardSettings
from edge_settings import EdgeSettings
from query_settings import QuerySettings
from setting_sources import SECRETS, origins
from setting_sources import ConfigError as ConfigError
from setting_types import AnyCaseUnknownSeries, DatabaseAddress, TableName, UnknownSeries

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def _default_consumer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class _DatabaseSettings(BaseSettings):
    # PostgreSQL or TimescaleDB
    database_url: DatabaseAddress = Field(
        description="postgresql://user:password@host:5432/database", min_length=1
    )
    database_direct_url: DatabaseAddress | None = Field(
        None,
        description="the server's own address, where DATABASE_URL leads to a pooler (PgBouncer): for "
        "readers of live readings, migrations, and dropping partitions",
    )
    table_name: TableName = Field("sensor_readings", description="table of the readings")
    enable_timescale: bool = Field(False, description="true: hypertable; false: plain PostgreSQL")
    db_timeout_sec: float = Field(
        30.0, gt=0, le=3600, description="longest time the database may take for one transaction"
    )
    chunk_interval_hours: int = Field(
        24, ge=1, le=8784, description="time span of a hypertable's chunk, in hours (TimescaleDB)"
    )
    columnstore_after_days: int = Field(
        7, ge=0, le=36500, description="age at which chunks become columnstore; 0: never (TimescaleDB)"
    )
    retention_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="readings older than this many days are dropped, until main.py retention --raw says "
        "otherwise; 0: never",
    )
    partitions_ahead_days: int = Field(
        3, ge=0, le=366, description="daily partitions made before they are needed (plain PostgreSQL)"
    )


class Settings(DashboardSettings, QuerySettings, EdgeSettings, _DatabaseSettings):
    """What workers and all that serves readings back run with. Seconds and bytes, unless a name says so.

    Raises: use `load()`, which turns pydantic's report into a `ConfigError` of one line.
    """

    model_config = EdgeSettings.model_config  # of several bases, the last one's would count

    # Workers
    consumer_group_name: str = Field("db_writer", min_length=1, description="consumer group")
    consumer_name: str = Field(
        default_factory=_default_consumer_name,
        min_length=1,
        max_length=200,
        description="name of this worker, unique in the group; default host name and process id",
    )
    batch_size: int = Field(10_000, ge=1, le=100_000, description="most readings in one transaction")
    batch_timeout_sec: float = Field(1.0, gt=0, le=60, description="longest block on an idle read")
    processing_interval_sec: float = Field(0.0, ge=0, le=10, description="pause after each batch")
    max_deliveries: int = Field(
        5, ge=1, le=1000, description="deliveries after which an entry is tried alone"
    )
    dead_letter_flood_count: int = Field(
        1000,
        ge=0,
        le=10_000_000,
        description="so many dead letters in a row, or of the last minute where they are "
        "DEAD_LETTER_FLOOD_SHARE of it, pause a worker; 0: never",
    )
    dead_letter_flood_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="part of the last minute's entries, and of the devices, that has to be bad",
    )
    claim_min_idle_sec: float = Field(
        60.0, ge=0.1, le=86_400, description="an entry pending for this long is claimed from its consumer"
    )
    discovery_interval_sec: float = Field(2.0, ge=0.05, le=3600, description="search for new streams")
    stream_retention_sec: int = Field(
        3600,
        ge=0,
        le=3_153_600_000,
        description="acknowledged entries older than this are trimmed; 0: never",
    )
    dead_letter_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="dead letters older than this many days are removed, replayed or not; 0: never",
    )
    quiet_poll_sec: float = Field(
        2.0,
        ge=0.05,
        le=60,
        description="with more than 500 streams, longest time until a quiet one is looked at again",
    )
    share_above_streams: int = Field(
        64,
        ge=0,
        le=1_000_000,
        description="with more streams than this workers share them out; up to it each reads all",
    )
    worker_timeout_sec: float = Field(
        5.0,
        ge=1,
        le=300,
        description="without a sign of life for this long a worker's streams go to the others",
    )

    # Registry and rules
    unknown_series: AnyCaseUnknownSeries = Field(
        UnknownSeries.ACCEPT,
        description="accept: a series that is not registered gets registered; reject: it is dead-lettered",
    )
    rules_reload_sec: float = Field(
        60.0, ge=1, le=86_400, description="look for changes of rules that no notification told of"
    )

    def direct_url(self) -> str | None:
        """`DATABASE_DIRECT_URL`, where it is set: never log it."""
        return self.database_direct_url.get_secret_value() if self.database_direct_url else None


class _WithoutDatabase(Settings):
    database_url: DatabaseAddress = Field(SecretStr("postgresql:///nowhere"), min_length=1)


def load(**overrides: Any) -> Settings:
    """Read the environment. Raises `ConfigError` with a sentence for each setting that is wrong."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, Settings, overrides)) from None


def load_without_database(**overrides: Any) -> Settings:
    """As `load`, for what talks to Redis only: DATABASE_URL need not be set."""
    try:
        return _WithoutDatabase(**overrides)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, Settings, overrides)) from None


def load_edge(**overrides: Any) -> EdgeSettings:
    """As `load`, for what needs neither a database nor a worker's settings."""
    try:
        return EdgeSettings(**overrides)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, EdgeSettings, overrides)) from None


def _sentences(
    error: ValidationError, kind: type[BaseSettings], overrides: dict[str, Any]
) -> Iterator[str]:
    """One for each setting, in the order of the reference."""
    whence = origins(kind) | dict.fromkeys(overrides, "default")
    told: set[object] = set()
    for wrong in error.errors(include_url=False):
        place = wrong["loc"][0] if wrong["loc"] else None
        if place is None or place not in told:
            told.add(place)
            yield _sentence(wrong, whence)


def _sentence(wrong: ErrorDetails, whence: Mapping[str, str]) -> str:
    message = wrong["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not wrong["loc"]:
        return message
    name = str(wrong["loc"][0])
    takes = Settings.model_fields[name].description
    if wrong["type"] == "missing":
        return f"{name.upper()} is not set; it takes {takes}"
    got = "a value that is kept secret" if name in SECRETS else repr(wrong["input"])
    hint = "" if takes and takes in message else f" ({takes})"
    origin = whence.get(name)
    if origin not in ("default", "environment", None):  # not where one looks first
        got += f" (from {origin})"
    return f"{name.upper()} is {got}; it takes {message[0].lower()}{message[1:]}{hint}"
