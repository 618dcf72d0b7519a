"""Alerts over MQTT with a real database and real brokers: once, in order, through every outage."""

from __future__ import annotations

import contextlib
import gc
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

import main
from config import ConfigError
from mqtt import outbox
from mqtt.alerts import AlertPublisher, PublisherOptions
from mqtt.client import Link
from mqtt.options import MqttOptions
from tests.broker import Broker, Recorder, recording, running
from tests.faults import Proxy, proxy_to
from tests.stub_broker import Stub
from tests.support import ROOT, Daemon, Database, settings_for, wait_until

ADD = """
    insert into alerts (id, threshold_id, device_id, sensor_type, place_id, threshold_type, severity,
                        threshold_value, status, value, first_time, last_time, created_at, resolved_at,
                        created_due, resolved_due)
    select gen_random_uuid(), 't' || n, 'd1', 's' || n, %(place)s, 'max', 'warning', 30, 'resolved', 31,
           now(), now(), now(), now(), %(created)s, %(resolved)s
    from generate_series(1, %(count)s) as n
    returning id::text
"""
DUE = "select count(*) from alerts where created_due or resolved_due"


def add(
    database: Database, count: int = 1, *, created: bool = True, resolved: bool = False, place: str = "p1"
) -> list[str]:
    """Alerts that are due, as a worker's batch commits them; their ids in order."""
    with psycopg.connect(database.url) as connection:
        parameters = {"count": count, "created": created, "resolved": resolved, "place": place}
        connection.execute(ADD, parameters)
        rows = connection.execute("select id::text from alerts order by number").fetchall()
    return [row[0] for row in rows[-count:]]


def sockets() -> set[str]:
    """Those that this process has open, by their names in /proc."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith("socket:")}


def due(database: Database) -> int:
    return int(database.rows(DUE)[0][0])


def options_for(
    database: Database, url: str, *, version_5: bool = False, **changes: Any
) -> PublisherOptions:
    name = changes.pop("holder", f"test {uuid.uuid4()}")
    mqtt = {
        name: changes.pop(name) for name in ("username", "password", "ca_certificate") if name in changes
    }
    values: dict[str, Any] = {
        "database_url": database.url,
        "topic": "placebrain/{place_id}/alerts",
        "holder": name,
        "lease_sec": 3.0,
        "mqtt": MqttOptions(url=url, client_id=name.replace(" ", "-"), version_5=version_5, **mqtt),
    }
    return PublisherOptions(**(values | changes))


@contextlib.contextmanager
def publishing(options: PublisherOptions) -> Iterator[AlertPublisher]:
    publisher = AlertPublisher(options)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop(5)
        publisher.raise_failure()


@contextlib.contextmanager
def proxied(database: Database) -> Iterator[tuple[Database, Proxy]]:
    """The database by way of a proxy."""
    found = conninfo_to_dict(database.url)
    host, port = str(found.get("host", "127.0.0.1")), int(str(found.get("port", 5432)))
    login = str(found.get("user", "postgres")) + (f":{found['password']}" if found.get("password") else "")
    with proxy_to(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)) as proxy:
        options = "sslmode=disable&gssencmode=disable"
        url = f"postgresql://{login}@127.0.0.1:{proxy.port}/{found['dbname']}?{options}"
        yield Database(url, database.timescale), proxy


def test_each_event_is_published_once_in_order_and_marked(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    ids = add(database, 3, resolved=True)
    with publishing(options_for(database, broker.url(), version_5=broker.version_5)) as publisher:
        wait_until(lambda: due(database) == 0)
        assert publisher.connected
        more = add(database, 2)
        publisher.wake()
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(8)
    expected = [(one, event) for one in ids for event in ("created", "resolved")]
    assert recorder.told == expected + [(one, "created") for one in more]
    assert {topic for topic, _ in recorder.messages} == {"placebrain/p1/alerts"}
    sent = "select count(created_sent_at), count(resolved_sent_at), count(*) from alerts"
    assert database.rows(sent) == [(5, 3, 5)]


def test_an_alert_that_resolves_later_is_told_twice_under_one_id(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    with publishing(options_for(database, broker.url(), version_5=broker.version_5)) as publisher:
        (one,) = add(database)
        publisher.wake()
        wait_until(lambda: due(database) == 0)
        database.rows("update alerts set resolved_due = true")
        publisher.wake()
        wait_until(lambda: due(database) == 0)
        recorder.wait_for(2)
    assert recorder.told == [(one, "created"), (one, "resolved")]


def test_more_than_may_be_in_flight_goes_out_in_order_and_is_counted(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    ids = add(database, 350)
    with (
        capture_logs() as logs,
        publishing(options_for(database, broker.url(), version_5=broker.version_5)),
    ):
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(350)
    assert recorder.told == [(one, "created") for one in ids]
    told = [log for log in logs if log["event"] == "alerts_published"]
    assert sum(log["created"] for log in told) == 350
    assert len(told) < 35


def test_nothing_is_marked_before_the_broker_has_acknowledged(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy
) -> None:
    with publishing(options_for(database, broker.url(proxy.port), version_5=broker.version_5)) as publisher:
        wait_until(lambda: publisher.connected)
        proxy.mute = True
        (one,) = add(database)
        publisher.wake()
        recorder.wait_for(1)
        (other,) = add(database)  # once this is there, a mark of the first would be too
        publisher.wake()
        recorder.wait_for(2)
        assert due(database) == 2
        proxy.mute = False
        proxy.cut()
        wait_until(lambda: due(database) == 0)
    assert set(recorder.told) == {(one, "created"), (other, "created")}


def test_what_paho_still_holds_is_not_handed_over_a_second_time(database: Database) -> None:
    stub = Stub()
    try:
        with publishing(
            options_for(database, f"mqtt://127.0.0.1:{stub.port}", version_5=True)
        ) as publisher:
            wait_until(lambda: publisher.connected)
            for number in range(3):
                add(database, place=f"p{number}")
                publisher.wake()
                wait_until(lambda: len(stub.topics) > number)  # noqa: B023  called at once
            assert stub.topics == [f"placebrain/p{number}/alerts" for number in range(3)]
            assert due(database) == 3
            publisher.stop(0.6)
    finally:
        stub.close()


def test_a_broker_that_is_down_at_the_start_costs_nothing_but_time(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    broker.kill()
    ids = add(database, 5)
    with (
        capture_logs() as logs,
        publishing(options_for(database, broker.url(), version_5=broker.version_5)) as publisher,
    ):
        wait_until(lambda: any(log["event"] == "mqtt_unreachable" for log in logs))
        assert not publisher.connected
        assert database.rows("select count(*) from duties") == [(0,)]
        broker.start()
        wait_until(lambda: due(database) == 0)
    (told,) = [log for log in logs if log["event"] == "mqtt_unreachable"]
    assert "ConnectionRefusedError" in told["reason"]
    assert "MQTT_URL" in told["remedy"]
    assert database.rows("select count(*) from alerts where created_sent_at is not null") == [(5,)]
    assert len(ids) == 5


def test_alerts_of_an_outage_are_published_once_when_the_broker_is_back(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy
) -> None:
    options = options_for(database, broker.url(proxy.port), version_5=broker.version_5)
    with capture_logs() as logs, publishing(options) as publisher:
        before = add(database, 2)
        publisher.wake()
        wait_until(lambda: due(database) == 0)
        recorder.wait_for(2)
        proxy.refuse = True  # until the recorder is back: neither broker keeps messages for it
        broker.kill()
        wait_until(lambda: not publisher.connected)
        during = add(database, 120)
        publisher.wake()
        broker.start()
        recorder.wait_subscribed()
        assert due(database) == 120
        proxy.refuse = False
        wait_until(lambda: due(database) == 0)
        recorder.wait_for(122)
    assert recorder.told == [(one, "created") for one in before + during]
    events = [log["event"] for log in logs]
    assert events.count("mqtt_connected") == events.count("mqtt_disconnected") + 1


def test_a_connection_cut_with_messages_in_flight_loses_none(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy
) -> None:
    seen = 0

    def in_the_middle(piece: bytes) -> bool:
        nonlocal seen
        seen += piece.count(b"placebrain/")
        return 30 < seen < 10_000

    ids = add(database, 100)
    proxy.cut_when = in_the_middle
    with publishing(options_for(database, broker.url(proxy.port), version_5=broker.version_5)):
        wait_until(lambda: proxy.cuts > 0)
        assert due(database) > 0
        proxy.cut_when = lambda _: False
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(100)
    assert list(dict.fromkeys(recorder.told)) == [(one, "created") for one in ids]


def test_two_publishers_side_by_side_publish_each_alert_once(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    def options() -> PublisherOptions:
        return options_for(database, broker.url(), version_5=broker.version_5)

    with publishing(options()) as one, publishing(options()) as other:
        wait_until(lambda: one.connected and other.connected)
        ids: list[str] = []
        for _ in range(20):
            ids += add(database, 10)
            one.wake()
            other.wake()
        wait_until(lambda: due(database) == 0)
        one.stop(5)
        other.stop(5)
    recorder.wait_for(200)
    assert sorted(recorder.told) == sorted((alert, "created") for alert in ids)


def test_a_publisher_that_stops_leaves_the_duty_to_the_other_at_once(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    def options() -> PublisherOptions:
        return options_for(database, broker.url(), version_5=broker.version_5, lease_sec=3600.0)

    with publishing(options()) as one:
        add(database)
        one.wake()
        wait_until(lambda: due(database) == 0)
        add(database)
        one.stop(5)  # published on the way out
        assert due(database) == 0
    with publishing(options()):
        add(database)
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(3)
    assert len(set(recorder.told)) == len(recorder.told) == 3


PROCESS = """
import sys, threading
from pathlib import Path
from mqtt.alerts import AlertPublisher, PublisherOptions
from mqtt.options import MqttOptions
database, url, version_5, holder = sys.argv[1:]
mqtt = MqttOptions(url=url, client_id=holder, version_5=version_5 == "True")
publisher = AlertPublisher(
    PublisherOptions(database_url=database, mqtt=mqtt, topic="a/{place_id}", holder=holder, lease_sec=3.0)
)
publisher.start()
threading.Event().wait()
"""


def test_another_takes_over_when_the_holder_is_killed_before_its_mark(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy
) -> None:
    proxy.cut_reply_when = lambda piece: piece[0] == 0x40  # a PUBACK never arrives
    command = [sys.executable, "-c", PROCESS, database.url, broker.url(proxy.port)]
    with subprocess.Popen([*command, str(broker.version_5), "killed"], cwd=ROOT) as process:
        try:
            wait_until(lambda: database.rows("select holder from duties") == [("killed",)])
            (one,) = add(database)
            recorder.wait_for(1)
        finally:
            process.kill()
    assert due(database) == 1
    with publishing(options_for(database, broker.url(), version_5=broker.version_5, holder="other")):
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(2)
    assert set(recorder.told) == {(one, "created")}
    assert database.rows("select holder from duties") == [("other",)]


def test_a_publisher_that_is_cut_off_leaves_the_duty_to_one_that_is_not(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqtt.alerts.PATIENCE_SEC", 0.5)
    version_5 = broker.version_5
    cut_off = options_for(database, broker.url(proxy.port), version_5=version_5, lease_sec=3600.0)
    with publishing(cut_off) as one:
        wait_until(lambda: database.rows("select count(*) from duties") == [(1,)])
        proxy.mute = True
        (alert,) = add(database)
        one.wake()
        recorder.wait_for(1)
        proxy.refuse = True
        proxy.cut()
        with publishing(options_for(database, broker.url(), version_5=version_5)):
            wait_until(lambda: due(database) == 0)
            proxy.refuse = proxy.mute = False
            wait_until(lambda: one.connected)
    assert recorder.told == [(alert, "created")] * 2  # whether the first was acknowledged, nobody knew


def test_a_wrong_password_is_told_with_what_to_do(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    ids = add(database)
    version_5 = broker.version_5
    with running(type(broker), tmp_path, username="me", password="right") as guarded:
        wrong = options_for(database, guarded.url(), version_5=version_5, username="me", password="wrong")
        with capture_logs() as logs, publishing(wrong) as publisher:
            wait_until(lambda: any(log["event"] == "mqtt_refused" for log in logs))
            assert not publisher.connected
        (told,) = [log for log in logs if log["event"] == "mqtt_refused"]
        assert told["log_level"] == "warning"
        assert "MQTT_PASSWORD" in told["remedy"]
        assert "wrong" not in str(logs)
        assert due(database) == 1
        right = guarded.url().replace("//", "//me:right@")
        with recording(guarded) as recorder:
            with publishing(options_for(database, right, version_5=version_5)):
                wait_until(lambda: due(database) == 0)
            recorder.wait_for(1)
        assert recorder.told == [(ids[0], "created")]


def test_a_version_that_the_broker_does_not_speak_is_told_with_what_to_do(
    database: Database, tmp_path: Path
) -> None:
    with running(Broker, tmp_path) as amqtt, capture_logs() as logs:
        with publishing(options_for(database, amqtt.url(), version_5=True)):
            wait_until(lambda: any(log["event"] == "mqtt_refused" for log in logs))
        (told,) = [log for log in logs if log["event"] == "mqtt_refused"]
        assert "MQTT_PROTOCOL" in told["remedy"]


def test_a_refused_topic_is_told_stays_due_and_holds_nobody_up(database: Database) -> None:
    stub = Stub()
    stub.answers = {"placebrain/closed/alerts": 0x87, "placebrain/open/alerts": 0}
    add(database, place="closed")
    add(database, place="open")
    try:
        with (
            capture_logs() as logs,
            publishing(options_for(database, f"mqtt://127.0.0.1:{stub.port}", version_5=True)),
        ):
            wait_until(lambda: due(database) == 1)
            wait_until(lambda: any(log["event"] == "mqtt_publication_refused" for log in logs))
        (told,) = [log for log in logs if log["event"] == "mqtt_publication_refused"]
        assert told["reason"] == "Not authorized"
        assert "ALERT_TOPIC" in told["remedy"]
        due_place = "select place_id from alerts where created_due"
        assert database.rows(due_place) == [("closed",)]
    finally:
        stub.close()


def test_something_that_is_no_broker_is_told_and_does_not_end_the_thread(database: Database) -> None:
    with proxy_to(("127.0.0.1", 9)) as nothing, capture_logs() as logs:
        with publishing(options_for(database, f"mqtt://127.0.0.1:{nothing.port}", version_5=True)) as one:
            one._link.client.failure = one_of_paho()
            wait_until(lambda: any("CONNACK" in log.get("reason", "") for log in logs))
            assert one.failed is None
        (told,) = [log for log in logs if "CONNACK" in log.get("reason", "")]
        assert told["event"] == "mqtt_refused"
        assert "MQTT_URL" in told["remedy"]


def test_a_connection_that_ends_before_the_broker_has_answered_is_told_with_what_may_be_missing(
    database: Database,
) -> None:
    """As a broker does that asks for a certificate: the handshake is over by then."""
    with (
        proxy_to(("127.0.0.1", 9)) as nothing,
        capture_logs() as logs,
        publishing(options_for(database, f"mqtt://127.0.0.1:{nothing.port}", version_5=True)),
    ):
        wait_until(lambda: any(log["event"] == "mqtt_refused" for log in logs))
    told = next(log for log in logs if log["event"] == "mqtt_refused")
    assert told["reason"] == "closed before the broker answered"
    assert "MQTT_CERTIFICATE" in told["remedy"]


def one_of_paho() -> Exception:
    from paho.mqtt.exception import MQTTException

    return MQTTException("CONNACK packet is too small")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority, and a certificate for 127.0.0.1 that serves for the broker and for the client."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    new = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(tmp_path, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test")
    openssl(tmp_path, "req", *new, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=127.0.0.1")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
    openssl(tmp_path, "x509", "-req", "-in", "own.csr", *signing, "-out", "own.pem")
    return tmp_path


# paho leaves the socket of a failed handshake to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_tls_with_an_authority_and_a_client_certificate(
    database: Database, broker: Broker, certificates: Path
) -> None:
    add(database)
    files = {name: certificates / name for name in ("ca.pem", "own.pem", "own.key")}
    with running(
        type(broker),
        certificates,
        certificate=str(files["own.pem"]),
        key=str(files["own.key"]),
        ca_certificate=str(files["ca.pem"]),
    ) as guarded:
        stranger = options_for(database, guarded.url(), version_5=broker.version_5)
        with capture_logs() as logs, publishing(stranger):
            wait_until(lambda: any(log["event"] == "mqtt_unreachable" for log in logs))
        (told,) = [log for log in logs if log["event"] == "mqtt_unreachable"]
        assert "SSLCertVerificationError" in told["reason"]
        assert "MQTT_CA_CERTIFICATE" in told["remedy"]
        mqtt = MqttOptions(
            url=guarded.url(),
            client_id="known",
            version_5=broker.version_5,
            ca_certificate=files["ca.pem"],
            certificate=files["own.pem"],
            key=files["own.key"],
        )
        with publishing(options_for(database, "", mqtt=mqtt)):
            wait_until(lambda: due(database) == 0)


@pytest.mark.parametrize("name", ["MQTT_CA_CERTIFICATE", "MQTT_CERTIFICATE"])
def test_a_certificate_that_is_none_is_refused_in_one_line(
    database: Database, redis_url: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    settings = settings_for(
        database, redis_url, mqtt_url="mqtts://127.0.0.1", **{name.lower(): tmp_path / "text.pem"}
    )
    with pytest.raises(ConfigError) as refused:
        main.DatabaseWriterService(settings)
    assert str(refused.value).startswith(f"{name} is '{tmp_path / 'text.pem'}', which cannot be used")
    assert "\n" not in str(refused.value)


def test_a_connection_that_is_replaced_and_stopped_leaves_no_socket_to_the_garbage_collector(
    broker: Broker,
) -> None:
    options = MqttOptions(url=broker.url(), client_id="leaves-nothing", version_5=broker.version_5)
    gc.collect()
    gc.disable()
    try:
        before = sockets()
        link = Link(options, on_change=lambda: None)
        link.start()
        wait_until(lambda: link.connected)
        link.hang_up()
        link.call_again()
        wait_until(lambda: link.connected)
        link.stop(5)
        wait_until(lambda: sockets() <= before, what="every socket closed")
    finally:
        gc.enable()


def test_stop_returns_in_time_though_the_broker_is_frozen(database: Database, broker: Broker) -> None:
    with publishing(options_for(database, broker.url(), version_5=broker.version_5)) as publisher:
        wait_until(lambda: publisher.connected)
        broker.freeze()
        add(database, 50)
        publisher.wake()
        wait_until(lambda: bool(publisher._in_flight))
        began = time.monotonic()
        publisher.stop(2)
        assert time.monotonic() - began < 5
        assert due(database) == 50
        wait_until(lambda: not publisher._thread.is_alive())
        assert database.rows("select held_until < now() from duties") == [(True,)]
        broker.thaw()


def test_stop_returns_in_time_though_the_database_is_frozen(database: Database, broker: Broker) -> None:
    with (
        proxied(database) as (behind, proxy),
        publishing(options_for(behind, broker.url(), version_5=broker.version_5)) as publisher,
    ):
        wait_until(lambda: database.rows("select count(*) from duties") == [(1,)])
        proxy.deaf = True
        add(database)
        publisher.wake()
        began = time.monotonic()
        publisher.stop(2)
        assert time.monotonic() - began < 5


def test_a_database_that_is_away_is_told_once_and_alerts_are_marked_when_it_is_back(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    with (
        capture_logs() as logs,
        proxied(database) as (behind, proxy),
        publishing(options_for(behind, broker.url(), version_5=broker.version_5)) as publisher,
    ):
        wait_until(lambda: database.rows("select count(*) from duties") == [(1,)])
        proxy.cut_when = lambda piece: b"update alerts" in piece  # published, and then the mark fails
        (one,) = add(database)
        publisher.wake()
        wait_until(lambda: proxy.cuts >= 3)
        assert due(database) == 1
        proxy.cut_when = lambda _: False
        wait_until(lambda: due(database) == 0)
    recorder.wait_for(1)
    assert recorder.told == [(one, "created")]
    assert [log["event"] for log in logs].count("outage_began") == 1


def test_an_alert_whose_device_was_deleted_meanwhile_needs_no_mark(
    database: Database, broker: Broker, recorder: Recorder, proxy: Proxy
) -> None:
    with publishing(options_for(database, broker.url(proxy.port), version_5=broker.version_5)) as publisher:
        wait_until(lambda: publisher.connected)
        proxy.mute = True
        add(database)
        publisher.wake()
        recorder.wait_for(1)
        database.rows("delete from alerts")
        proxy.mute = False
        proxy.cut()
        recorder.wait_for(2)  # paho sends it again
        (other,) = add(database)
        publisher.wake()
        wait_until(lambda: due(database) == 0)
    assert recorder.told[-1] == (other, "created")


def test_a_row_that_a_batch_holds_is_marked_later_and_keeps_nobody_waiting(
    database: Database, broker: Broker, recorder: Recorder
) -> None:
    (held,) = add(database)
    free = add(database, 3)
    with psycopg.connect(database.url) as batch:
        batch.execute("update alerts set last_value = 32 where id = %s", [held])
        with publishing(options_for(database, broker.url(), version_5=broker.version_5)) as publisher:
            wait_until(lambda: due(database) == 1)
            more = add(database)
            publisher.wake()
            wait_until(lambda: due(database) == 1)
            batch.commit()
            wait_until(lambda: due(database) == 0)
    recorder.wait_for(5)
    assert recorder.told == [(one, "created") for one in [held, *free, *more]]


def test_a_bug_in_the_thread_ends_the_worker(
    database: Database, redis_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> list[object]:
        raise ZeroDivisionError("place 7")

    monkeypatch.setattr(outbox, "due", bug)
    settings = settings_for(
        database, redis_url, mqtt_url=broker.url(), mqtt_protocol="5" if broker.version_5 else "3.1.1"
    )
    with capture_logs() as logs, pytest.raises(ZeroDivisionError):
        main.DatabaseWriterService(settings).run()
    (told,) = [log for log in logs if log["event"] == "publisher_crashed"]
    assert (told["log_level"], told["error"]) == ("critical", "ZeroDivisionError")
    assert "place 7" not in str(told)


def test_a_worker_publishes_what_an_earlier_one_left_and_ends_in_order(
    database: Database, redis_url: str, broker: Broker, recorder: Recorder, daemon: Callable[..., Daemon]
) -> None:
    ids = add(database, 3)
    protocol = "5" if broker.version_5 else "3.1.1"
    worker = daemon(database, redis_url, mqtt_url=broker.url(), mqtt_protocol=protocol)
    worker.wait_for("alerts_published")
    wait_until(lambda: due(database) == 0)
    assert worker.terminate() == 0
    assert recorder.told == [(one, "created") for one in ids]
    assert database.rows("select held_until < now() from duties where name = 'publish'") == [(True,)]
