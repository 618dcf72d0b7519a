"""Settings: one line for what is wrong, no secret anywhere, and documentation that keeps up."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from redis.connection import parse_url

import config
import wiring
from config import ConfigError, Settings
from mqtt.filters import filters_of
from mqtt.intake import Bounds
from mqtt.options import Session, Will
from redis_servers import RedisMode, RedisServers
from setting_types import Layout, WhenFull

ROOT = Path(__file__).resolve().parent.parent.parent
URL = "postgresql://me:hunter2@db.example:5432/iot"
DOCUMENTED = re.compile(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", re.MULTILINE)


WRONG_FOR_A_BRIDGE = [
    ("BRIDGE_NAME", "x" * 201, "at most 200"),
    ("BRIDGE_TOPICS", "a,b#", "# the last one; 'b#' is none"),
    ("BRIDGE_TOPICS", "a/#/b", "'a/#/b' is none"),
    ("BRIDGE_TOPICS", "a+/b", "whole levels"),
    ("BRIDGE_TOPICS", "$share/g/a", "BRIDGE_SHARE"),
    ("BRIDGE_TOPICS", "x" * 65_001, "topic filters"),
    ("BRIDGE_SHARE", "a/b", "a name without /, + and #"),
    ("BRIDGE_SHARE", "a+", "a name without /, + and #"),
    ("BRIDGE_SHARE", "#", "a name without /, + and #"),
    ("BRIDGE_SHARE", "x" * 201, "at most 200"),
    ("BRIDGE_SESSION_EXPIRY_SEC", "59", "greater than or equal to 60"),
    ("BRIDGE_SESSION_EXPIRY_SEC", "4294967296", "less than or equal to 4294967295"),
    ("BRIDGE_SESSION_EXPIRY_SEC", "a week", "valid integer"),
    ("BRIDGE_STATUS_TOPIC", "bridges/+", "without wildcards"),
    ("BRIDGE_STATUS_TOPIC", "bridges\tx", "without wildcards"),
    ("BRIDGE_STATUS_TOPIC", "x" * 501, "at most 500"),
    ("BRIDGE_LAYOUT", "device", "'shards' or 'series'"),
    ("BRIDGE_SHARDS", "0", "greater than or equal to 1"),
    ("BRIDGE_SHARDS", "1025", "less than or equal to 1024"),
    ("BRIDGE_MAXLEN", "-1", "greater than or equal to 0"),
    ("BRIDGE_MAXLEN", "1e6", "valid integer"),
    ("BRIDGE_BATCH_SIZE", "0", "greater than or equal to 1"),
    ("BRIDGE_BATCH_SIZE", "10001", "less than or equal to 10000"),
    ("BRIDGE_BATCH_MS", "-1", "greater than or equal to 0"),
    ("BRIDGE_BATCH_MS", "1001", "less than or equal to 1000"),
    ("BRIDGE_BATCH_MS", "nan", "finite number"),
    ("BRIDGE_QUEUE_SIZE", "0", "greater than or equal to 1"),
    ("BRIDGE_QUEUE_SIZE", "10000001", "less than or equal to 10000000"),
    ("BRIDGE_QUEUE_BYTES", "65535", "greater than or equal to 65536"),
    ("BRIDGE_QUEUE_BYTES", "64MB", "valid integer"),
    ("BRIDGE_WHEN_FULL", "drop", "'stop', 'drop_oldest' or 'drop_newest'"),
    ("BRIDGE_UNMATCHED", "drop", "'count' or 'dead_letter'"),
    ("BRIDGE_RETAINED", "perhaps", "boolean"),
    ("MQTT_PROTOCOL", "3", "'3.1.1' or '5'"),
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting from outside, and a folder without `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        config.load()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("BATCH_SIZE", "many", "valid integer"),
        ("BATCH_SIZE", "0", "greater than or equal to 1"),
        ("REDIS_PORT", "70000", "less than or equal to 65535"),
        ("REDIS_MODE", "replica", "'single', 'sentinel' or 'cluster'"),
        ("REDIS_SENTINELS", "a b:26379", "hosts with their ports"),
        ("REDIS_SENTINELS", "a:70000", "hosts with their ports"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'json' or 'console'"),
        ("ENABLE_TIMESCALE", "maybe", "boolean"),
        ("TABLE_NAME", 'r"; drop table x; --', "letters, digits and underscores"),
        ("TABLE_NAME", "1st", "letters, digits and underscores"),
        ("TABLE_NAME", "x" * 60, "at most 52 long"),
        ("TABLE_NAME", "alembic_version", "another name than those of the tables beside it"),
        ("TOPIC_TEMPLATES", "a/{sensor_type}", "{device_id}"),
        ("CLAIM_MIN_IDLE_SEC", "-1", "greater than or equal to"),
        ("MAX_FUTURE_SEC", "soon", "number"),
        ("MAX_FUTURE_SEC", "inf", "finite number"),
        ("TOPIC_TEMPLATES", "dev-{device_id}/t", "whole levels"),
        ("TOPIC_TEMPLATES", "{device_id}/{device_code}", "once"),
        ("TOPIC_TEMPLATES", "{device_id}/{device_id}", "once"),
        ("TOPIC_TEMPLATES", "{sensor_type}/{device_id}/{feed_key}", "once"),
        ("TOPIC_TEMPLATES", "{user_id}/{place_id}/{device_id}", "once"),
        ("TOPIC_TEMPLATES", ",", "{device_id}"),
        ("TOPIC_TEMPLATES", "{node_id}/{node_id}/{device_id}", "once"),
        ("PAYLOAD_FORMATS", "tele/+/SENSOR", "filter=format"),
        ("PAYLOAD_FORMATS", "=tasmota", "filter=format"),
        ("PAYLOAD_FORMATS", "a/#/b=tasmota", "topic filters"),
        ("PAYLOAD_FORMATS", "a/b+=tasmota", "topic filters"),
        ("PAYLOAD_FORMATS", "a/#=modbus", "sparkplug_b"),
        ("DEVICE_TIMEZONE", "Mars/Olympus", "time zone"),
        ("DEVICE_TIMEZONE", "../etc/passwd", "time zone"),
        ("DEVICE_TIMEZONE", "Europe", "time zone"),
        ("STATUS_TEMPLATES", "a/status", "{device_id}"),
        ("STATUS_TEMPLATES", "dev-{device_id}/status", "whole levels"),
        ("DEVICE_EVENTS", "perhaps", "boolean"),
        ("MAX_FUTURE_SEC", "nan", "number"),
        ("MAX_FUTURE_SEC", "1e15", "less than or equal to"),
        ("CLAIM_MIN_IDLE_SEC", "1e300", "less than or equal to"),
        ("STREAM_RETENTION_SEC", "9" * 30, "less than or equal to"),
        ("REDIS_DB", "-1", "greater than or equal to 0"),
        ("BATCH_TIMEOUT_SEC", "0", "greater than 0"),
        ("HEALTH_PORT", "70000", "less than or equal to 65535"),
        ("HEALTH_STUCK_SEC", "0", "greater than or equal to 1"),
        ("BATCH_SIZE", "1.5", "valid integer"),
        ("CONSUMER_NAME", "x" * 201, "at most 200"),
        ("MQTT_PROTOCOL", "4", "'3.1.1' or '5'"),
        ("MQTT_CA_CERTIFICATE", "/nowhere/ca.pem", "the path of a file that is there"),
        ("MQTT_CERTIFICATE", "/", "the path of a file that is there"),
        ("MQTT_CLIENT_ID", "x" * 201, "at most 200"),
        ("ALERT_TOPIC", "alerts/#", "without wildcards"),
        ("ALERT_TOPIC", "alerts/{place}", "{place_id}"),
        ("ALERT_TOPIC", "alerts/{place_id", "{place_id}"),
        ("ALERT_TOPIC", "alerts\tx", "without wildcards"),
        ("ALERT_TOPIC", "x" * 501, "at most 500"),
        ("TOPIC_TEMPLATES", "a/#/{device_id}", "in place of + and #"),
        ("STATUS_TEMPLATES", "+/{device_id}/status", "in place of + and #"),
        *WRONG_FOR_A_BRIDGE,
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_name_value_and_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, takes: str
) -> None:
    message = refusal(monkeypatch, DATABASE_URL=URL, **{name: value})
    assert "\n" not in message
    assert message.startswith(f"{name} is {value!r}; it takes ")
    assert takes in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://me:hunter2@db/x"),
        ("DATABASE_URL", "postgresql://me:hunter2@db:port/x"),
        ("DATABASE_URL", "postgresql://me:hunter2@db/x?fast=yes"),
        ("REDIS_URL", "http://:hunter2@r"),
        ("REDIS_URL", "redis://:hunter2@r:port/0"),
        ("MQTT_URL", "tcp://me:hunter2@b:1883"),
        ("MQTT_URL", "mqtt://me:hunter2@"),
        ("MQTT_URL", "mqtt://me:hunter2@b:port"),
        ("MQTT_URL", "mqtt://me:hunter2@b:0"),
        ("MQTT_URL", "mqtt://me:hunter2@b..c"),
        ("MQTT_URL", "mqtt://me:hunter2@b/topic"),
        ("MQTT_URL", "mqtt://me:hunter2@b?x=1"),
    ],
)
def test_a_wrong_secret_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    message = refusal(monkeypatch, **{"DATABASE_URL": URL, name: value})
    assert message.startswith(f"{name} is a value that is kept secret; it takes an address")
    assert "hunter2" not in message


def test_a_missing_database_url_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch) == (
        "DATABASE_URL is not set; it takes postgresql://user:password@host:5432/database"
    )


def test_the_dead_letter_stream_cannot_be_the_only_stream_read(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, DATABASE_URL=URL, STREAM_PATTERN="a", DEAD_LETTER_STREAM="a")
    assert "DEAD_LETTER_STREAM and STREAM_PATTERN" in message
    assert "'a'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "variables"),
    [
        ({"MQTT_KEY": "."}, ("MQTT_KEY", "MQTT_CERTIFICATE")),
        ({"MQTT_URL": "mqtts://b", "MQTT_PASSWORD": "hunter2"}, ("MQTT_PASSWORD", "MQTT_USERNAME")),
        ({"MQTT_URL": "mqtt://b", "MQTT_CA_CERTIFICATE": "."}, ("MQTT_URL", "mqtts://")),
        ({"REDIS_URL": "rediss://b", "REDIS_KEY": "."}, ("REDIS_KEY", "REDIS_CERTIFICATE")),
        ({"REDIS_URL": "redis://u:hunter2@b", "REDIS_CA_CERTIFICATE": "."}, ("REDIS_URL", "rediss://")),
        ({"REDIS_URL": "unix:///b", "REDIS_CERTIFICATE": "."}, ("REDIS_URL", "rediss://")),
        ({"REDIS_CA_CERTIFICATE": "."}, ("REDIS_TLS", "REDIS_TLS=true")),
    ],
)
def test_settings_of_connections_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[str, str], variables: tuple[str, str]
) -> None:
    (tmp_path / "file.pem").write_text("")
    made = {name: value.replace(".", str(tmp_path / "file.pem")) for name, value in values.items()}
    message = refusal(monkeypatch, DATABASE_URL=URL, **made)
    assert all(variable in message for variable in variables)
    assert "hunter2" not in message
    assert "\n" not in message


def test_certificates_are_part_of_the_address_of_redis(tmp_path: Path) -> None:
    file = tmp_path / "a & b.pem"
    file.write_text("")
    made = config.load(
        database_url=URL, redis_host="r", redis_tls=True, redis_ca_certificate=file, redis_certificate=file
    )
    options: dict[str, object] = parse_url(made.redis_address())  # type: ignore[no-untyped-call]
    assert made.redis_address().startswith("rediss://r:6379/0?")
    assert (options["ssl_ca_certs"], options["ssl_certfile"]) == (str(file), str(file))
    given = config.load(database_url=URL, redis_url="rediss://r/0?client_name=x", redis_ca_certificate=file)
    assert given.redis_address().startswith("rediss://r/0?client_name=x&ssl_ca_certs=")


@pytest.mark.parametrize("url", ["mqtt://b", "mqtts://me:p%40ss@b.example:8883", "mqtt://[::1]:1883/"])
def test_addresses_of_brokers_are_taken(url: str) -> None:
    settings = config.load(database_url=URL, mqtt_url=url)
    assert settings.mqtt_url
    assert settings.mqtt_url.get_secret_value() == url


EVENT_STREAMS = {
    "THRESHOLD_CREATED_STREAM": "devices.threshold.created",
    "THRESHOLD_UPDATED_STREAM": "devices.threshold.updated",
    "THRESHOLD_DELETED_STREAM": "devices.threshold.deleted",
    "DEVICE_DELETED_STREAM": "devices.device.deleted",
    "DEVICE_BULK_DELETED_STREAM": "devices.device.bulk-deleted",
}


@pytest.mark.parametrize("name", EVENT_STREAMS)
def test_an_event_stream_is_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    taken = {other: default for other, default in EVENT_STREAMS.items() if other != name}
    for other, default in {**taken, "DEAD_LETTER_STREAM": "mqtt_stream:failed"}.items():
        message = refusal(monkeypatch, **{name: default})
        assert "\n" not in message
        assert name in message
        assert other in message
        assert repr(default) in message


def test_the_event_streams_are_those_of_the_settings_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load(database_url=URL).event_streams() == tuple(EVENT_STREAMS.values())
    monkeypatch.setenv("THRESHOLD_DELETED_STREAM", "gone")
    assert config.load(database_url=URL).event_streams()[2] == "gone"
    monkeypatch.setenv("DEVICE_EVENTS", "false")
    assert config.load(database_url=URL).event_streams() == ()


def test_statuses_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATUS_TEMPLATES", ",")
    assert config.load(database_url=URL).status_templates == ()


@pytest.mark.parametrize(
    "name",
    [
        "DATABASE_URL",
        "REDIS_URL",
        "REDIS_USERNAME",
        "REDIS_PASSWORD",
        "MQTT_URL",
        "MQTT_USERNAME",
        "MQTT_PASSWORD",
        "QUERY_TOKEN",
        "QUERY_DELETE_TOKEN",
    ],
)
def test_every_secret_may_come_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    addresses = {"DATABASE_URL": URL, "REDIS_URL": "redis://:hunter2@r/0", "MQTT_URL": "mqtt://u:p@b"}
    value = addresses.get(name, "hunter2-hunter2-hunter2")
    monkeypatch.setenv("MQTT_USERNAME", "me")
    secret = tmp_path / "secret"
    secret.write_text(f"{value}\n")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{name}_FILE", str(secret))
    assert getattr(config.load(), name.lower()).get_secret_value() == value


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, DATABASE_URL_FILE="/nowhere/secret")
    assert message.startswith("DATABASE_URL_FILE is '/nowhere/secret', which cannot be read (")


def test_the_environment_wins_over_a_dot_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nBATCH_SIZE=7\nTABLE_NAME=mine\n")
    monkeypatch.setenv("BATCH_SIZE", "8")
    settings = config.load()
    assert (settings.batch_size, settings.table_name) == (8, "mine")


def test_a_wrong_value_says_which_file_it_is_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("mysql://me:hunter2@db.example/iot")
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
        with pytest.raises(ConfigError, match=r"^DATABASE_URL is .* \(from DATABASE_URL_FILE\); it takes "):
            config.load()
    (tmp_path / ".env").write_text("BATCH_SIZE=none\nBRIDGE_SHARDS=0\n")
    monkeypatch.setenv("DATABASE_URL", URL)
    where = re.escape(str(tmp_path / ".env"))
    with pytest.raises(ConfigError, match=rf"^BRIDGE_SHARDS is '0' \(from {where}\); it takes "):
        config.load_edge()
    monkeypatch.setenv("BRIDGE_SHARDS", "4")
    with pytest.raises(ConfigError, match=rf"^BATCH_SIZE is 'none' \(from {where}\); it takes "):
        config.load()


def test_all_wrong_settings_are_told_at_once_each_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH_SIZE": "none", "REDIS_PORT": "hunter", "LOG_LEVEL": "loud"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigError) as found:
        config.load()
    lines = found.value.told("sluice").splitlines()
    begins = (
        "DATABASE_URL is not set;",
        "REDIS_PORT is 'hunter';",
        "LOG_LEVEL is 'loud';",
        "BATCH_SIZE is 'none';",
    )
    for line, begin in zip(lines, begins, strict=True):
        assert line.startswith(f"sluice: {begin} it takes ")
    assert str(found.value) == "; ".join(line.removeprefix("sluice: ") for line in lines)


def test_no_secret_shows_in_the_representation_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_PASSWORD", "REDIS_USERNAME", "MQTT_PASSWORD", "MQTT_USERNAME", "QUERY_TOKEN"):
        monkeypatch.setenv(name, "hunter2-hunter2-hunter2")
    monkeypatch.setenv("MQTT_URL", "mqtt://me:hunter2@b")
    monkeypatch.setenv("DATABASE_URL", URL)
    assert "hunter2" not in repr(config.load()) + str(config.load())


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({}, "redis://localhost:6379/0"),
        ({"REDIS_PASSWORD": "p@ss/1"}, "redis://:p%40ss%2F1@localhost:6379/0"),
        ({"REDIS_USERNAME": "u", "REDIS_PASSWORD": "p", "REDIS_DB": "3"}, "redis://u:p@localhost:6379/3"),
        ({"REDIS_URL": "unix:///run/redis.sock", "REDIS_HOST": "ignored"}, "unix:///run/redis.sock"),
    ],
)
def test_the_parts_of_the_redis_address_come_together(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], address: str
) -> None:
    for name, value in {"DATABASE_URL": URL, **values}.items():
        monkeypatch.setenv(name, value)
    assert config.load().redis_address() == address


def test_the_sentinels_and_their_login_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "DATABASE_URL": URL,
        "REDIS_MODE": "sentinel",
        "REDIS_SENTINELS": "a, b:26380,[::1]:26381",
        "REDIS_SENTINEL_PASSWORD": "hunter2",
        "REDIS_PASSWORD": "hunter3",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = config.load().redis_servers()
    assert found == RedisServers(
        url="redis://:hunter3@localhost:6379/0",
        mode=RedisMode.SENTINEL,
        nodes=(("a", 26379), ("b", 26380), ("::1", 26381)),
        master="mymaster",
        sentinel_password="hunter2",
    )
    assert "hunter" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("REDIS_MODE", "sentinel", "REDIS_SENTINELS is not set; it takes host:26379"),
        ("REDIS_SENTINELS", "a:26379", "set REDIS_MODE=sentinel"),
        ("REDIS_CLUSTER_NODES", "a:6379", "set REDIS_MODE=cluster"),
    ],
)
def test_servers_of_another_mode_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    message = refusal(monkeypatch, DATABASE_URL=URL, **{name: value})
    assert message.startswith(name)
    assert remedy in message


def test_a_cluster_has_one_database_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("REDIS_MODE", "cluster")
    monkeypatch.setenv("REDIS_CLUSTER_NODES", "a,b:7001")
    assert config.load().redis_servers().nodes == (("a", 6379), ("b", 7001))
    assert "REDIS_DB takes 0" in refusal(monkeypatch, REDIS_DB="3")
    assert "redis://" in refusal(monkeypatch, REDIS_URL="unix:///run/redis.sock")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_spellings_of_the_database_address_mean_the_same(scheme: str) -> None:
    settings = config.load(database_url=f"{scheme}://h/d")
    assert settings.database_url.get_secret_value() == "postgresql://h/d"


def test_env_example_and_settings_name_the_same_settings() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert [name for name, _ in DOCUMENTED.findall(text)] == [
        name.upper() for name in Settings.model_fields
    ]


def test_env_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    before = config.load(database_url=URL, consumer_name="x")
    for name, value in DOCUMENTED.findall(text):
        if value and name not in ("DATABASE_URL", "CONSUMER_NAME"):
            monkeypatch.setenv(name, value)
    assert config.load(database_url=URL, consumer_name="x") == before


def test_env_example_explains_every_setting() -> None:
    text = " ".join((ROOT / ".env.example").read_text(encoding="utf-8").replace("\n# ", " ").split())
    for name, field in Settings.model_fields.items():
        assert field.description
        assert " ".join(field.description.split()) in text, name


@pytest.mark.parametrize(("name", "value", "takes"), WRONG_FOR_A_BRIDGE)
def test_a_bridge_refuses_a_wrong_value_in_one_line_without_asking_for_a_database(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, takes: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        config.load_edge()
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}; it takes ")
    assert takes in message
    assert "\n" not in message


def test_a_bridge_without_a_broker_says_what_to_set() -> None:
    with pytest.raises(ConfigError) as caught:
        wiring.bridge_options(config.load_edge())
    assert str(caught.value) == (
        "MQTT_URL is not set; it takes an address such as mqtt://user:password@host:1883"
    )


def test_the_settings_of_a_bridge_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MQTT_URL": "mqtt://u:hunter2@b",
        "MQTT_PROTOCOL": "3.1.1",
        "REDIS_URL": "redis://:hunter2@r/0",
        "BRIDGE_NAME": "east",
        "BRIDGE_TOPICS": "a/#, b/+",
        "BRIDGE_SHARE": "all",
        "BRIDGE_SESSION_EXPIRY_SEC": "3600",
        "BRIDGE_STATUS_TOPIC": "bridges/east",
        "BRIDGE_LAYOUT": "Series",
        "BRIDGE_SHARDS": "4",
        "BRIDGE_MAXLEN": "1000",
        "BRIDGE_BATCH_SIZE": "50",
        "BRIDGE_BATCH_MS": "5",
        "BRIDGE_QUEUE_SIZE": "70000",
        "BRIDGE_QUEUE_BYTES": "100000",
        "BRIDGE_WHEN_FULL": "drop_newest",
        "BRIDGE_UNMATCHED": "dead_letter",
        "BRIDGE_RETAINED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    options = wiring.bridge_options(config.load_edge())
    assert (options.mqtt.client_id, options.mqtt.version_5) == ("east", False)
    assert options.mqtt.session == Session(expiry_sec=3600, receive_maximum=65_535)
    assert options.mqtt.will == Will(topic="bridges/east", payload=b"offline")
    assert (options.filters, options.share) == (("a/#", "b/+"), "all")
    assert (options.layout, options.shards, options.maxlen) == (Layout.SERIES, 4, 1000)
    assert (options.batch_size, options.linger_sec) == (50, 0.005)
    assert options.bounds == Bounds(count=70_000, size=100_000, when_full=WhenFull.DROP_NEWEST)
    assert options.hand_on_unmatched
    assert options.take_retained
    assert options.status_topic == "bridges/east"
    assert options.reserved == ("mqtt_stream:failed", *EVENT_STREAMS.values())
    assert "hunter2" not in repr(options)


def test_a_bridge_keeps_its_name_over_a_restart_and_subscribes_to_what_the_templates_match() -> None:
    settings = config.load_edge(mqtt_url="mqtt://b", bridge_queue_size=10)
    options = wiring.bridge_options(settings)
    assert options.mqtt.client_id == f"sluice-bridge-{socket.gethostname()}"
    assert options.filters == filters_of((*settings.topic_templates, *settings.status_templates))
    assert options.mqtt.will is None
    assert options.mqtt.session == Session(expiry_sec=604_800, receive_maximum=10)
    assert options.bounds.when_full is WhenFull.STOP
