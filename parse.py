"""One entry to what it says: readings, a status, a device event, rejections. Pure.

Whatever bytes arrive, `Parser.parse` answers and never raises. Names that depend only on the stream or
the topic are worked out once and kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import islice
from typing import TypeVar

import values
from device_events import parse_event
from payloads import FORMATS_OF_MAKERS, members, status
from replays import original
from schema import (
    Bad,
    DeviceStatus,
    Entry,
    EventKind,
    Member,
    Parsed,
    PayloadFormat,
    Reading,
    Reason,
    Rejection,
)
from topics import Named, Topics

MAX_FIELDS = 64
_MESSAGE = frozenset({b"topic", b"payload", b"timestamp", b"mid"})
_FLAT = frozenset({b"value", b"timestamp", b"mid"})
_CACHED = 200_000
_LONGEST_CACHED = 512
Names = TypeVar("Names", bound=tuple[object, ...])


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is accepted. Sizes in bytes. `event_streams`: streams of device events, and of which kind.
    `payload_formats`: topic filters, and the format of what comes there, before those of makers.
    `zone`: that of devices which tell local times.

    `stream_pattern` is the glob of the streams; what stands before its first wildcard, up to and with
    its last colon, is the prefix that precedes the device id in a stream's key.
    """

    stream_pattern: str = "mqtt_stream:*"
    topic_templates: tuple[str, ...] = ("pico/{sensor_type}/{device_id}",)
    status_templates: tuple[str, ...] = ()
    payload_formats: tuple[tuple[str, PayloadFormat], ...] = ()
    zone: tzinfo | None = None
    event_streams: tuple[tuple[str, EventKind], ...] = ()
    max_future_sec: float = 3600.0
    max_metadata_bytes: int = 8192
    max_entry_bytes: int = 1_048_576
    max_readings_per_entry: int = 1000

    @property
    def prefix(self) -> str:
        literal = self.stream_pattern
        for wildcard in "*?[\\":
            literal = literal.partition(wildcard)[0]
        return literal[: literal.rfind(":") + 1] or literal


def stream_names(stream: bytes, prefix: str) -> tuple[str, str]:
    """Device and sensor from `<prefix>{device_id}:{sensor_type}`.

    The sensor is what follows the last colon, the device everything before it: so a device id may hold
    colons (a MAC address), a sensor type may not. Neither may be empty, and a device id neither begins
    nor ends with a colon: that is a part left empty. Raises: `Bad`.
    """
    key = values.text(stream, "stream key").removeprefix(prefix)
    device, colon, sensor = key.rpartition(":")
    if not colon:
        raise Bad(Reason.STREAM_KEY_TOO_FEW_PARTS, f"the stream key is not {prefix}device:sensor", key)
    if not device or not sensor or device.startswith(":") or device.endswith(":"):
        raise Bad(Reason.STREAM_KEY_EMPTY_PART, "the stream key has an empty part", key)
    return values.device_name(device), values.sensor_name(sensor)


class Parser:
    """Reads entries under fixed `Limits`. Holds caches only: the same entry always parses the same."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._prefix = limits.prefix
        self._topics = Topics(limits.topic_templates, limits.status_templates, limits.payload_formats)
        self._events = {name.encode(): kind for name, kind in limits.event_streams}
        self._streams: dict[bytes, tuple[str, str]] = {}  # never one of events
        self._matched: dict[bytes, Named] = {}
        self._sensors: dict[tuple[str, str], str] = {}

    def parse(self, entry: Entry, now_us: int) -> Parsed:
        """What one entry says: readings and rejections, a status, a device event, or nothing. Never raises.

        `now_us`: the present in microseconds since 1970, against which the future is measured.
        A replayed entry says what its original said: with that one's time and identity.
        """
        entry, replays = original(entry)
        said = self._parsed(entry, now_us)
        return said._replace(own_id=False) if replays else said

    def _parsed(self, entry: Entry, now_us: int) -> Parsed:
        try:
            fields = self._fields(entry)
            latest = self.latest(now_us)
            if b"payload" in fields and b"value" not in fields:
                return self._message(entry, fields, latest)
            return self._flat(entry, fields, latest)
        except Bad as bad:
            return Parsed((), (self._reject(bad, *self._known(entry)),))

    def latest(self, now_us: int) -> int:
        """The latest time that a reading may have, in microseconds since 1970."""
        return now_us + int(self._limits.max_future_sec * 1_000_000)

    def series_of(self, stream: bytes) -> tuple[str, str] | None:
        """Device and sensor that the key of a stream names; None for one of events, or with bad names."""
        names = self._streams.get(stream)
        if names is None and stream not in self._events:
            with contextlib.suppress(Bad):
                names = self._stream_names(stream)
        return names

    def topic_of(self, topic: bytes) -> Named | None:
        """What a topic names, where payloads on it are read as they are recognised; else None."""
        named = self._matched.get(topic)
        if named is None:
            try:
                named = self._topic_names(topic)
            except Bad:
                return None
        return None if named.status or named.form is not PayloadFormat.AUTO else named

    def sensors_of(self, prefix: str, names: Iterable[str]) -> list[str] | None:
        """The sensors that the members of a payload name, behind what its topic names; None where one
        of them cannot be stored.
        """
        found = [self._sensors.get((prefix, name)) or self._sensor(prefix, name) for name in names]
        return None if None in found else found  # type: ignore[return-value]

    def _sensor(self, prefix: str, name: str) -> str | None:
        try:
            sensor = values.sensor_name(f"{prefix}.{name}" if prefix else name) if name else None
        except Bad:
            return None
        if sensor is not None:
            if len(self._sensors) >= _CACHED:
                self._sensors.clear()
            self._sensors[prefix, name] = sensor
        return sensor

    @property
    def most_readings(self) -> int:
        """How many readings one entry may hold."""
        return self._limits.max_readings_per_entry

    def is_of_events(self, stream: bytes) -> bool:
        return stream in self._events

    def takes_at_once(self, fields: Mapping[bytes, Sequence[bytes]]) -> bool:
        """Whether entries with these columns are flat ones without metadata, or messages; none
        too large.
        """
        flat = b"value" in fields and _FLAT.issuperset(fields)
        if not flat and not (_MESSAGE.issuperset(fields) and b"topic" in fields and b"payload" in fields):
            return False
        largest = sum(len(name) + max(map(len, column)) for name, column in fields.items())
        return largest <= self._limits.max_entry_bytes

    def _fields(self, entry: Entry) -> dict[bytes, bytes]:
        raw = entry.fields
        if not raw:
            raise Bad(Reason.NO_FIELDS, "the entry has no fields")
        size = sum(map(len, raw))
        if size > self._limits.max_entry_bytes:
            raise Bad(
                Reason.ENTRY_TOO_LARGE,
                f"the entry has {size} bytes, MAX_ENTRY_BYTES is {self._limits.max_entry_bytes}",
            )
        if len(raw) > 2 * MAX_FIELDS:
            raise Bad(Reason.TOO_MANY_FIELDS, f"the entry has {len(raw) // 2} fields, at most {MAX_FIELDS}")
        fields = dict(zip(raw[::2], raw[1::2], strict=True))
        if 2 * len(fields) != len(raw):
            raise Bad(Reason.DUPLICATE_FIELD, "a field name occurs twice in the entry")
        return fields

    def _flat(self, entry: Entry, fields: dict[bytes, bytes], latest: int) -> Parsed:
        names = self._streams.get(entry.stream)
        if names is None:
            if entry.stream in self._events:
                return self._event(entry)
            names = self._stream_names(entry.stream)
        device, sensor = names
        raw = fields.get(b"value")
        if raw is None:
            raise Bad(Reason.VALUE_MISSING, "the entry has neither a field 'value' nor a 'payload'")
        value, value_text = values.scalar(raw)
        identity, own = self._identity(entry, fields)
        moment = self._time(entry, fields, latest)
        metadata = fields.get(b"metadata")
        if metadata is not None:
            metadata = values.metadata(metadata, self._limits.max_metadata_bytes)
        reading = Reading(device, sensor, moment, identity, value, value_text, metadata)
        return Parsed((reading,), (), own)

    def _event(self, entry: Entry) -> Parsed:
        return Parsed((), (), event=parse_event(entry, self._events[entry.stream]))

    def _message(self, entry: Entry, fields: dict[bytes, bytes], latest: int) -> Parsed:
        if entry.stream in self._events:
            return self._event(entry)
        topic = fields.get(b"topic")
        if not topic:
            raise Bad(Reason.TOPIC_MISSING, "the entry has a payload but no topic")
        device, sensor, owner, of_status, form = named = self._topic_names(topic)
        if of_status:
            return self._status(entry, fields, named, latest)
        identity, own = self._identity(entry, fields)
        default_time = self._time(entry, fields, latest)
        limit = self._limits.max_readings_per_entry
        told = members(fields[b"payload"], sensor, form, default_time, self._limits.zone)
        found = list(islice(told, limit + 1))
        if len(found) > limit:
            raise Bad(
                Reason.TOO_MANY_READINGS, f"the message holds more than MAX_READINGS_PER_ENTRY={limit}"
            )
        if not found:
            if form in FORMATS_OF_MAKERS:  # in order, with nothing to say: nothing to store
                return Parsed((), (), own, owner)
            raise Bad(Reason.PAYLOAD_WITHOUT_READINGS, "the payload holds no reading")
        max_metadata = self._limits.max_metadata_bytes
        readings: list[Reading] = []
        rejections: list[Rejection] = []
        for member in found:
            try:
                readings.append(_reading(device, member, default_time, identity, latest, max_metadata))
            except Bad as bad:
                rejections.append(self._reject(bad, device, member.sensor))
        return Parsed(readings, rejections, own, owner)

    def _status(self, entry: Entry, fields: dict[bytes, bytes], named: Named, latest: int) -> Parsed:
        if not fields[b"payload"]:  # a retained status was cleared
            return Parsed((), (), owner=named.owner)
        online, time = status(fields[b"payload"])
        if time is None:
            moment = self._time(entry, fields, latest)
        else:
            moment = values.check_time(values.json_time(time), latest)
        said = DeviceStatus(named.device, online, moment, named.owner)
        return Parsed((), (), owner=named.owner, status=said)

    def _time(self, entry: Entry, fields: dict[bytes, bytes], latest: int) -> int:
        raw = fields.get(b"timestamp")
        if raw is None:
            return values.check_time(values.entry_id_parts(entry.id)[0] * 1000, latest)
        return values.check_time(values.timestamp(raw), latest)

    def _identity(self, entry: Entry, fields: dict[bytes, bytes]) -> tuple[bytes, bool]:
        mid = fields.get(b"mid")
        named = values.message_id(mid) if mid is not None else None
        if named is not None:
            return named, False
        millis, sequence = values.entry_id_parts(entry.id)
        return millis.to_bytes(8, "big") + sequence.to_bytes(8, "big"), True

    def _stream_names(self, stream: bytes) -> tuple[str, str]:
        names = self._streams.get(stream)
        if names is None:
            names = stream_names(stream, self._prefix)
            _remember(self._streams, stream, names)
        return names

    def _topic_names(self, topic: bytes) -> Named:
        named = self._matched.get(topic)
        if named is None:
            named = self._topics.match(values.text(topic, "topic"))
            values.device_name(named.device)
            if named.sensor:
                values.sensor_name(named.sensor)
            _remember(self._matched, topic, named)
        return named

    def _known(self, entry: Entry) -> tuple[str, str]:
        """Device and sensor for a dead letter's header, as far as the entry tells them."""
        if entry.stream in self._events:
            return "", ""
        try:
            names = list(entry.fields[: 4 * MAX_FIELDS : 2])
            if b"payload" not in names or b"value" in names or b"topic" not in names:
                return self._stream_names(entry.stream)
            return self._topic_names(entry.fields[2 * names.index(b"topic") + 1])[:2]
        except Bad:
            return "", ""

    @staticmethod
    def _reject(bad: Bad, device: str, sensor: str) -> Rejection:
        return Rejection(bad.reason, bad.sentence, device, sensor[:100], bad.value)


def _reading(
    device: str, member: Member, default_time: int, identity: bytes, latest: int, max_metadata: int
) -> Reading:
    sensor, told, time, scalar, metadata = member
    if scalar and isinstance(told, bytes):
        value, value_text = values.scalar(told)
    else:
        value, value_text = values.member(told)
    moment = default_time
    if time is not None:
        moment = values.check_time(values.json_time(time), latest)
    sensor = values.sensor_name(sensor)
    if metadata is None:
        return Reading(device, sensor, moment, identity, value, value_text)
    metadata = values.metadata(metadata, max_metadata)
    return Reading(device, sensor, moment, identity, value, value_text, metadata)


def _remember(cache: dict[bytes, Names], key: bytes, names: Names) -> None:
    """Keep names, within bounds: topics come from outside, and memory is bounded whatever the input."""
    if len(key) > _LONGEST_CACHED:
        return
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = names
