"""Shown by: 200 streams, 20,000 entries with 1 % of every kind of bad input, two workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import redis

import redis_client
from tests.acceptance.bad_input import KINDS, NOW
from tests.support import Daemon, Database, books, everything_settled, is_long, wait_until

ENTRIES = 100_000 if is_long() else 20_000
STREAMS = 200
OF_EACH_KIND = ENTRIES // 100

Original = tuple[bytes, tuple[bytes, ...]]
Fields = tuple[bytes, ...]


def flat(fields: dict[bytes | str, bytes | str]) -> Fields:
    return tuple(
        part.encode() if isinstance(part, str) else part for pair in fields.items() for part in pair
    )


class Producer:
    """Adds entries in pipelines and keeps what should become of them."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.rows: set[tuple[str, str, int, float]] = set()
        self.letters: Counter[tuple[str, Original]] = Counter()
        self.added = 0

    def good(self, entries: int, streams: int) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for n in range(entries):
                device, moment = f"dev-{n % streams}", NOW + n // streams
                stream = f"mqtt_stream:{device}:t"
                redis_client.execute(pipe, "XADD", stream, "*", "value", f"{n}.5", "timestamp", str(moment))
                self.rows.add((device, "t", moment, n + 0.5))
            pipe.execute()
        self.added += entries

    def bad(self, of_each: int, streams: int) -> None:
        for kind in KINDS:
            with self._client.pipeline(transaction=False) as pipe:
                for n in range(of_each):
                    stream = kind.stream.format(n % streams)
                    fields = flat(kind.fields(n))
                    redis_client.execute(pipe, "XADD", stream, "*", *fields)
                    self.letters[kind.reason.value, (stream.encode(), fields)] += 1
                pipe.execute()
            self.added += of_each

    def special(self) -> None:
        """What cannot come by the thousand: a repeated field, a huge value, thousands of fields."""
        for reason, fields in (
            ("duplicate_field", (b"value", b"1", b"value", b"2")),
            ("entry_too_large", (b"value", b"7" * 10_000_000)),
            ("too_many_fields", tuple(b"%d" % (n % 10) for n in range(12_000))),
        ):
            redis_client.execute(self._client, "XADD", "mqtt_stream:dev-1:t", "*", *fields)
            self.letters[reason, (b"mqtt_stream:dev-1:t", fields)] += 1
            self.added += 1


def found_letters(client: redis.Redis) -> Counter[tuple[str, Original]]:
    """Every dead letter: its reason, original stream and original fields."""
    found: Counter[tuple[str, Original]] = Counter()
    after = "-"
    while True:
        page = redis_client.execute(client, "XRANGE", "mqtt_stream:failed", after, "+", "COUNT", 2000)
        for _, fields in page:
            header = dict(zip(fields[:16:2], fields[1:16:2], strict=True))
            count = 2 * int(fields[fields.index(b"original_fields") + 1])
            original = tuple(fields[len(fields) - count :])
            reason = fields[fields.index(b"error") + 1].partition(b":")[0].decode()
            found[reason, (header[b"original_stream"], original)] += 1
        if len(page) < 2000:
            return found
        after = f"({page[-1][0].decode()}"


def test_every_entry_ends_where_it_should_whatever_is_in_it(
    database: Database, client: redis.Redis, redis_url: str, daemon: Callable[..., Daemon]
) -> None:
    settings = {"max_entry_bytes": 20_000, "dead_letter_flood_count": 0}  # thousands come in a row
    workers = [daemon(database, redis_url, consumer_name=f"worker-{n}", **settings) for n in (1, 2)]
    for worker in workers:
        worker.wait_for("worker_started", 60)
    producer = Producer(client)
    producer.bad(OF_EACH_KIND, STREAMS)
    producer.good(ENTRIES - producer.added, STREAMS)
    producer.special()
    wait_until(lambda: everything_settled(client, producer.added), 180, "the end of all entries")

    query = (
        'select device_id, sensor_type, extract(epoch from "timestamp")::bigint, value from sensor_readings'
    )
    rows = database.rows(query)
    assert len(rows) == len(producer.rows)
    assert set(rows) == producer.rows
    assert found_letters(client) == producer.letters
    total = books(client)
    assert (total.stored, total.dead_lettered) == (len(producer.rows), sum(producer.letters.values()))
    assert (total.duplicate, total.skipped, total.pending, total.missing) == (0, 0, 0, 0)
    assert [worker.terminate() for worker in workers] == [0, 0]
    assert all('"event": "batch"' in worker.text() for worker in workers), "both workers had a share"
