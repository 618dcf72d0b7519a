"""From `Settings` to the plain values that each part takes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from zoneinfo import ZoneInfo

from config import ConfigError, Settings
from dashboard.options import DashboardOptions, PipelineOptions
from db_writer import WriterOptions
from edge_settings import EdgeSettings
from flood import FloodOptions
from health.notify import Notifier
from health.vitals import HealthOptions, Vitals
from mqtt.alerts import AlertPublisher, PublisherOptions
from mqtt.bridge import BridgeOptions
from mqtt.filters import filters_of
from mqtt.intake import Bounds
from mqtt.layout import shard_names
from mqtt.options import MqttOptions, Session, Will
from parse import Limits
from query.options import QueryOptions, Tls, is_loopback
from reader_parts import ReaderOptions
from readiness import Check, database_check, redis_check
from redis_scripts import Keys
from schema import EventKind, PayloadFormat
from serving import reread_logs
from setting_types import MqttProtocol, UnknownSeries, Unmatched
from signs import Signs
from stream_glob import compiled

# What the streams of `Settings.event_streams` hold, in their order.
_EVENT_KINDS = (
    EventKind.THRESHOLD_CREATED,
    EventKind.THRESHOLD_UPDATED,
    EventKind.THRESHOLD_DELETED,
    EventKind.DEVICE_DELETED,
    EventKind.DEVICE_DELETED,
)


def limits(settings: EdgeSettings) -> Limits:
    formats = (entry.rpartition("=") for entry in settings.payload_formats)
    return Limits(
        stream_pattern=settings.stream_pattern,
        topic_templates=settings.topic_templates,
        status_templates=settings.status_templates,
        payload_formats=tuple((wanted, PayloadFormat(form)) for wanted, _, form in formats),
        zone=ZoneInfo(settings.device_timezone) if settings.device_timezone else None,
        event_streams=tuple(zip(settings.event_streams(), _EVENT_KINDS, strict=False)),
        max_future_sec=settings.max_future_sec,
        max_metadata_bytes=settings.max_metadata_bytes,
        max_entry_bytes=settings.max_entry_bytes,
        max_readings_per_entry=settings.max_readings_per_entry,
    )


def reader_options(settings: Settings, *, sample: bool = False) -> ReaderOptions:
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
        dead_letter_retention_sec=86_400 * settings.dead_letter_retention_days,
        quiet_poll_sec=settings.quiet_poll_sec,
        share_above_streams=settings.share_above_streams,
        # a worker that pauses between batches lives
        worker_timeout_sec=settings.worker_timeout_sec + settings.processing_interval_sec,
        named_streams=settings.event_streams(),
        sample=sample,
    )


def writer_options(settings: Settings) -> WriterOptions:
    return WriterOptions(
        url=settings.database_url.get_secret_value(),
        direct_url=settings.direct_url(),
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


def flood_options(settings: Settings) -> FloodOptions:
    key = Keys(settings.consumer_group_name).flood_accepted
    return FloodOptions(
        count=settings.dead_letter_flood_count,
        share=settings.dead_letter_flood_share,
        remedy="mend the cause and restart the workers; or let the dead letters through for an hour: "
        f"redis-cli SET {key} yes EX 3600",
    )


def mqtt_options(settings: EdgeSettings, client_id: str) -> MqttOptions:
    """How to reach the broker. Raises: `ConfigError` where none is set."""
    if not settings.mqtt_url:
        raise ConfigError("MQTT_URL is not set; it takes an address such as mqtt://user:password@host:1883")
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


def bridge_options(settings: EdgeSettings) -> BridgeOptions:
    """Raises: `ConfigError` where no broker is set, or workers would not read what a bridge writes."""
    mqtt = mqtt_options(settings, settings.bridge_name)
    read = compiled(settings.stream_pattern)
    for name in shard_names(limits(settings), settings.bridge_shards):
        if not read.fullmatch(name) or name in (settings.dead_letter_stream, *settings.event_streams()):
            raise ConfigError(
                f"STREAM_PATTERN is {settings.stream_pattern!r}, by which no worker reads {name!r}, where "
                "a bridge puts messages; it takes a pattern such as 'mqtt_stream:*'"
            )
    topic = settings.bridge_status_topic
    return BridgeOptions(
        redis=settings.redis_servers(),
        mqtt=replace(
            mqtt,
            session=Session(
                expiry_sec=settings.bridge_session_expiry_sec,
                receive_maximum=min(65_535, settings.bridge_queue_size),
            ),
            will=Will(topic=topic, payload=b"offline") if topic else None,
            refused_remedy="check BRIDGE_STATUS_TOPIC and what the broker allows this user",
        ),
        filters=settings.bridge_topics
        or filters_of((*settings.topic_templates, *settings.status_templates)),
        filters_chosen=bool(settings.bridge_topics),
        limits=limits(settings),
        bounds=Bounds(
            count=settings.bridge_queue_size,
            size=settings.bridge_queue_bytes,
            when_full=settings.bridge_when_full,
        ),
        share=settings.bridge_share,
        layout=settings.bridge_layout,
        shards=settings.bridge_shards,
        maxlen=settings.bridge_maxlen,
        batch_size=settings.bridge_batch_size,
        linger_sec=settings.bridge_batch_ms / 1000,
        hand_on_unmatched=settings.bridge_unmatched is Unmatched.DEAD_LETTER,
        take_retained=settings.bridge_retained,
        status_topic=topic,
        reserved=(settings.dead_letter_stream, *settings.event_streams()),
        shutdown_sec=settings.shutdown_timeout_sec,
        stuck_sec=settings.health_stuck_sec,
    )


def checks(settings: Settings) -> tuple[Check, ...]:
    """What a worker needs of its servers."""
    table, timescale = settings.table_name, settings.enable_timescale
    url = settings.database_url.get_secret_value()
    return redis_check(settings.redis_servers()), database_check(url, table, enable_timescale=timescale)


def vitals(
    settings: EdgeSettings,
    role: str,
    signs: Signs,
    environment: Mapping[str, str],
    load: Callable[[], EdgeSettings],
) -> Vitals:
    """What tells of a process. `load` reads the settings again, at a reload."""

    def reload() -> None:
        signs.reload()
        reread_logs(load)

    options = HealthOptions(
        host=settings.health_host,
        port=settings.health_port,
        shutdown_sec=settings.shutdown_timeout_sec,
    )
    return Vitals(options, role, replace(signs, reload=reload), Notifier(environment))


def publisher_of(settings: Settings) -> AlertPublisher | None:
    """The publisher of alerts, or None where no broker is set. Raises `ConfigError`."""
    if not settings.mqtt_url:
        return None
    mqtt = mqtt_options(settings, settings.mqtt_client_id or f"sluice-alerts-{settings.consumer_name}")
    options = PublisherOptions(
        database_url=settings.database_url.get_secret_value(),
        mqtt=mqtt,
        topic=settings.alert_topic,
        holder=f"{settings.consumer_name} {uuid.uuid4()}",
        timeout_sec=settings.db_timeout_sec,
    )
    return AlertPublisher(options)


def query_options(settings: Settings) -> QueryOptions:
    """Raises: `ConfigError` where anybody who reaches the port could ask."""
    token, delete_token = settings.query_token, settings.query_delete_token
    if not is_loopback(settings.query_host) and not (token or settings.query_client_ca):
        raise ConfigError(
            f"QUERY_HOST is {settings.query_host!r}, which others reach, and nothing says who may call;"
            " set QUERY_TOKEN, or QUERY_CERTIFICATE, QUERY_KEY and QUERY_CLIENT_CA, or listen at 127.0.0.1"
        )
    tls = None
    if settings.query_certificate and settings.query_key:
        tls = Tls(
            certificate=settings.query_certificate,
            key=settings.query_key,
            client_ca=settings.query_client_ca,
        )
    return QueryOptions(
        database_url=settings.database_url.get_secret_value(),
        direct_url=settings.direct_url(),
        table=settings.table_name,
        enable_timescale=settings.enable_timescale,
        host=settings.query_host,
        port=settings.query_port,
        workers=settings.query_workers,
        most_streams=settings.query_streams,
        timeout_sec=settings.query_timeout_sec,
        shutdown_sec=settings.shutdown_timeout_sec,
        stuck_sec=settings.health_stuck_sec,
        tls=tls,
        token=token.get_secret_value() if token else None,
        delete_token=delete_token.get_secret_value() if delete_token else None,
        publish_alerts=settings.mqtt_url is not None,
    )


def dashboard_options(settings: Settings) -> DashboardOptions:
    """Raises: `ConfigError` where anybody who reaches the page could look, and resolve alerts."""
    password, token = settings.dashboard_password, settings.dashboard_token
    if not (password or token):
        remedy = "set DASHBOARD_PASSWORD or DASHBOARD_TOKEN"
        if not is_loopback(settings.dashboard_host):
            raise ConfigError(
                f"DASHBOARD_HOST is {settings.dashboard_host!r}, which others reach, and nothing says who"
                f" may look; {remedy}, or listen at 127.0.0.1"
            )
        if settings.dashboard_allowed_hosts:
            raise ConfigError(
                f"DASHBOARD_ALLOWED_HOSTS is {','.join(settings.dashboard_allowed_hosts)!r}, so others"
                f" reach the page through a proxy, and nothing says who may look; {remedy}"
            )
    tls = None
    if settings.dashboard_certificate and settings.dashboard_key:
        tls = Tls(certificate=settings.dashboard_certificate, key=settings.dashboard_key)
    return DashboardOptions(
        database_url=settings.database_url.get_secret_value(),
        direct_url=settings.direct_url(),
        table=settings.table_name,
        enable_timescale=settings.enable_timescale,
        host=settings.dashboard_host,
        port=settings.dashboard_port,
        clients=settings.dashboard_clients,
        timeout_sec=settings.dashboard_timeout_sec,
        shutdown_sec=settings.shutdown_timeout_sec,
        stuck_sec=settings.health_stuck_sec,
        pipeline=PipelineOptions(
            redis=settings.redis_servers(),
            group=settings.consumer_group_name,
            pattern=settings.stream_pattern,
            dead_letter_stream=settings.dead_letter_stream,
            named=settings.event_streams(),
        ),
        tls=tls,
        password=password.get_secret_value() if password else None,
        token=token.get_secret_value() if token else None,
        allowed_hosts=settings.dashboard_allowed_hosts,
        publish_alerts=settings.mqtt_url is not None,
    )
