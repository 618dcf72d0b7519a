"""Settings of whatever stands between a broker and the streams: all but those of database and workers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from health_settings import HealthSettings
from redis_settings import RedisSettings
from setting_sources import SecretFiles
from setting_types import (
    AlertTopic,
    AnyCaseLayout,
    AnyCaseUnmatched,
    AnyCaseWhenFull,
    Layout,
    LogFormat,
    LogLevel,
    MqttAddress,
    MqttProtocol,
    PayloadFormats,
    PlainTopic,
    PresentFile,
    Share,
    SomeTemplates,
    Templates,
    TimeZone,
    TopicFilters,
    Unmatched,
    WhenFull,
)

_EVENT_STREAMS = (
    "threshold_created_stream",
    "threshold_updated_stream",
    "threshold_deleted_stream",
    "device_deleted_stream",
    "device_bulk_deleted_stream",
)


def _default_bridge_name() -> str:
    return f"sluice-bridge-{socket.gethostname()}"


class EdgeSettings(RedisSettings, HealthSettings):
    """Redis, streams, MQTT, the bridge, what is accepted, and logs. Raises: see `config.load`."""

    model_config = SettingsConfigDict(
        env_file=(Path(__file__).parent / ".env", ".env"),
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    # Streams
    stream_pattern: str = Field("mqtt_stream:*", min_length=1, description="streams to read, a glob")
    dead_letter_stream: str = Field(
        "mqtt_stream:failed", min_length=1, description="stream of what could not be stored"
    )
    shutdown_timeout_sec: float = Field(30.0, gt=0, le=3600, description="time to finish at SIGTERM")

    # MQTT
    mqtt_url: MqttAddress | None = Field(
        None,
        description="mqtt://user:password@host:1883 or, with TLS, mqtts://host:8883; "
        "without it no alert is published and no bridge runs",
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
        description="client id of a worker at the broker, unique; default sluice-alerts- and CONSUMER_NAME",
    )
    mqtt_ca_certificate: PresentFile | None = Field(
        None,
        description="file of the authorities that may vouch for the broker, PEM; default the system's",
    )
    mqtt_certificate: PresentFile | None = Field(
        None, description="file of this client's certificate, PEM, where the broker asks for one"
    )
    mqtt_key: PresentFile | None = Field(
        None, description="file of that certificate's key, PEM, where it is not in the same file"
    )
    alert_topic: AlertTopic = Field(
        "placebrain/{place_id}/alerts",
        min_length=1,
        max_length=500,
        description="topic of alerts; {place_id}, {device_id}, {sensor_type} and {severity} are put in",
    )

    # Bridge
    bridge_name: str = Field(
        default_factory=_default_bridge_name,
        min_length=1,
        max_length=200,
        description="client id of a bridge: unique, and the same after a restart; default sluice-bridge- "
        "and the host name",
    )
    bridge_topics: TopicFilters = Field(
        (),
        description="comma-separated topic filters to subscribe to; default: what TOPIC_TEMPLATES and "
        "STATUS_TEMPLATES match",
    )
    bridge_share: Share = Field(
        "",
        max_length=200,
        description="name of a group of bridges that share the load ($share/NAME/…); empty: each bridge "
        "gets everything",
    )
    bridge_session_expiry_sec: int = Field(
        604_800,
        ge=60,
        le=4_294_967_295,
        description="how long the broker keeps what comes while the bridge is away (MQTT 5; with 3.1.1 the "
        "broker decides)",
    )
    bridge_status_topic: PlainTopic = Field(
        "",
        max_length=500,
        description="topic on which the bridge says online and, by its last will, offline; empty: none",
    )
    bridge_layout: AnyCaseLayout = Field(
        Layout.SHARDS,
        description="shards: whole messages over BRIDGE_SHARDS streams by device; series: one a series",
    )
    bridge_shards: int = Field(16, ge=1, le=1024, description="number of shard streams")
    bridge_maxlen: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="cut each stream to about this many entries, read or not: what workers have not read "
        "is lost; 0: never",
    )
    bridge_batch_size: int = Field(500, ge=1, le=10_000, description="most messages sent to Redis at once")
    bridge_batch_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="wait this long for more messages before a batch that is not full is sent, in "
        "milliseconds; 0: send what there is",
    )
    bridge_queue_size: int = Field(
        100_000, ge=1, le=10_000_000, description="most messages that wait for Redis in memory"
    )
    bridge_queue_bytes: int = Field(
        67_108_864, ge=65_536, le=17_179_869_184, description="most bytes of them"
    )
    bridge_when_full: AnyCaseWhenFull = Field(
        WhenFull.STOP,
        description="stop: acknowledge no more, so that the broker keeps them; drop_oldest, drop_newest: "
        "lose messages instead",
    )
    bridge_unmatched: AnyCaseUnmatched = Field(
        Unmatched.COUNT,
        description="messages whose topic no template matches: only counted (count), or handed on, "
        "to be dead-lettered by a worker (dead_letter)",
    )
    bridge_retained: bool = Field(
        False,
        description="take retained messages as readings too: values of some time ago, sent again at every "
        "new subscription",
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
    topic_templates: SomeTemplates = Field(
        (
            "pico/{sensor_type}/{device_id}",
            "placebrain/{place_id}/devices/{device_id}/telemetry",
            "{user_id}/{device_code}/feeds/{feed_key}",
            "sensors/{device_id}/{sensor_type}",
            "devices/{device_id}/telemetry",
            "tele/{device_id}/SENSOR",
            "zigbee2mqtt/{device_id}",
            "{device_id}/events/rpc",
            "application/{owner}/device/{device_id}/event/up",
            "v3/{owner}/devices/{device_id}/up",
            "spBv1.0/{owner}/NDATA/{device_id}",
            "spBv1.0/{owner}/DDATA/{node_id}/{device_id}",
            "spBv1.0/{owner}/NBIRTH/{device_id}",
            "spBv1.0/{owner}/DBIRTH/{node_id}/{device_id}",
        ),
        description="comma-separated; how a topic names device and sensor, first match wins",
    )
    status_templates: Templates = Field(
        (
            "placebrain/{place_id}/devices/{device_id}/status",
            "devices/{device_id}/status",
            "{user_id}/{device_code}/status",
            "tele/{device_id}/LWT",
            "zigbee2mqtt/{device_id}/availability",
            "{device_id}/online",
        ),
        description="comma-separated; topics on which a device's status comes, tried after those; ,: none",
    )
    payload_formats: PayloadFormats = Field(
        (),
        description="comma-separated filter=format: what comes on which topics, first match wins, before "
        "the makers' own topics, which #=auto at the end lifts; what matches none is recognised "
        "(docs/payloads.md)",
    )
    device_timezone: TimeZone | None = Field(
        None,
        description="time zone of devices that send local times without one (Tasmota), such as "
        "Europe/Berlin; without it such times are passed over",
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

    # Logs
    log_level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error")
    log_format: LogFormat = Field(LogFormat.JSON, description="json or console")

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
        return init_settings, env_settings, SecretFiles(settings_cls), dotenv_settings

    def event_streams(self) -> tuple[str, ...]:
        """The streams of device events: thresholds created, updated and deleted, devices deleted one by
        one and in bulk. None where DEVICE_EVENTS is off.
        """
        return tuple(getattr(self, field) for field in _EVENT_STREAMS) if self.device_events else ()
