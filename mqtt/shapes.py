"""How simulated devices speak: topic templates, payloads, and payloads that are bad on purpose. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

from mqtt.feeds import Row
from mqtt.scenario import Flaw, Unfit
from schema import PayloadFormat
from topics import Topics

_DEVICE = ("device_id", "device_code")
_SENSOR = ("sensor_type", "feed_key")
_OWNER = ("place_id", "user_id", "owner")
_NODE = "node_id"
_LEVEL = re.compile(r"\{([a-z_]+)\}")
DEVICES_A_PLACE = 10
_FUTURE_US = 10 * 365 * 86_400_000_000
_WORDS = {Flaw.NAN: "NaN", Flaw.NULL: "null", Flaw.INFINITY: "Infinity"}
_ONE_MEMBER = tuple(_WORDS)  # these spoil one member, and its neighbours stay good
_OF_TIME = (Flaw.TIME, Flaw.FUTURE)


class Shape(StrEnum):
    """What a payload looks like. The first two hold one reading, the others a row."""

    SCALAR = "scalar"
    VALUE = "value"
    VALUES = "values"
    FLAT = "flat"
    SENML = "senml"


class Template:
    """A topic in which `{device_id}` and other names stand for whole levels. Raises: `Unfit`.

    Of what a topic names, only the place and the node are made up here, ten devices each.
    """

    def __init__(self, template: str) -> None:
        levels = template.split("/")
        names = [found[1] for level in levels if (found := _LEVEL.fullmatch(level))]
        literal = [level for level in levels if not _LEVEL.fullmatch(level)]
        odd = any(set(level) & set("{}+#\0") for level in literal) or template.startswith("$")
        twice = names.count(_NODE) > 1 or sum(name in _SENSOR for name in names) > 1
        if odd or twice or sum(name in _DEVICE for name in names) != 1:
            raise Unfit(
                f"the topic template {template[:100]!r} cannot be used; it takes levels of plain text or "
                "of one name in braces, with {device_id} once, {sensor_type} and {node_id} at most once, "
                "and no wildcards"
            )
        self.text = template
        self.of_sensor = any(name in _SENSOR for name in names)
        self.names_feed = "feed_key" in names
        self._pattern = "/".join(map(_level, levels))
        self._of_node = _NODE in names

    def device(self, device: int, name: str) -> str:
        """The device as its topics name it: with `{node_id}`, below its node."""
        return f"node-{_place(device)}/{name}" if self._of_node else name

    def topic(self, device: int, name: str, sensor: str = "") -> str:
        """The topic of this device, the number and the name of which are given."""
        return self._pattern % {"device": name, "sensor": sensor, "place": _place(device)}


def _place(device: int) -> int:
    return 1 + device // DEVICES_A_PLACE


def _level(level: str) -> str:
    found = _LEVEL.fullmatch(level)
    if not found:
        return level.replace("%", "%%")
    if found[1] in _DEVICE:
        return "%(device)s"
    if found[1] in _SENSOR:
        return "%(sensor)s"
    placed = found[1] in _OWNER or found[1] == _NODE
    return f"{found[1].removesuffix('_id')}-%(place)s" if placed else found[1]


class Voice:
    """One way to say a row: a template with a shape. Raises: `Unfit` where the two do not go together."""

    def __init__(self, template: Template, sensors: Sequence[str], shape: Shape | None = None) -> None:
        default = Shape.VALUE if template.names_feed else Shape.SCALAR
        self.shape = shape or (default if template.of_sensor else Shape.VALUES)
        single = self.shape in (Shape.SCALAR, Shape.VALUE)
        if single != template.of_sensor:
            which = "names no sensor" if single else "names the sensor"
            takes = "a template with {sensor_type}" if single else "a template without {sensor_type}"
            raise Unfit(
                f"--payload {self.shape} does not go with {template.text!r}, which {which}; "
                f"it takes {takes}"
            )
        self.template = template
        self.timed = self.shape is not Shape.SCALAR
        # What each message of a row carries: one sensor, or all of them.
        self.parts = [(sensor,) for sensor in sensors] if single else [tuple(sensors)]
        self._pattern = _PATTERNS[self.shape](sensors)

    def check(self, topics: Topics) -> None:
        """That what comes on its topics is read as what it sends. Raises: `Unfit`."""
        form = topics.form(self.topic(0, "device", 0))
        if form is not PayloadFormat.AUTO and form.value != self.shape.value:
            raise Unfit(
                f"the topic template {self.template.text[:100]!r} cannot be used: what comes on its topics "
                f"is read as {form}, and {self.shape} is not"
            )

    def topic(self, device: int, name: str, part: int) -> str:
        return self.template.topic(device, name, self.parts[part][0] if self.template.of_sensor else "")

    def payload(self, row: Row, part: int, time_us: int) -> bytes:
        """A good payload. `time_us` since 1970 UTC; shapes without a time leave it out."""
        return self._body([text for text, _ in self.cut(row, part)], self._time(time_us))

    def spoilt(self, row: Row, part: int, time_us: int, flaw: Flaw, member: int) -> tuple[bytes, int]:
        """A bad payload, and the index of the one member that is bad, or -1 where all of it is.

        `member` chooses that member. `flaw` must be one of `flaws`.
        """
        texts = [text for text, _ in self.cut(row, part)]
        if flaw in _ONE_MEMBER:
            index = member % len(texts)
            texts[index] = _WORDS[flaw]
            return self._body(texts, self._time(time_us)), index
        if flaw is Flaw.EMPTY:
            return b"", -1
        if flaw is Flaw.TEXT:
            return b"warm", -1
        if flaw is Flaw.TRUNCATED:
            whole = (
                self._body(texts, self._time(time_us)) if self.timed else b'{"value": ' + texts[0].encode()
            )
            return whole[: max(1, len(whole) * 2 // 3)] if self.timed else whole, -1
        time = '"yesterday"' if flaw is Flaw.TIME else self._time(time_us + _FUTURE_US)
        return self._body(texts, time), -1

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """The flaws that a payload of this shape can have: without a time, none of time."""
        return tuple(flaw for flaw in Flaw if self.timed or flaw not in _OF_TIME)

    def cut(self, row: Row, part: int) -> Row:
        """The values of a row that this part of it carries, in the order of `parts`."""
        return row[part : part + 1] if self.template.of_sensor else row

    def _body(self, texts: Sequence[str], time: str) -> bytes:
        return (self._pattern % ((time, *texts) if self.timed else tuple(texts))).encode()

    def _time(self, time_us: int) -> str:
        if self.shape is Shape.SENML:
            return f"{time_us // 1_000_000}.{time_us % 1_000_000:06}"
        # Milliseconds as devices send them; microseconds where two readings would share one.
        return str(time_us if time_us % 1000 else time_us // 1000)


def _quoted(sensor: str) -> str:
    return json.dumps(sensor).replace("%", "%%")


def _members(sensors: Sequence[str]) -> str:
    return ", ".join(f"{_quoted(sensor)}: %s" for sensor in sensors)


def _senml(sensors: Sequence[str]) -> str:
    records = [f'"n": {_quoted(sensor)}, "v": %s' for sensor in sensors]
    return '[{"bt": %s, ' + "}, {".join(records) + "}]"


_PATTERNS = {
    Shape.SCALAR: lambda _: "%s",
    Shape.VALUE: lambda _: '{"timestamp": %s, "value": %s}',
    Shape.VALUES: lambda sensors: '{"ts": %s, "values": {' + _members(sensors) + "}}",
    Shape.FLAT: lambda sensors: '{"ts": %s, ' + _members(sensors) + "}",
    Shape.SENML: _senml,
}


def moment(time_us: int) -> str:
    """RFC 3339 with microseconds, UTC."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06}Z"
