"""A whole worker in this process, on real servers: the daily way of an entry, and its odd ends."""

from __future__ import annotations

import pytest
import redis

import redis_client
from main import DatabaseWriterService
from schema_check import SchemaMismatch
from tests.support import (
    Database,
    add,
    books,
    dead_letters,
    everything_settled,
    run_until,
    settings_for,
)


@pytest.fixture
def service(database: Database, redis_url: str) -> DatabaseWriterService:
    return DatabaseWriterService(settings_for(database, redis_url, consumer_name="one"))


def test_a_reading_is_stored_once_and_counted_once(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    add(client, "mqtt_stream:kitchen:temp", [{"value": "21.5", "timestamp": "2026-01-02T03:04:05.123456Z"}])
    run_until(service, lambda: everything_settled(client, 1))
    columns = 'device_id, sensor_type, value, extract(epoch from "timestamp")::text, value_text, metadata'
    assert database.rows(f"select {columns} from sensor_readings") == [
        ("kitchen", "temp", 21.5, "1767323045.123456", None, None)
    ]
    assert books(client).stored == 1
    assert service.stats.messages_written == 1


def test_good_readings_are_stored_beside_a_bad_one_of_the_same_message(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    payload = '{"ts": 1700000000000, "values": {"a": 1, "b": null, "c": "on", "d": true}}'
    add(client, "mqtt_stream:shard:1", [{"topic": "devices/d1/telemetry", "payload": payload}])
    run_until(service, lambda: everything_settled(client, 1))
    assert database.rows("select sensor_type, value, value_text from sensor_readings order by 1") == [
        ("a", 1.0, None),
        ("c", None, "on"),
        ("d", 1.0, None),
    ]
    (fields,) = dead_letters(client)
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"error"].startswith(b"value_null: ")
    assert letter[b"sensor_type"] == b"b"
    assert letter[b"payload"] == payload.encode()
    assert books(client).dead_lettered == 1


def test_a_message_sent_twice_with_the_same_mid_is_a_duplicate(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    fields = {"value": "1", "timestamp": "1700000000", "mid": "0005F7A1B2C3D4E5F60718293A4B5C6D"}
    add(client, "mqtt_stream:d:t", [fields, fields])
    run_until(service, lambda: everything_settled(client, 2))
    assert database.count() == 1
    assert (books(client).stored, books(client).duplicate) == (1, 1)


def test_the_same_key_with_another_value_is_dead_lettered_as_a_conflict(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    fields = {"value": "1", "timestamp": "1700000000", "mid": "m1"}
    add(client, "mqtt_stream:d:t", [fields, {**fields, "value": "2"}])
    run_until(service, lambda: everything_settled(client, 2))
    assert database.rows("select value from sensor_readings") == [(1.0,)]
    (letter,) = dead_letters(client)
    assert b"conflict: a reading of this series, time and message is stored with another value" in letter


def test_two_readings_of_the_same_time_both_survive(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    add(client, "mqtt_stream:d:t", [{"value": str(n), "timestamp": "1700000000"} for n in (1, 2)])
    run_until(service, lambda: everything_settled(client, 2))
    assert database.rows("select value from sensor_readings order by value") == [(1.0,), (2.0,)]


def test_a_stream_that_appears_later_is_read_without_a_restart(
    service: DatabaseWriterService, database: Database, client: redis.Redis
) -> None:
    add(client, "mqtt_stream:first:t", [{"value": "1"}])
    late = iter([lambda: add(client, "mqtt_stream:second:t", [{"value": "2"}])])

    def second_is_read() -> bool:
        if everything_settled(client, 1):
            next(late, list)()
        return everything_settled(client, 2)

    run_until(service, second_is_read)
    assert database.count() == 2


def test_everything_delivered_again_makes_no_second_row(
    database: Database, client: redis.Redis, redis_url: str
) -> None:
    add(
        client,
        "mqtt_stream:d:t",
        [{"value": str(n), "timestamp": str(1_700_000_000 + n)} for n in range(500)],
    )
    run_until(
        DatabaseWriterService(settings_for(database, redis_url)), lambda: everything_settled(client, 500)
    )
    client.xgroup_destroy("mqtt_stream:d:t", "db_writer")
    run_until(
        DatabaseWriterService(settings_for(database, redis_url)), lambda: everything_settled(client, 500)
    )
    assert database.count() == 500
    assert books(client).duplicate == 500


def test_ten_years_of_history_arrive_in_bounded_transactions(
    service: DatabaseWriterService, plain_database: Database, client: redis.Redis, redis_url: str
) -> None:
    days = [{"value": "1", "timestamp": str(day * 86_400)} for day in range(14_000, 14_300)]
    add(client, "mqtt_stream:logger:t", days)
    run_until(
        DatabaseWriterService(settings_for(plain_database, redis_url)),
        lambda: everything_settled(client, 300),
    )
    assert plain_database.count() == 300
    parts = plain_database.rows(
        "select count(*) from pg_inherits where inhparent = 'sensor_readings'::regclass"
    )
    assert parts[0][0] >= 300


def test_health_check_tells_what_is_reached_and_never_raises(
    service: DatabaseWriterService, database: Database
) -> None:
    health = service.health_check()
    assert (health["running"], health["redis"], health["database"]) == (False, True, True)
    assert {"messages_read", "messages_written", "messages_failed", "batches_processed", "errors"} <= set(
        health["stats"]  # type: ignore[call-overload]
    )


def test_health_says_that_a_flood_of_dead_letters_has_paused_the_worker(
    database: Database, client: redis.Redis, redis_url: str
) -> None:
    """Letters wait, what is good beside them does not, and a stop ends it in order."""
    add(client, "mqtt_stream:d:t", [*[{"value": str(n)} for n in range(20)], *[{"value": "NaN"}] * 300])
    settings = settings_for(database, redis_url, dead_letter_flood_count=100)
    service = DatabaseWriterService(settings)
    assert service.health_check()["paused"] is False
    run_until(service, lambda: service.health_check()["paused"])
    assert service.stats.messages_held == 300
    assert (books(client).stored, books(client).pending) == (20, 300)
    assert dead_letters(client) == []


def test_health_check_without_any_server_says_so(database: Database) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none", timescale=False)
    health = DatabaseWriterService(settings_for(away, "redis://127.0.0.1:1/0")).health_check()
    assert (health["redis"], health["database"]) == (False, False)


def test_a_database_without_schema_is_refused_before_anything_is_read(
    empty_database: str, client: redis.Redis, redis_url: str
) -> None:
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    service = DatabaseWriterService(settings_for(Database(empty_database, timescale=False), redis_url))
    with pytest.raises(SchemaMismatch, match=r"found no revision, need 0004_rollups"):
        service.run()
    assert redis_client.execute(client, "XINFO GROUPS", "mqtt_stream:d:t") == []
