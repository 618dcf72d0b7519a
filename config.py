"""Settings: the only reader of the environment.

Every setting comes from an environment variable of the same name in capitals, or from `.env`. A secret
may be given as `NAME_FILE`, the path of a file that holds it. A wrong value is refused with one line
that names the variable, what it got and what it takes.
"""

from __future__ import annotations

import os
import re
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from redis.connection import parse_url

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,51}")
_TAKEN_TABLES = (
    "alembic_version",
    "alerts",
    "applied_events",
    "device_deletions",
    "devices",
    "duties",
    "series",
    "thresholds",
)
_SECRETS = (
    "redis_url",
    "redis_username",
    "redis_password",
    "database_url",
    "mqtt_url",
    "mqtt_username",
    "mqtt_password",
)
_TOPIC_NAMES = ("{place_id}", "{device_id}", "{sensor_type}", "{severity}")
# Names of a template that mean the same part of a topic
_SAME_PART = (
    ("{device_id}", "{device_code}"),
    ("{sensor_type}", "{feed_key}"),
    ("{place_id}", "{user_id}", "{owner}"),
)
_EVENT_STREAMS = (
    "threshold_created_stream",
    "threshold_updated_stream",
    "threshold_deleted_stream",
    "device_deleted_stream",
    "device_bulk_deleted_stream",
)


# Given to `load` by commands that never reach the database: takes the place of DATABASE_URL, set or not.
WITHOUT_DATABASE = {"database_url": "postgresql://not-used"}


class ConfigError(Exception):
    """A setting that cannot be used. The message is complete: variable, value, remedy."""


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class UnknownSeries(StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"


class RedisMode(StrEnum):
    SINGLE = "single"


class MqttProtocol(StrEnum):
    V311 = "3.1.1"
    V5 = "5"


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads NAME_FILE for each secret; NAME itself wins where both are set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        path = os.environ.get(f"{field_name.upper()}_FILE")
        if field_name not in _SECRETS or not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            variable = f"{field_name.upper()}_FILE"
            raise ConfigError(
                f"{variable} is {path!r}, which cannot be read ({error}); "
                f"it takes the path of a text file that holds the value of {field_name.upper()}"
            ) from None

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}


def _default_consumer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """What a worker runs with. Times are seconds, sizes bytes, unless a name says otherwise.

    Raises: use `load()`, which turns pydantic's report into a `ConfigError` of one line.
    """

    model_config = SettingsConfigDict(
        env_file=(Path(__file__).parent / ".env", ".env"),
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    # Redis
    redis_host: str = Field("localhost", description="host of Redis or Valkey")
    redis_port: int = Field(6379, ge=1, le=65535, description="port of Redis or Valkey")
    redis_db: int = Field(0, ge=0, description="database number")
    redis_username: SecretStr | None = Field(None, description="ACL user")
    redis_password: SecretStr | None = Field(None, description="password")
    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// address; takes the place of the five above"
    )
    redis_mode: RedisMode = Field(
        RedisMode.SINGLE,
        description="single: one server; this version has neither sentinel nor cluster",
    )
    redis_allow_eviction: bool = Field(
        False, description="start although Redis may evict streams with unread entries"
    )

    # PostgreSQL or TimescaleDB
    database_url: SecretStr = Field(
        description="postgresql://user:password@host:5432/database", min_length=1
    )
    table_name: str = Field("sensor_readings", description="table of the readings")
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
        0, ge=0, le=36500, description="readings older than this many days are dropped; 0: never"
    )
    partitions_ahead_days: int = Field(
        3, ge=0, le=366, description="daily partitions made before they are needed (plain PostgreSQL)"
    )

    # Streams
    consumer_group_name: str = Field("db_writer", min_length=1, description="consumer group")
    consumer_name: str = Field(
        default_factory=_default_consumer_name,
        min_length=1,
        max_length=200,
        description="name of this worker, unique in the group; default host name and process id",
    )
    stream_pattern: str = Field("mqtt_stream:*", min_length=1, description="streams to read, a glob")
    dead_letter_stream: str = Field(
        "mqtt_stream:failed", min_length=1, description="stream of what could not be stored"
    )
    batch_size: int = Field(5000, ge=1, le=100_000, description="most readings in one transaction")
    batch_timeout_sec: float = Field(1.0, gt=0, le=60, description="longest block on an idle read")
    processing_interval_sec: float = Field(0.0, ge=0, le=10, description="pause after each batch")
    max_deliveries: int = Field(
        5, ge=1, le=1000, description="deliveries after which an entry is tried alone"
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
    shutdown_timeout_sec: float = Field(30.0, gt=0, le=3600, description="time to finish at SIGTERM")

    # MQTT
    mqtt_url: SecretStr | None = Field(
        None,
        description="mqtt://user:password@host:1883 or, with TLS, mqtts://host:8883; "
        "without it no alert is published",
    )
    mqtt_username: SecretStr | None = Field(
        None, description="user at the broker; takes the place of the one in MQTT_URL"
    )
    mqtt_password: SecretStr | None = Field(
        None, description="its password; takes the place of the one in MQTT_URL"
    )
    mqtt_protocol: MqttProtocol = Field(MqttProtocol.V5, description="version of MQTT, 3.1.1 or 5")
    mqtt_client_id: str | None = Field(
        None,
        max_length=200,
        description="client id at the broker, unique; default sluice-alerts- and CONSUMER_NAME",
    )
    mqtt_ca_certificate: Path | None = Field(
        None,
        description="file of the authorities that may vouch for the broker, PEM; default the system's",
    )
    mqtt_certificate: Path | None = Field(
        None, description="file of this client's certificate, PEM, where the broker asks for one"
    )
    mqtt_key: Path | None = Field(
        None, description="file of that certificate's key, PEM, where it is not in the same file"
    )
    alert_topic: str = Field(
        "placebrain/{place_id}/alerts",
        min_length=1,
        max_length=500,
        description="topic of alerts; {place_id}, {device_id}, {sensor_type} and {severity} are put in",
    )

    # What is accepted
    max_future_sec: float = Field(
        3600.0, ge=0, le=3_153_600_000, description="how far a timestamp may lie in the future"
    )
    max_metadata_bytes: int = Field(8192, ge=2, le=1_000_000, description="size of metadata")
    max_entry_bytes: int = Field(
        1_048_576, ge=64, le=536_870_912, description="size of one entry, all fields together"
    )
    max_readings_per_entry: int = Field(1000, ge=1, le=100_000, description="readings in one MQTT message")
    topic_templates: Annotated[tuple[str, ...], NoDecode] = Field(
        (
            "pico/{sensor_type}/{device_id}",
            "placebrain/{place_id}/devices/{device_id}/telemetry",
            "{user_id}/{device_code}/feeds/{feed_key}",
            "sensors/{device_id}/{sensor_type}",
            "devices/{device_id}/telemetry",
        ),
        description="comma-separated; how a topic names device and sensor, first match wins",
    )
    status_templates: Annotated[tuple[str, ...], NoDecode] = Field(
        (
            "placebrain/{place_id}/devices/{device_id}/status",
            "devices/{device_id}/status",
            "{user_id}/{device_code}/status",
        ),
        description="comma-separated; topics on which a device's status comes, tried after those; ,: none",
    )

    # Device events
    device_events: bool = Field(True, description="read the five streams below: rules and deletions")
    threshold_created_stream: str = Field(
        "devices.threshold.created", min_length=1, description="stream of thresholds that were created"
    )
    threshold_updated_stream: str = Field(
        "devices.threshold.updated", min_length=1, description="stream of thresholds that were changed"
    )
    threshold_deleted_stream: str = Field(
        "devices.threshold.deleted", min_length=1, description="stream of thresholds that were deleted"
    )
    device_deleted_stream: str = Field(
        "devices.device.deleted", min_length=1, description="stream of devices that were deleted"
    )
    device_bulk_deleted_stream: str = Field(
        "devices.device.bulk-deleted", min_length=1, description="stream of many devices deleted at once"
    )

    # Registry and rules
    unknown_series: UnknownSeries = Field(
        UnknownSeries.ACCEPT,
        description="accept: a series that is not registered gets registered; reject: it is dead-lettered",
    )
    rules_reload_sec: float = Field(
        60.0, ge=1, le=86_400, description="look for changes of rules that no notification told of"
    )

    # Logs
    log_level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error")
    log_format: LogFormat = Field(LogFormat.JSON, description="json or console")

    @field_validator("log_level", "log_format", "redis_mode", "unknown_series", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("topic_templates", "status_templates", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("topic_templates", "status_templates")
    @classmethod
    def _templates(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for template in value:
            levels = template.split("/")
            if any("{" in level and not re.fullmatch(r"\{[a-z_]+\}", level) for level in levels):
                raise ValueError(f"templates whose names are whole levels; in {template!r} one is not")
            for names in _SAME_PART:
                if sum(levels.count(name) for name in names) > 1:
                    raise ValueError(f"templates with {' or '.join(names)} once; {template!r} has more")
            if not {"{device_id}", "{device_code}"} & set(levels):
                raise ValueError(f"templates with {{device_id}}; {template!r} has none")
        if not value and info.field_name == "topic_templates":
            raise ValueError("at least one template with {device_id}")
        return value

    @field_validator("table_name")
    @classmethod
    def _identifier(cls, value: str) -> str:
        if not _IDENTIFIER.fullmatch(value):
            raise ValueError(
                "a name of letters, digits and underscores, at most 52 long, not starting with a digit"
            )
        if value.lower() in _TAKEN_TABLES:
            raise ValueError(f"another name than those of the tables beside it: {', '.join(_TAKEN_TABLES)}")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr) -> SecretStr:
        scheme, separator, rest = value.get_secret_value().partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise ValueError("an address such as postgresql://user:password@host:5432/database")
        try:
            port = conninfo_to_dict(f"postgresql://{rest}").get("port")
        except ProgrammingError:
            raise ValueError("an address that libpq understands; a part or an option is not one") from None
        if port and not all(part.isdigit() for part in str(port).split(",")):
            raise ValueError("an address whose port is a number")
        return SecretStr(f"postgresql://{rest}")

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("an address that starts with redis://, rediss:// or unix://")
        try:
            if value:
                parse_url(value.get_secret_value())  # type: ignore[no-untyped-call]
        except ValueError:
            raise ValueError("an address whose port, database and options are well formed") from None
        return value

    @field_validator("mqtt_url")
    @classmethod
    def _mqtt_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            parts = urlsplit(value.get_secret_value()) if value else None
            usable = parts is None or (
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

    @field_validator("mqtt_ca_certificate", "mqtt_certificate", "mqtt_key")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value and not value.is_file():
            raise ValueError("the path of a file that is there")
        return value

    @field_validator("alert_topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        literal = value
        for name in _TOPIC_NAMES:
            literal = literal.replace(name, "")
        if not literal.isprintable() or set(literal) & set("+#{}"):
            raise ValueError(f"a topic without wildcards, whose names are of {', '.join(_TOPIC_NAMES)}")
        return value

    @model_validator(mode="after")
    def _mqtt_together(self) -> Self:
        if self.mqtt_key and not self.mqtt_certificate:
            raise ValueError("MQTT_KEY is set without a certificate; set MQTT_CERTIFICATE beside it")
        url = urlsplit(self.mqtt_url.get_secret_value() if self.mqtt_url else "")
        if self.mqtt_password and not (self.mqtt_username or url.username):
            raise ValueError("MQTT_PASSWORD is set without a user; set MQTT_USERNAME beside it")
        if url.scheme == "mqtt" and (self.mqtt_ca_certificate or self.mqtt_certificate):
            raise ValueError(
                "MQTT_URL begins with mqtt://, which is without TLS, but a certificate is set; "
                "write mqtts://, or leave MQTT_CA_CERTIFICATE and MQTT_CERTIFICATE out"
            )
        return self

    @model_validator(mode="after")
    def _dead_letters_apart(self) -> Self:
        if self.dead_letter_stream == self.stream_pattern:
            raise ValueError(
                f"DEAD_LETTER_STREAM and STREAM_PATTERN are both {self.stream_pattern!r};"
                " STREAM_PATTERN takes a glob of the streams to read"
            )
        return self

    @model_validator(mode="after")
    def _events_apart(self) -> Self:
        taken: dict[str, str] = {}
        for field in ("dead_letter_stream", *_EVENT_STREAMS):
            name = getattr(self, field)
            if name in taken:
                raise ValueError(
                    f"{field.upper()} and {taken[name].upper()} are both {name!r};"
                    f" {field.upper()} takes the name of a stream of its own"
                )
            taken[name] = field
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings

    def event_streams(self) -> tuple[str, ...]:
        """The streams of device events: thresholds created, updated and deleted, devices deleted one by
        one and in bulk. None where DEVICE_EVENTS is off.
        """
        return tuple(getattr(self, field) for field in _EVENT_STREAMS) if self.device_events else ()

    def redis_address(self) -> str:
        """The address of Redis as one URL, password included: never log it."""
        if self.redis_url:
            return self.redis_url.get_secret_value()
        user = quote(self.redis_username.get_secret_value(), safe="") if self.redis_username else ""
        password = self.redis_password.get_secret_value() if self.redis_password else ""
        login = f"{user}:{quote(password, safe='')}@" if user or password else ""
        return f"redis://{login}{self.redis_host}:{self.redis_port}/{self.redis_db}"

    def sqlalchemy_url(self) -> str:
        """`DATABASE_URL` in SQLAlchemy's spelling, for Alembic: never log it."""
        return "postgresql+psycopg://" + self.database_url.get_secret_value().partition("://")[2]


def load(**overrides: Any) -> Settings:
    """Read the environment. Raises `ConfigError` with one line for the first thing that is wrong."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    takes = Settings.model_fields[name].description
    if first["type"] == "missing":
        return f"{name.upper()} is not set; it takes {takes}"
    got = "a value that is kept secret" if name in _SECRETS else repr(first["input"])
    hint = "" if takes and takes in message else f" ({takes})"
    return f"{name.upper()} is {got}; it takes {message[0].lower()}{message[1:]}{hint}"
