"""Fuzzing of everything between an entry's bytes and its readings: `make fuzz`.

    python -m tests.fuzz --inputs 1000000 --processes 2 [--seed 7]

Inputs are entries: nasty payloads (tests/corpus), payloads as makers send them, and mutations of both, in
the place of payloads of every format, values, times, metadata and message ids; and what hypothesis makes
up.
Each is parsed by itself and in a batch of its like. What has to hold: an answer comes, never an exception;
it is readings that PostgreSQL takes, or rejections with a reason, or what else an entry may say; and a
batch says what its entries say one by one. The batches are a pure function of the seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from batches import parse_batch
from entries import Block, Entries
from parse import Limits, Parser
from payloads import FORMATS_OF_MAKERS
from schema import Entry, EventKind, Parsed, PayloadFormat
from tests.payload_examples import EXAMPLES
from tests.unit.test_batches import STRANGE, STRANGE_TIMES, TIMES, USUAL, alike, told
from tests.unit.test_batches import batches as usual_batches
from tests.unit.test_parse_properties import (
    check_rejections,
    check_storable,
    flat_fields,
    message_fields,
    streams,
    wild_fields,
)
from topics import Topics

CORPUS = Path(__file__).resolve().parent / "corpus"
NOW_US = 1_768_600_000_000_000  # after the times of the examples
LIMITS = Limits(
    topic_templates=(
        "devices/{device_id}/telemetry",
        "pico/{sensor_type}/{device_id}",
        "sensors/{device_id}/{sensor_type}",
        "placebrain/{place_id}/devices/{device_id}/telemetry",
        "tele/{device_id}/SENSOR",
        "zigbee2mqtt/{device_id}",
        "{device_id}/events/rpc",
        "application/{place_id}/device/{device_id}/event/up",
        "v3/{place_id}/devices/{device_id}/up",
        "spBv1.0/{place_id}/NBIRTH/{node_id}/{device_id}",
        "spBv1.0/{place_id}/DDATA/{node_id}/{device_id}",
        "senml/{device_id}",
    ),
    status_templates=("{owner}/{device_id}/status",),
    payload_formats=(("senml/#", PayloadFormat.SENML),),
    zone=ZoneInfo("Europe/Berlin"),
    event_streams=tuple((f"events.{kind.name}", kind) for kind in EventKind),
    max_metadata_bytes=500,
    max_entry_bytes=20_000,
    max_readings_per_entry=50,
)
_ALONE, _AT_ONCE = Parser(LIMITS), Parser(LIMITS)  # what one remembers must not help the other
LATEST_US = NOW_US + int(LIMITS.max_future_sec * 1_000_000)
TOPICS = (
    b"devices/d1/telemetry", b"pico/temp/d2", b"sensors/d3/level", b"placebrain/home/devices/d4/telemetry",
    b"tele/d5/SENSOR", b"zigbee2mqtt/d6", b"d7/events/rpc", b"application/a/device/d8/event/up",
    b"v3/a/devices/d9/up", b"spBv1.0/g/DDATA/n/d10", b"senml/d11", b"me/d12/status", b"nowhere",
)  # fmt: skip
STREAMS = (
    b"mqtt_stream:d1:temp", b"mqtt_stream:aa:bb:cc:temp", b"mqtt_stream:shard:3", b"mqtt_stream:bad",
    b"events.THRESHOLD_CREATED", b"events.DEVICE_DELETED", b"mqtt_stream::", b"\xff",
)  # fmt: skip
MIDS = (b"", b"m1", b"0" * 32, b"undefined", b"\xff\x00", b"x" * 300)
PIECES = (
    b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\\u0061", b"NaN",
    b"Infinity", b"null", b"true", b"-", b"+", b".", b"e", b"E999", b"1e999", b"9" * 400, b"0x", b"_",
    b"\x00",
    b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b'"ts":', b'"values":{', b'"metadata":{"a":1}',
    b'"value":', b'"timestamp":', b'{"values":{"a":1}}', b"[[[[", b"\xc4\x82",
    b"\xd8\x1c", b"\x9f", b"\xa2\x00",
    b"\x12\x02", b"2023-07-22T04:26:40Z", b"1768478400000", b" ", b"\xc2\xa0", b"SPBV1.0_COMPRESSED",
)  # fmt: skip


@cache
def corpus() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(CORPUS.iterdir()) if path.name != "README.md")


@cache
def _seeds() -> tuple[bytes, ...]:
    return (*corpus(), *(example.payload for example in EXAMPLES), *USUAL, *STRANGE, *TIMES, *STRANGE_TIMES)


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """`raw` with some pieces cut out, put in, doubled, swapped or flipped."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw) + 1)
        to = min(len(raw), at + rng.choice((0, 1, 1, 2, 4, 16, 200)))
        what = rng.randrange(6)
        if what == 0:
            raw = raw[:at] + raw[to:]
        elif what == 1:
            raw = raw[:at] + rng.choice(PIECES) + raw[to:]
        elif what == 2:
            raw = raw[:to] + raw[at:to] * rng.choice((1, 1, 2, 30)) + raw[to:]
        elif what == 3:
            raw = raw[:at] + rng.randbytes(to - at) + raw[to:]
        elif what == 4:
            other = rng.choice(_seeds())
            cut = rng.randrange(len(other) + 1)
            raw = raw[:at] + other[cut : cut + 300]
        elif raw and at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    return raw[:6_000] if rng.random() < 0.999 else raw


def _fields(rng: random.Random, names: Sequence[bytes], often: Sequence[bytes]) -> list[bytes]:
    """Of each name a value: mostly one of `often`, so that a column holds few strange ones."""
    found: list[bytes] = []
    strange = rng.random() < 0.3
    for name in names:
        if name == b"topic":
            value = rng.choice(TOPICS) if rng.random() < 0.97 else mutated(rng, rng.choice(TOPICS))
        elif name == b"mid":
            value = rng.choice(MIDS)
        elif name == b"timestamp":
            value = (
                rng.choice(TIMES) if not strange or rng.random() < 0.7 else mutated(rng, rng.choice(TIMES))
            )
        elif strange:
            value = mutated(rng, rng.choice(_seeds()))
        else:
            value = rng.choice(often)
        found += [name, value]
    return found


SHAPES = (
    ((b"value",), USUAL), ((b"value", b"timestamp"), USUAL), ((b"value", b"timestamp", b"mid"), USUAL),
    ((b"value", b"metadata"), USUAL), ((b"topic", b"payload"), ()),
    ((b"topic", b"payload", b"timestamp"), ()),
    ((b"mid", b"topic", b"payload", b"timestamp"), ()), ((b"payload",), ()),
    ((b"topic", b"payload", b"value"), ()),
)  # fmt: skip
USUAL_PAYLOADS = (
    b'{"ts": 1690000000, "values": {"a": 1, "b": 2.5}}', b'{"values": {"a": 1}}', b'{"values":{"t":-3}}',
    b'{"a": 1}', b"5",
)  # fmt: skip


def blocks(rng: random.Random) -> list[Block]:
    """Blocks of a batch, as Redis hands them out, most of its entries alike."""
    names, often = rng.choice(SHAPES)
    found: list[Block] = []
    number = 0
    for _ in range(rng.choice((1, 1, 2, 4))):
        rows = []
        for _ in range(rng.choice((1, 8, 30))):
            number += 1
            shape = names if rng.random() < 0.98 else rng.choice(SHAPES)[0]
            fields = _fields(rng, shape, often or USUAL_PAYLOADS)
            if rng.random() < 0.01:
                fields = fields + fields[:2]
            rows.append([b"%d-%d" % (1_690_000_000_000 + number, number % 3), fields])
        found.append((rng.choice(STREAMS), rows))
    return found


def check(found: Sequence[Block]) -> int:
    """How many entries were looked at. Raises AssertionError, or what should never be raised."""
    entries = Entries(found)
    alone = [_ALONE.parse(entry, NOW_US) for entry in entries]
    for entry, parsed in zip(entries, alone, strict=True):
        _check_one(entry, parsed)
    batch = parse_batch(_AT_ONCE, entries, NOW_US)
    assert alike(told(batch)) == alike(alone), "a batch says something else than its entries one by one"
    assert not batch.distinct or len({one.key for one in batch.readings}) == len(batch.readings)
    return len(entries)


def _check_one(entry: Entry, parsed: Parsed) -> None:
    check_storable(parsed, LIMITS, LATEST_US)
    check_rejections(parsed)
    if parsed.readings or parsed.rejections or parsed.status or parsed.event:
        return
    fields = dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))
    named = Topics(LIMITS.topic_templates, LIMITS.status_templates).match(fields[b"topic"].decode())
    assert named.form in FORMATS_OF_MAKERS or (named.status and not fields[b"payload"]), (
        "nothing is said of it"
    )


def whole_corpus() -> Iterator[list[Block]]:
    """Each file of the corpus as it is, in every place, among others of its like."""
    for raw in corpus():
        for topic in TOPICS:
            yield _beside(
                b"mqtt_stream:shard:1", [b"topic", topic, b"payload", raw], b'{"values": {"a": 1}}'
            )
        for name in (b"value", b"timestamp", b"metadata", b"mid"):
            fields = [name, raw] if name == b"value" else [b"value", b"1", name, raw]
            yield _beside(b"mqtt_stream:d1:temp", fields, b"1690000000")
        for stream in (b"events.THRESHOLD_CREATED", b"events.DEVICE_DELETED", raw):
            yield _beside(stream, [b"value", raw], b"1")
            yield _beside(stream, [b"topic", raw, b"payload", raw], b"1")


def _beside(stream: bytes, fields: list[bytes], usual: bytes) -> list[Block]:
    others = [*fields[:-1], usual]
    every = [others, others, fields, others]
    return [(stream, [[b"1690000000000-%d" % n, one] for n, one in enumerate(every)])]


def fuzz(number: int, inputs: int) -> int:
    """Check at least so many mutated inputs, a pure function of `number`; how many there were."""
    done = 0
    batch = 0
    while done < inputs:
        batch += 1
        found = blocks(random.Random(f"{number}:{batch}"))
        try:
            done += check(found)
        except BaseException:
            print(f"fuzz: seed {number}, batch {batch}:\n{found!r}", file=sys.stderr, flush=True)
            raise
    return done


wild = st.builds(
    lambda stream, every: [(stream, [[b"%d-%d" % (n + 1, n), one] for n, one in enumerate(every)])],
    streams,
    st.lists(st.one_of(wild_fields, flat_fields, message_fields), min_size=1, max_size=12),
)


def made_up(number: int, examples: int) -> int:
    """Check so many batches that hypothesis makes up; how many entries there were."""
    done = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(wild, usual_batches()))
    def run(found: list[Block]) -> None:
        nonlocal done
        done += check(found)

    run()
    return done


def _share(number: int, inputs: int, examples: int) -> tuple[int, int]:
    return fuzz(number, inputs), made_up(number, examples)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="mutated inputs at least")
    parser.add_argument("--examples", type=int, default=10_000, help="batches that hypothesis makes up")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    began = time.monotonic()
    taken = sum(map(check, whole_corpus()))
    shares = chosen.processes
    with ProcessPoolExecutor(shares) as pool:
        futures = [
            pool.submit(_share, chosen.seed + n, -(-chosen.inputs // shares), -(-chosen.examples // shares))
            for n in range(shares)
        ]
        counts = [future.result() for future in futures]
    mutations, made = sum(one for one, _ in counts), sum(one for _, one in counts)
    print(
        f"{taken + mutations + made:,} inputs: {taken:,} of the corpus as it is, {mutations:,} mutated,"
        f" {made:,} by hypothesis; each ended as readings or a reason, alone as in a batch;"
        f" {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
