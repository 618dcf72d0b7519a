"""The backlogs that benchmarks drain: as entries for Redis, and as the rows that they become.

Entries have IDs that are chosen here, so the rows are known beforehand and are the same in every round.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple, Protocol

import psycopg
import redis

import redis_client
from benchmarks.bench import TABLE
from benchmarks.office import SENSORS, measured, temperatures

_DAY = 86_400
_SOON = int(time.time()) + 1200
# The time of the first readings: a little ahead, so that they are live ones to whoever sums them up for as
# long as a benchmark takes; all of one day.
START = _SOON if (_SOON + 1000) // _DAY == _SOON // _DAY else (_SOON // _DAY + 1) * _DAY
BATCH = 10_000  # as many as a worker stores at once, by default
SERIES = 1000
COLUMNS = '"device_id", "sensor_type", "timestamp", "message_id", "value"'
_PIPELINE = 10_000
_EPOCH_2000 = 946_684_800
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = struct.pack(">h", -1)
_REST = struct.Struct(">iqi16sid")


class Row(NamedTuple):
    """A row to be, its key first, in the order of the key."""

    device: str
    sensor: str
    second: int
    message: bytes
    value: float


class Addition(NamedTuple):
    stream: str
    id: str
    fields: tuple[str | bytes, ...]


class Workload(Protocol):
    """A backlog of `entries` over `streams`, and the `readings` that it holds."""

    @property
    def entries(self) -> int: ...
    @property
    def readings(self) -> int: ...
    @property
    def streams(self) -> Sequence[str]: ...
    def additions(self) -> Iterator[Addition]:
        """The entries, in the order of arrival."""
        ...

    def rows(self) -> Iterator[Row]:
        """What is to be stored, in the order of arrival."""
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """One reading an entry, in turn over one stream a series. One in `bad_every` is no number; 0: none.

    `first_ms`: the time in the first entry's ID, in milliseconds since 1970.
    """

    entries: int
    series: int = SERIES
    bad_every: int = 0
    first_ms: int = START * 1000

    @property
    def readings(self) -> int:
        return self.entries - sum(map(self._is_bad, range(self.entries)))

    @property
    def streams(self) -> Sequence[str]:
        return [f"mqtt_stream:dev-{n}:temperature" for n in range(self.series)]

    def additions(self) -> Iterator[Addition]:
        values = temperatures()
        streams = self.streams
        for n in range(self.entries):
            turn, series = divmod(n, self.series)
            value = "undefined" if self._is_bad(n) else values[n % len(values)]
            fields = ("value", value, "timestamp", str(START + turn))
            yield Addition(streams[series], f"{self.first_ms + turn}-0", fields)

    def rows(self) -> Iterator[Row]:
        values = [float(text) for text in temperatures()]
        for n in range(self.entries):
            if self._is_bad(n):
                continue
            turn, series = divmod(n, self.series)
            message = struct.pack(">QQ", self.first_ms + turn, 0)
            yield Row(f"dev-{series}", "temperature", START + turn, message, values[n % len(values)])

    def _is_bad(self, n: int) -> bool:
        return bool(self.bad_every) and is_one_in(self.bad_every, n, self.series)


@dataclass(frozen=True, slots=True)
class Sharded:
    """The readings of `Flat`, as the bridge puts them into sharded streams: an MQTT message each."""

    entries: int
    series: int = SERIES
    shards: int = 64
    first_ms: int = START * 1000

    @property
    def readings(self) -> int:
        return self.entries

    @property
    def streams(self) -> Sequence[str]:
        return [f"mqtt_stream:shard:{n}" for n in range(self.shards)]

    def additions(self) -> Iterator[Addition]:
        values = temperatures()
        streams = self.streams
        for n in range(self.entries):
            turn, series = divmod(n, self.series)
            yield Addition(
                streams[series % self.shards],
                f"{self.first_ms + turn}-{series // self.shards}",
                (
                    "topic",
                    f"sensors/dev-{series}/temperature",
                    "payload",
                    values[n % len(values)],
                    "timestamp",
                    str((START + turn) * 1_000_000),
                    "mid",
                    _message(n).hex(),
                ),
            )

    def rows(self) -> Iterator[Row]:
        for n, row in enumerate(Flat(self.entries, self.series).rows()):
            yield row._replace(message=_message(n))


@dataclass(frozen=True, slots=True)
class Packed:
    """Five readings an entry: an MQTT message of JSON as the bridge puts it into sharded streams."""

    entries: int
    devices: int = 1000
    shards: int = 16
    first_ms: int = START * 1000

    @property
    def readings(self) -> int:
        return self.entries * len(SENSORS)

    @property
    def streams(self) -> Sequence[str]:
        return [f"mqtt_stream:shard:{n}" for n in range(self.shards)]

    def additions(self) -> Iterator[Addition]:
        day = measured()
        streams = self.streams
        for n in range(self.entries):
            turn, device = divmod(n, self.devices)
            members = ",".join(
                f'"{name}":{text}' for name, text in zip(SENSORS, day[n % len(day)], strict=True)
            )
            second = START + turn
            fields: tuple[str | bytes, ...] = (
                "topic",
                f"devices/bench-{device}/telemetry",
                "payload",
                f'{{"ts":{second},"values":{{{members}}}}}',
                "timestamp",
                str(second * 1_000_000),
                "mid",
                _message(n).hex(),
            )
            # Devices of one shard come in turn: the sequence number keeps their IDs apart.
            yield Addition(
                streams[device % self.shards], f"{self.first_ms + turn}-{device // self.shards}", fields
            )

    def rows(self) -> Iterator[Row]:
        day = [[float(text) for text in minute] for minute in measured()]
        for n in range(self.entries):
            turn, device = divmod(n, self.devices)
            message = _message(n)
            for sensor, value in zip(SENSORS, day[n % len(day)], strict=True):
                yield Row(f"bench-{device}", sensor, START + turn, message, value)


def is_one_in(every: int, n: int, series: int) -> bool:
    """Whether the `n`th is one of `every`, so that in each turn over the series others are."""
    return (n + n // series) % every == every - 1


def _message(n: int) -> bytes:
    return blake2b(n.to_bytes(8, "big"), digest_size=16).digest()


class Backlog:
    """A workload in Redis, made once and put back for each run, with nothing read of it."""

    def __init__(self, client: redis.Redis, workload: Workload) -> None:
        self._client = client
        client.flushdb()
        additions = iter(workload.additions())
        while self._add(additions):
            pass
        self._dumps: list[tuple[str, bytes]] = []
        for chunk in redis_client.chunks(workload.streams):
            with client.pipeline(transaction=False) as pipe:
                for stream in chunk:
                    pipe.dump(stream)
                found = zip(chunk, pipe.execute(), strict=True)
            self._dumps += [(stream, dump) for stream, dump in found if dump is not None]

    def _add(self, additions: Iterator[Addition]) -> bool:
        with self._client.pipeline(transaction=False) as pipe:
            for _, (stream, entry_id, fields) in zip(range(_PIPELINE), additions, strict=False):
                redis_client.execute(pipe, "XADD", stream, entry_id, *fields)
            return bool(pipe.execute())

    def restore(self) -> None:
        """Only the backlog is in Redis: no group, no ledger."""
        self._client.flushdb()
        for chunk in redis_client.chunks(self._dumps):
            with self._client.pipeline(transaction=False) as pipe:
                for stream, dump in chunk:
                    pipe.restore(stream, 0, dump)
                pipe.execute()


def preload(redis_url: str, workload: Workload) -> None:
    """The backlog, and nothing else, in Redis."""
    with redis_client.connect(redis_url, timeout_sec=120) as client:
        Backlog(client, workload).restore()


def encode(rows: Iterable[Row]) -> bytes:
    """Binary COPY data for `COLUMNS`."""
    parts = [_HEADER]
    names: dict[tuple[str, str], bytes] = {}
    for device, sensor, second, message, value in rows:
        series = names.get((device, sensor))
        if series is None:
            texts = (device.encode(), sensor.encode())
            series = struct.pack(">h", 5) + b"".join(struct.pack(">i", len(text)) + text for text in texts)
            names[device, sensor] = series
        parts.append(series)
        parts.append(_REST.pack(8, (second - _EPOCH_2000) * 1_000_000, 16, message, 8, value))
    parts.append(_TRAILER)
    return b"".join(parts)


def batches(rows: Sequence[Row]) -> list[bytes]:
    """COPY data of `BATCH` rows each, in the order given; a batch of its own is sorted by key."""
    return [encode(sorted(rows[n : n + BATCH])) for n in range(0, len(rows), BATCH)]


def shares(items: Sequence[bytes], parts: int) -> list[Sequence[bytes]]:
    """`items` cut into `parts` runs, as even as can be."""
    cuts = [len(items) * n // parts for n in range(parts + 1)]
    return [items[low:high] for low, high in pairwise(cuts)]


def copy(database_url: str, parts: Sequence[Sequence[bytes]]) -> float:
    """Seconds for COPY of ready-made batches, a transaction each; each part over its own connection."""
    ready = threading.Barrier(len(parts) + 1)

    def run(data: Sequence[bytes]) -> None:
        with psycopg.connect(database_url) as connection, connection.cursor() as cursor:
            ready.wait(60)
            for batch in data:
                with cursor.copy(f"copy {TABLE} ({COLUMNS}) from stdin (format binary)") as into:
                    into.write(batch)
                connection.commit()

    threads = [threading.Thread(target=run, args=(data,)) for data in parts]
    for thread in threads:
        thread.start()
    ready.wait(60)
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began
