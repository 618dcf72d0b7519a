"""The values that flow: entries in, readings and rejections out. No logic that needs a server.

Up to Redis a message is an entry; past `parse` it is a reading. Everything here is frozen, so a value
can be handed on without a thought about who changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

DAY_US = 86_400_000_000


class Entry(NamedTuple):
    """One entry of a stream, exactly as Redis holds it.

    `fields` alternates names and values, in order and with repeated names kept, so that a dead letter
    can carry the original byte for byte. `deliveries` is Redis's delivery count, 1 for a first read.
    """

    stream: bytes
    id: bytes
    fields: Sequence[bytes]
    deliveries: int = 1


class PayloadFormat(StrEnum):
    """How a payload is read. AUTO: as it is recognised."""

    AUTO = "auto"
    SENML = "senml"
    TASMOTA = "tasmota"
    ZIGBEE2MQTT = "zigbee2mqtt"
    SHELLY = "shelly"
    CHIRPSTACK = "chirpstack"
    THINGS_STACK = "things_stack"
    SPARKPLUG_B = "sparkplug_b"


class Member(NamedTuple):
    """One value of a message, still unvalidated. `time` is None where the message gives none.

    `scalar` marks a bare payload: its `value` is the bytes as received. A `Bad` in the place of the value
    is what the format itself has to say against this member. `metadata` is a JSON text.
    """

    sensor: str
    value: object
    time: object = None
    scalar: bool = False
    metadata: bytes | None = None


class Reading(NamedTuple):
    """One measured value: a row of the table.

    The first four members are the primary key, in its order, so that sorting readings as tuples by key
    sorts them as the B-tree does (`collate "C"` compares code points, as Python's str does).
    `timestamp_us` is microseconds since 1970 UTC. Exactly one of `value` and `value_text` is set.
    `metadata` is the JSON object as received, validated. `message_id` has 16 bytes.
    """

    device_id: str
    sensor_type: str
    timestamp_us: int
    message_id: bytes
    value: float | None
    value_text: str | None = None
    metadata: bytes | None = None

    @property
    def key(self) -> tuple[str, str, int, bytes]:
        return self[:4]


class Reason(StrEnum):
    """Why a reading is not stored: the first word of a dead letter's `error`. Stable, documented."""

    NO_FIELDS = "no_fields"
    TOO_MANY_FIELDS = "too_many_fields"
    DUPLICATE_FIELD = "duplicate_field"
    ENTRY_TOO_LARGE = "entry_too_large"
    INVALID_UTF8 = "invalid_utf8"
    NUL_CHARACTER = "nul_character"

    STREAM_KEY_TOO_FEW_PARTS = "stream_key_too_few_parts"
    STREAM_KEY_EMPTY_PART = "stream_key_empty_part"
    DEVICE_ID_EMPTY = "device_id_empty"
    DEVICE_ID_TOO_LONG = "device_id_too_long"
    SENSOR_TYPE_EMPTY = "sensor_type_empty"
    SENSOR_TYPE_TOO_LONG = "sensor_type_too_long"

    VALUE_MISSING = "value_missing"
    VALUE_EMPTY = "value_empty"
    VALUE_UNDEFINED = "value_undefined"
    VALUE_NULL = "value_null"
    VALUE_NAN = "value_nan"
    VALUE_INFINITE = "value_infinite"
    VALUE_HEXADECIMAL = "value_hexadecimal"
    VALUE_UNDERSCORE = "value_underscore"
    VALUE_SEPARATOR = "value_separator"
    VALUE_OUT_OF_RANGE = "value_out_of_range"
    VALUE_NOT_A_NUMBER = "value_not_a_number"
    VALUE_UNSUPPORTED = "value_unsupported"

    TIMESTAMP_MALFORMED = "timestamp_malformed"
    TIMESTAMP_BEFORE_1970 = "timestamp_before_1970"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"

    METADATA_NOT_JSON = "metadata_not_json"
    METADATA_NOT_OBJECT = "metadata_not_object"
    METADATA_TOO_DEEP = "metadata_too_deep"
    METADATA_TOO_LARGE = "metadata_too_large"

    TOPIC_MISSING = "topic_missing"
    TOPIC_UNKNOWN = "topic_unknown"
    PAYLOAD_EMPTY = "payload_empty"
    PAYLOAD_NOT_JSON = "payload_not_json"
    PAYLOAD_NOT_CBOR = "payload_not_cbor"
    PAYLOAD_NOT_PROTOBUF = "payload_not_protobuf"
    PAYLOAD_UNEXPECTED = "payload_unexpected"
    PAYLOAD_WITHOUT_READINGS = "payload_without_readings"
    TOO_MANY_READINGS = "too_many_readings"
    RECORD_MALFORMED = "record_malformed"
    METRIC_WITHOUT_NAME = "metric_without_name"
    VALUE_SIGN_UNKNOWN = "value_sign_unknown"

    STATUS_UNKNOWN = "status_unknown"
    UNKNOWN_SERIES = "unknown_series"
    EVENT_MALFORMED = "event_malformed"

    CONFLICT = "conflict"
    REFUSED_BY_DATABASE = "refused_by_database"
    POISON = "poison"


class Rejection(NamedTuple):
    """Bad data as a value: a stable reason, a sentence for people, and what was known by then.

    `value` is an excerpt of the offending text, at most 200 characters.
    """

    reason: Reason
    sentence: str
    device_id: str = ""
    sensor_type: str = ""
    value: str = ""


class Bad(Exception):
    """Raised and caught inside the parsing rooms only; it leaves `parse` as a `Rejection`."""

    def __init__(self, reason: Reason, sentence: str, value: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.value = value[:200]


class DeviceStatus(NamedTuple):
    """A device said, or its broker said for it, whether it is connected. `time_us` since 1970 UTC."""

    device_id: str
    online: bool
    time_us: int
    owner: str = ""


class EventKind(Enum):
    """What a device event is about. The value ranks events of the same millisecond: the last one wins."""

    THRESHOLD_CREATED = 0
    THRESHOLD_UPDATED = 1
    THRESHOLD_DELETED = 2
    DEVICE_DELETED = 3


class DeviceEvent(NamedTuple):
    """A validated device event. `moment`: the two numbers of its entry's ID, (milliseconds, sequence).

    `devices`: the one device of a threshold, or those that are deleted. What follows belongs to
    thresholds; of a deleted one only its id is known.
    """

    kind: EventKind
    moment: tuple[int, int]
    devices: tuple[str, ...]
    threshold_id: str = ""
    sensor_type: str = ""
    bound: str = ""
    value: float = 0.0
    severity: str = ""
    sensor_id: str | None = None


class Parsed(NamedTuple):
    """What one entry says: readings, rejections, a status or an event.

    It holds none of them where a payload is in order and has nothing to say, as when a retained message
    was cleared.

    `own_id` tells that the readings are identified by the entry's own ID rather than by a message id
    that another entry may carry too. `owner` is the owner or place that the topic names, or empty.
    """

    readings: Sequence[Reading]
    rejections: Sequence[Rejection]
    own_id: bool = True
    owner: str = ""
    status: DeviceStatus | None = None
    event: DeviceEvent | None = None

    @property
    def plain(self) -> bool:
        """Whether this is one reading, identified by the entry's own ID, and nothing else."""
        return len(self.readings) == 1 and self[1:] == _PLAIN


_PLAIN = ((), True, "", None, None)


class Fate(Enum):
    """Where an entry ended. The ledger counts one of these for each entry, at its acknowledgement."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    DEAD_LETTERED = "dead_lettered"
    SKIPPED = "skipped"
    TRIMMED = "trimmed"


class RowFate(Enum):
    """What became of one reading when its transaction committed."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"


Answer = RowFate | Rejection  # of one reading


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries read together, and what they say. Bounded by the reader.

    `readings` in the order of their entries. `others`, by place: what those entries say that are
    anything but one reading. `carried`: places of entries with one reading that a message id
    identifies, which another entry may carry too. `redelivered`: these may have been delivered before,
    so they are written through staging. `distinct`: no two readings can have the same key.
    """

    entries: Sequence[Entry]
    readings: Sequence[Reading]
    others: Mapping[int, Parsed]
    redelivered: bool = False
    distinct: bool = False
    carried: AbstractSet[int] = frozenset()

    @classmethod
    def of(cls, entries: Sequence[Entry], parsed: Sequence[Parsed], redelivered: bool = False) -> Batch:
        """A batch of entries that were parsed one by one."""
        readings = [reading for one in parsed for reading in one.readings]
        return cls(entries, readings, dict(enumerate(parsed)), redelivered)


class Settled(NamedTuple):
    """An entry whose readings are safe, ready to be acknowledged. `rejection`: its dead letter."""

    entry: Entry
    fate: Fate
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A batch after COMMIT: each entry's fate, and the counts of its readings.

    `partly`: places of entries that have a dead letter although readings of theirs are in the table.
    """

    settled: Sequence[Settled]
    readings_stored: int = 0
    readings_duplicate: int = 0
    readings_rejected: int = 0
    readings_skipped: int = 0
    partly: AbstractSet[int] = frozenset()


def days_of(readings: Iterable[Reading]) -> set[int]:
    """The distinct UTC days of these readings, as days since 1970."""
    times = [reading[2] for reading in readings]
    if not times:
        return set()
    first, last = min(times) // DAY_US, max(times) // DAY_US
    if last - first < 2:
        return {first, last}
    return {time // DAY_US for time in times}
