"""What simulated devices send, message by message: a generator without clock or broker. Pure.

Devices take turns. Everything is drawn from the random numbers that are passed in, in one order, so the
same seed gives the same messages.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import NamedTuple

from mqtt.feeds import Feed, Row
from mqtt.scenario import Fault, Flaw, Scenario, Unfit
from mqtt.shapes import Shape, Template, Voice
from schema import PayloadFormat
from topics import Topics

MOST_HELD = 100_000  # messages kept back at a time; beyond, they go at once: memory stays bounded


class Message(NamedTuple):
    """One publication, and what should become of it.

    `due`: seconds after the start. `names` and `row`: the sensors and values that it carries, all of them
    rows of the table but for the one at `spoilt`; empty where it makes none. `time_us`: the time that the
    payload gives, or None. `twin`: a number that it shares with its copy, or 0. `online`: of a status.
    """

    due: float
    topic: str
    payload: bytes
    device: str = ""
    names: tuple[str, ...] = ()
    row: Row = ()
    time_us: int | None = None
    spoilt: int = -1
    flaw: Flaw | None = None
    late: bool = False
    copy: bool = False
    twin: int = 0
    online: bool | None = None
    retain: bool = False

    @property
    def rows(self) -> int:
        """The rows that it makes if it is no copy of what is there already."""
        return len(self.names) - (self.spoilt >= 0)

    @property
    def recognisable(self) -> bool:
        """Whether a second delivery can be told from a second measurement: by the time in the payload."""
        return self.time_us is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """Who sends what. Device number n, from 0, is `prefix` and n + 1, and speaks template n modulo their
    number. `shape` takes the place of what the template's names suggest. `formats`: what is read on which
    topics, as those who read them are set, before what is the makers'.
    """

    devices: int
    templates: Sequence[str]
    shape: Shape | None = None
    prefix: str = "sim-"
    formats: Sequence[tuple[str, PayloadFormat]] = ()


class Plan:
    """The messages of a crowd under a scenario.

    `now`: seconds since the start at which a turn comes, by the turn's number; never falls. `start_us`:
    the start, microseconds since 1970. Raises `Unfit` for what does not go together.
    """

    def __init__(
        self,
        crowd: Crowd,
        scenario: Scenario,
        feed: Feed,
        rng: random.Random,
        now: Callable[[int], float],
        start_us: int,
    ) -> None:
        self._scenario = scenario
        self._feed = feed
        self._rng = rng
        self._now = now
        self._start_us = start_us
        self._devices = crowd.devices
        self._prefix = crowd.prefix
        self._voices = [Voice(Template(text), feed.sensors, crowd.shape) for text in crowd.templates]
        topics = Topics((), formats=crowd.formats)
        for voice in self._voices:
            voice.check(topics)
        self._flaws = [_Flaws(voice, scenario) for voice in self._voices]
        possible = {flaw for voice in self._voices for flaw in voice.flaws}
        for flaw, _ in scenario.bad:
            if flaw not in possible:
                raise Unfit(f"bad.{flaw} needs payloads with a time; those of --topics carry none")
        self._status = Template(scenario.status_topic) if scenario.status_topic else None
        if self._status and self._status.of_sensor:
            raise Unfit(
                f"status.topic {scenario.status_topic!r} names a sensor; it takes one that does not"
            )
        self._asleep = [0.0] * self._devices  # until when; inf: dead
        self._silent = [True] * self._devices  # has not said `online` since it began or came back
        self._last_us = [0] * self._devices  # so that no two readings of a device share a time
        self._alive = self._devices
        self._held: list[tuple[float, int, Message]] = []
        self._number = 0

    def __iter__(self) -> Iterator[Message | None]:
        """Messages in the order in which they are to be sent, without end, until every device is dead.

        None: every device is asleep, and none has a message. Ask again later.
        """
        turn = skipped = 0
        while self._alive:
            now = self._now(turn)
            yield from self._released(now)
            device = turn % self._devices
            if self._asleep[device] > now:
                skipped += 1
                if skipped % self._devices == 0:
                    yield None
            else:
                skipped = 0
                yield from self._turn(device, turn // self._devices, now)
            turn += 1
        yield from self._released(inf)

    def _released(self, now: float) -> Iterator[Message]:
        held = self._held
        while held and held[0][0] <= now:
            yield heapq.heappop(held)[2]

    def _turn(self, device: int, number: int, now: float) -> Iterator[Message]:
        """What a device does when it is its turn: says that it is there, falls ill, or sends."""
        scenario = self._scenario
        if self._silent[device]:
            self._silent[device] = False
            yield from self._said(device, now, online=True)
        if scenario.death and self._rng.random() < scenario.death:
            self._asleep[device] = inf
            self._alive -= 1
            yield from self._said(device, now, online=False)
            return
        if (seconds := self._drawn(scenario.restart)) is not None:
            self._asleep[device] = now + seconds
            self._silent[device] = True
            yield from self._said(device, now, online=False)
            return
        if (seconds := self._drawn(scenario.gap)) is not None:
            self._asleep[device] = now + seconds
            return
        more = self._drawn(scenario.burst)
        for extra in range(1 + round(more or 0)):
            yield from self._sent(device, number + extra, now)

    def _sent(self, device: int, number: int, now: float) -> Iterator[Message]:
        """One message of a device, and its copy: now, or kept back."""
        scenario, rng = self._scenario, self._rng
        if scenario.jitter:
            now += rng.uniform(0, scenario.jitter)
        message = self._message(device, number, now)
        copied = self._drawn(scenario.duplicate)
        if copied is not None:
            self._number += 1
            message = message._replace(twin=self._number)
        late = self._drawn(scenario.disorder)
        if late is not None and len(self._held) < MOST_HELD:
            message = message._replace(due=message.due + late, late=True)
        yield from self._hold_or_send(message, at_once=not scenario.jitter and not message.late)
        if copied is not None:
            copy = message._replace(due=message.due + copied, copy=True, late=False)
            yield from self._hold_or_send(copy, at_once=False)

    def _hold_or_send(self, message: Message, *, at_once: bool) -> Iterator[Message]:
        if at_once or len(self._held) >= MOST_HELD:
            yield message
            return
        self._number += 1
        heapq.heappush(self._held, (message.due, self._number, message))

    def _message(self, device: int, number: int, now: float) -> Message:
        chosen = device % len(self._voices)
        voice = self._voices[chosen]
        row_number, part = divmod(number, len(voice.parts))
        row = self._feed.row(device, row_number)
        time_us = self._time(device, now)
        name = f"{self._prefix}{device + 1}"
        topic, names, spoilt = voice.topic(device, name, part), voice.parts[part], -1
        flaw = self._flaws[chosen].drawn(self._rng)
        if flaw is None:
            payload = voice.payload(row, part, time_us)
        else:
            member = self._rng.randrange(len(names))
            payload, spoilt = voice.spoilt(row, part, time_us, flaw, member)
            if spoilt < 0:
                names = ()
        time = time_us if voice.timed and flaw is not Flaw.EMPTY else None
        # Not before its own time: jitter may have moved the device's last reading, and so this one, ahead.
        due = max(now, (time_us - self._start_us) / 1_000_000)
        known = voice.template.device(device, name)
        return Message(due, topic, payload, known, names, voice.cut(row, part), time, spoilt, flaw)

    def _time(self, device: int, now: float) -> int:
        """Whole milliseconds; where the device has used this one up, a microsecond more than its last."""
        time_us = self._start_us + int(now * 1000) * 1000
        self._last_us[device] = time_us = max(time_us, self._last_us[device] + 1)
        return time_us

    def _said(self, device: int, now: float, *, online: bool) -> Iterator[Message]:
        if self._status:
            name = f"{self._prefix}{device + 1}"
            topic, payload = self._status.topic(device, name), b"online" if online else b"offline"
            known = self._status.device(device, name)
            yield Message(now, topic, payload, known, online=online, retain=self._scenario.status_retain)

    def _drawn(self, fault: Fault) -> float | None:
        """How much, where it happens. Costs no random number where it never does."""
        if not fault.chance or self._rng.random() >= fault.chance:
            return None
        return self._rng.uniform(fault.least, fault.most)


class _Flaws:
    """Draws what is wrong with a payload of one voice, mostly nothing."""

    def __init__(self, voice: Voice, scenario: Scenario) -> None:
        possible = [(flaw, chance) for flaw, chance in scenario.bad if flaw in voice.flaws]
        self._steps = list(
            zip(accumulate(chance for _, chance in possible), (flaw for flaw, _ in possible), strict=True)
        )

    def drawn(self, rng: random.Random) -> Flaw | None:
        if not self._steps:
            return None
        drawn = rng.random()
        return next((flaw for step, flaw in self._steps if drawn < step), None)
