"""Payloads of real devices through a whole worker into the table."""

from __future__ import annotations

import redis

from main import DatabaseWriterService
from tests.payload_examples import EXAMPLES
from tests.support import Database, add, books, everything_settled, run_until, settings_for


def test_every_makers_example_becomes_its_rows(
    database: Database, redis_url: str, client: redis.Redis
) -> None:
    """With the settings as they come, but for the zone that Tasmota's times need."""
    settings = settings_for(database, redis_url, consumer_name="one", device_timezone="Europe/Berlin")
    messages = [{"topic": example.topic, "payload": example.payload} for example in EXAMPLES]
    entry_ids = add(client, "mqtt_stream:shard:0", messages)
    run_until(DatabaseWriterService(settings), lambda: everything_settled(client, len(EXAMPLES)))
    assert books(client).stored == len(EXAMPLES)
    expected = {}
    for example, entry_id in zip(EXAMPLES, entry_ids, strict=True):
        arrived = int(entry_id.split(b"-")[0])
        for device, sensor, moment, value in example.told:
            key = (device, sensor, arrived if moment is None else moment)
            expected[key] = (value, example.metadata.get(sensor))
    rows = database.rows(
        'select device_id, sensor_type, (extract(epoch from "timestamp") * 1000)::bigint,'
        " value, value_text, metadata from sensor_readings"
    )
    found = {
        (device, sensor, moment): (value if text is None else text, metadata)
        for device, sensor, moment, value, text, metadata in rows
    }
    assert found == expected
    assert len(rows) == sum(len(example.told) for example in EXAMPLES)
    owners = dict(database.rows("select device_id, owner from devices where owner <> ''"))
    told = [example for example in EXAMPLES if example.told]
    assert owners == {example.told[0][0]: example.owner for example in told if example.owner}
    assert len(told) < len(EXAMPLES)  # the others say nothing, and are stored without rows
