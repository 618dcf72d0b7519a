"""Where a message goes: into which stream, in what form. Pure.

Every entry carries `mid`, made from topic and payload, and `timestamp`, the time of arrival: sending an
entry again, because a reply of Redis was lost, makes a duplicate that workers recognise. So does a
message that comes again to another bridge or after a crash, where its payload has a time of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zlib import crc32

from mqtt.intake import Message
from parse import Limits, Parser, stream_names
from schema import Bad, Entry, Reading
from setting_types import Layout
from stream_glob import compiled
from topics import Topics

_CACHED = 200_000
_LONGEST_CACHED = 128  # of this many characters at most, 200,000 topics are about 70 MB
_MICROSECONDS_FROM = 10**14  # fewer would be read as milliseconds, or as seconds: see `values.timestamp`
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Addition(NamedTuple):
    """One XADD: the stream, and names and values in turn."""

    stream: bytes
    fields: Sequence[bytes]


class Route(NamedTuple):
    """What a topic decides. `matched`: whether a template matches it; `status`: one of the statuses."""

    stream: bytes
    matched: bool
    status: bool


def shard_names(limits: Limits, shards: int) -> Sequence[str]:
    return [f"{limits.prefix}shard:{number}" for number in range(shards)]


class Router:
    """Topics to shard streams, by a hash of the device: a device's messages stay in order in one stream."""

    def __init__(self, limits: Limits, shards: int) -> None:
        self._topics = Topics(limits.topic_templates, limits.status_templates)
        self._streams = [name.encode() for name in shard_names(limits, shards)]
        self._known: dict[str, Route] = {}

    def route(self, topic: str) -> Route:
        found = self._known.get(topic)
        if found is None:
            found = self._route(topic)
            if len(topic) <= _LONGEST_CACHED:
                if len(self._known) >= _CACHED:  # topics come from outside
                    self._known.clear()
                self._known[topic] = found
        return found

    def _route(self, topic: str) -> Route:
        try:
            named = self._topics.match(topic)
        except Bad:
            return Route(self._stream_of(topic), matched=False, status=False)
        return Route(self._stream_of(named.device), matched=True, status=named.status)

    def _stream_of(self, name: str) -> bytes:
        return self._streams[crc32(name.encode("utf-8", "replace")) % len(self._streams)]


class Composer:
    """Messages to additions, in the layout that is set.

    In the layout *series*, a message that cannot be told as plain readings goes into a shard as it is:
    one with a member that workers would reject, a status, names that a stream's key cannot hold, a text
    that would not fit into an entry. So
    workers see the original bytes of whatever is not in order. `reserved`: streams that are not for
    readings. What a flat entry cannot carry, the owner, is left out.
    """

    def __init__(
        self, layout: Layout, limits: Limits, router: Router, reserved: Iterable[str] = ()
    ) -> None:
        self._router = router
        self._limits = limits
        self._parser = Parser(limits) if layout is Layout.SERIES else None
        self._reserved = {name.encode() for name in reserved}
        self._read = compiled(limits.stream_pattern)
        self._keys: dict[tuple[str, str], bytes | None] = {}

    def compose(self, message: Message) -> Sequence[Addition]:
        route = self._router.route(message.topic)
        topic = message.topic.encode()
        identity = message.identity.hex().encode()
        arrived = _moment(message.arrived_us)
        fields = (b"topic", topic, b"payload", message.payload, b"timestamp", arrived, b"mid", identity)
        if self._parser and route.matched and not route.status:
            parsed = self._parser.parse(Entry(route.stream, b"0-0", fields), message.arrived_us)
            additions = [self._flat(reading, identity) for reading in parsed.readings]
            if not parsed.rejections and additions and None not in additions:
                return [addition for addition in additions if addition]
        return (Addition(route.stream, fields),)

    def _flat(self, reading: Reading, identity: bytes) -> Addition | None:
        stream = self._key(reading.device_id, reading.sensor_type)
        if stream is None:
            return None
        if reading.value is None:
            value = json.dumps(reading.value_text, ensure_ascii=False)
        else:
            value = repr(reading.value)
        fields = [b"value", value.encode(), b"timestamp", _moment(reading.timestamp_us), b"mid", identity]
        if reading.metadata is not None:
            fields += [b"metadata", reading.metadata]
        if sum(map(len, fields)) > self._limits.max_entry_bytes:
            return None
        return Addition(stream, fields)

    def _key(self, device: str, sensor: str) -> bytes | None:
        """The stream of a series, or None where its key would not be read as this series."""
        if (device, sensor) not in self._keys:
            if len(self._keys) >= _CACHED:
                self._keys.clear()
            key = f"{self._limits.prefix}{device}:{sensor}".encode()
            try:
                same = stream_names(key, self._limits.prefix) == (device, sensor)
            except Bad:
                same = False
            usable = same and key not in self._reserved and self._read.fullmatch(key.decode())
            self._keys[device, sensor] = key if usable else None
        return self._keys[device, sensor]


def _moment(micros: int) -> bytes:
    """A time as workers read it: also one of a clock that was never set."""
    if micros >= _MICROSECONDS_FROM:
        return b"%d" % micros
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().encode()
