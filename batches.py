"""A batch of entries to what it says: the usual entries by the thousand, all others one by one. Pure.

What comes out is what `Parser.parse` says of each entry: the tests hold the two together. Entries that
are alike stand in columns (all values, all times, all identities), and `columns` decodes each at once. An
entry that is not like its neighbours, or whose column holds something strange at its place, goes to
`Parser.parse`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import NamedTuple

import columns
from entries import Block, Row, blocks_of
from parse import MAX_FIELDS, Parser
from replays import MARK
from schema import Batch, Entry, Parsed, Reading
from values import message_id

_VALUE, _TIMESTAMP, _MID, _TOPIC, _PAYLOAD = b"value", b"timestamp", b"mid", b"topic", b"payload"
_FOREIGN = frozenset({_MID, MARK})  # with these an entry's identity is not its own ID
_KEY = itemgetter(0, 1, 2, 3)
_new = tuple.__new__


class _Table(NamedTuple):
    """Entries whose fields have the same names in the same order: a column for each name."""

    ids: Sequence[bytes]
    fields: dict[bytes, Sequence[bytes]]


def parse_batch(parser: Parser, entries: Sequence[Entry], now_us: int, redelivered: bool = False) -> Batch:
    """What `entries` say. `now_us`: the present in microseconds since 1970. Never raises."""
    readings: list[Reading] = []
    others: dict[int, Parsed] = {}
    carried: set[int] = set()
    distinct = True
    begin = 0
    for blocks, rows, table in _segments(blocks_of(entries)):
        found: list[Reading | None] = [None] * len(rows)
        if table is not None and parser.takes_at_once(table.fields):
            if _PAYLOAD in table.fields:
                others.update(_messages(parser, blocks, table, parser.latest(now_us), begin))
            else:
                found = _flat(parser, blocks, table, parser.latest(now_us))
                if _MID in table.fields:
                    carried.update(_name(found, table.fields[_MID], begin))
        distinct = distinct and table is not None and _VALUE in table.fields
        distinct = distinct and table is not None and _FOREIGN.isdisjoint(table.fields)
        if None in found:
            _look_at(parser, entries, begin, found, others, now_us)
        readings += _in_order(found, begin, others)
        begin += len(rows)
    if not distinct:
        distinct = len(set(map(_KEY, readings))) == len(readings)
    return Batch(entries, readings, others, redelivered, distinct, carried)


def _segments(blocks: Sequence[Block]) -> Iterator[tuple[Sequence[Block], Sequence[Row], _Table | None]]:
    """Runs of blocks, with their entries, as a table where those are alike; usually all of them are."""
    if not blocks:
        return
    rows = list(chain.from_iterable(rows for _, rows in blocks))
    table = _table(rows)
    if table is not None or len(blocks) == 1:
        yield blocks, rows, table
        return
    groups = [list(some) for _, some in groupby(blocks, key=lambda block: (block[1][0][1] or ())[::2])]
    if len(groups) == 1:
        groups = [[block] for block in blocks]
    for group in groups:
        yield from _segments(group)


def _table(rows: Sequence[Row]) -> _Table | None:
    """`rows` in columns, where the fields of all have the same names, each once, in the same order."""
    ids, fields = zip(*rows, strict=True)
    try:
        found = list(zip(*fields, strict=True))
    except (ValueError, TypeError):  # of different lengths; without data
        return None
    if not found or len(found) > 2 * MAX_FIELDS or len(found) % 2:
        return None
    if any(names.count(names[0]) != len(rows) for names in found[::2]):
        return None
    columns_of: dict[bytes, Sequence[bytes]] = {
        names[0]: column for names, column in zip(found[::2], found[1::2], strict=True)
    }
    return _Table(ids, columns_of) if 2 * len(columns_of) == len(found) else None


def _flat(parser: Parser, blocks: Sequence[Block], table: _Table, latest_us: int) -> list[Reading | None]:
    """One reading an entry, by the entry's own ID; None where something has to be looked at by itself."""
    measured = columns.numbers(table.fields[_VALUE])
    if _TIMESTAMP in table.fields:
        times = columns.times(table.fields[_TIMESTAMP], latest_us)
    else:
        times = columns.entry_times(table.ids, latest_us)
    devices: list[str | None] = []
    sensors: list[str] = []
    for stream, rows in blocks:
        device, sensor = parser.series_of(stream) or (None, "")
        devices += repeat(device, len(rows))
        sensors += repeat(sensor, len(rows))
    messages = columns.identities(table.ids)
    nothing = repeat(None)
    # Reading(…) for each would take twice as long.
    rows_of = zip(devices, sensors, times, messages, measured, nothing, nothing)  # noqa: B905  endless ones
    found: list[Reading | None] = list(map(_new, repeat(Reading), rows_of))
    for column in (devices, times, measured):
        if None in column:
            for place, one in enumerate(column):
                if one is None:
                    found[place] = None
    return found


def _messages(
    parser: Parser, blocks: Sequence[Block], table: _Table, latest_us: int, begin: int
) -> Iterator[tuple[int, Parsed]]:
    """What whole messages say whose payloads hold numbers under their names, by their places."""
    ids, fields = table
    named = list(map(parser.topic_of, fields[_TOPIC]))
    payloads = columns.payloads(fields[_PAYLOAD])
    arrived = (
        columns.times(fields[_TIMESTAMP], latest_us)
        if _TIMESTAMP in fields
        else columns.entry_times(ids, latest_us)
    )
    told = columns.unix_times([one.ts if one and one.ts is not None else 0 for one in payloads], latest_us)
    own = columns.identities(ids)
    mids = [message_id(mid) for mid in fields[_MID]] if _MID in fields else repeat(None)
    nothing = repeat(None)
    events = [parser.is_of_events(stream) for stream, rows in blocks for _ in rows]
    columned = zip(named, payloads, arrived, told, own, mids, events)  # noqa: B905  `mids` may be endless
    for place, (names, payload, arrival, time, identity, mid, event) in enumerate(columned, begin):
        if event or names is None or payload is None or arrival is None or time is None:
            continue
        if payload.alone is None:
            sensors = parser.sensors_of(names.sensor, payload.values)
        else:
            sensors = [sensor] if (sensor := names.sensor or payload.alone) else None
        if not sensors or len(sensors) > parser.most_readings:
            continue
        moment = arrival if payload.ts is None else time
        rows_of = zip(
            repeat(names.device), sensors, repeat(moment), repeat(mid or identity), payload.values.values(),
            nothing, nothing,
        )  # fmt: skip
        readings = list(map(_new, repeat(Reading), rows_of))
        yield place, Parsed(readings, (), mid is None, names.owner)


def _name(found: list[Reading | None], mids: Sequence[bytes], begin: int) -> Iterator[int]:
    """Put the message's identity in the place of the entry's, where there is one: answers where."""
    for place, (reading, mid) in enumerate(zip(found, mids, strict=True)):
        named = message_id(mid) if reading is not None else None
        if reading is not None and named is not None:
            found[place] = reading._replace(message_id=named)
            yield begin + place


def _look_at(
    parser: Parser,
    entries: Sequence[Entry],
    begin: int,
    found: list[Reading | None],
    others: dict[int, Parsed],
    now_us: int,
) -> None:
    """Parse by themselves the entries, from the place `begin` on, that `found` has no reading of."""
    strange = [place for place, one in enumerate(found) if one is None and begin + place not in others]
    for place in strange:
        parsed = parser.parse(entries[begin + place], now_us)
        if parsed.plain:
            found[place] = parsed.readings[0]
        else:
            others[begin + place] = parsed


def _in_order(found: list[Reading | None], begin: int, others: dict[int, Parsed]) -> list[Reading]:
    """The readings in the order of their entries."""
    if None not in found:
        return found  # type: ignore[return-value]
    readings: list[Reading] = []
    for place, reading in enumerate(found, begin):
        if reading is None:
            readings += others[place].readings
        else:
            readings.append(reading)
    return readings
