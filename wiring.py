"""From `Settings` to the plain values that each part takes."""

from __future__ import annotations

import uuid

from config import MqttProtocol, Settings, UnknownSeries
from db_writer import WriterOptions
from mqtt.alerts import AlertPublisher, PublisherOptions
from mqtt.client import MqttOptions
from parse import Limits
from redis_reader import ReaderOptions
from schema import EventKind

# What the streams of `Settings.event_streams` hold, in their order.
_EVENT_KINDS = (
    EventKind.THRESHOLD_CREATED,
    EventKind.THRESHOLD_UPDATED,
    EventKind.THRESHOLD_DELETED,
    EventKind.DEVICE_DELETED,
    EventKind.DEVICE_DELETED,
)


def limits(settings: Settings) -> Limits:
    return Limits(
        stream_pattern=settings.stream_pattern,
        topic_templates=settings.topic_templates,
        status_templates=settings.status_templates,
        event_streams=tuple(zip(settings.event_streams(), _EVENT_KINDS, strict=False)),
        max_future_sec=settings.max_future_sec,
        max_metadata_bytes=settings.max_metadata_bytes,
        max_entry_bytes=settings.max_entry_bytes,
        max_readings_per_entry=settings.max_readings_per_entry,
    )


def reader_options(settings: Settings) -> ReaderOptions:
    return ReaderOptions(
        group=settings.consumer_group_name,
        consumer=settings.consumer_name,
        pattern=settings.stream_pattern,
        dead_letter_stream=settings.dead_letter_stream,
        batch_size=settings.batch_size,
        block_sec=settings.batch_timeout_sec,
        claim_min_idle_sec=settings.claim_min_idle_sec,
        discovery_interval_sec=settings.discovery_interval_sec,
        max_deliveries=settings.max_deliveries,
        stream_retention_sec=settings.stream_retention_sec,
        named_streams=settings.event_streams(),
    )


def writer_options(settings: Settings) -> WriterOptions:
    return WriterOptions(
        url=settings.database_url.get_secret_value(),
        table=settings.table_name,
        enable_timescale=settings.enable_timescale,
        batch_size=settings.batch_size,
        timeout_sec=settings.db_timeout_sec,
        retention_days=settings.retention_days,
        partitions_ahead_days=settings.partitions_ahead_days,
        accept_unknown_series=settings.unknown_series is UnknownSeries.ACCEPT,
        rules_reload_sec=settings.rules_reload_sec,
        publish_alerts=settings.mqtt_url is not None,
        holder=f"{settings.consumer_name}:{uuid.uuid4()}",
    )


def mqtt_options(settings: Settings, client_id: str) -> MqttOptions | None:
    """How to reach the broker as a client of this name, or None where no broker is set."""
    if not settings.mqtt_url:
        return None
    username, password = settings.mqtt_username, settings.mqtt_password
    return MqttOptions(
        url=settings.mqtt_url.get_secret_value(),
        client_id=client_id,
        username=username.get_secret_value() if username else None,
        password=password.get_secret_value() if password else None,
        version_5=settings.mqtt_protocol is MqttProtocol.V5,
        ca_certificate=settings.mqtt_ca_certificate,
        certificate=settings.mqtt_certificate,
        key=settings.mqtt_key,
    )


def publisher_of(settings: Settings) -> AlertPublisher | None:
    """The publisher of alerts, or None where no broker is set. Raises `ConfigError`."""
    client_id = settings.mqtt_client_id or f"sluice-alerts-{settings.consumer_name}"
    mqtt = mqtt_options(settings, client_id)
    if mqtt is None:
        return None
    options = PublisherOptions(
        database_url=settings.database_url.get_secret_value(),
        mqtt=mqtt,
        topic=settings.alert_topic,
        holder=f"{settings.consumer_name} {uuid.uuid4()}",
        timeout_sec=settings.db_timeout_sec,
    )
    return AlertPublisher(options)
