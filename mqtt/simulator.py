"""A plan published over MQTT: at its rate, through outages of the broker, counting what was accepted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from time import monotonic

import structlog
from paho.mqtt.enums import MQTTErrorCode

from mqtt.client import Link
from mqtt.options import MqttOptions
from mqtt.plan import Message
from mqtt.tally import Tally
from retry import StopFlag

TEND_SEC = 0.5
TOLD_SEC = 10.0  # between two words on how far it is
LOST_SEC = 5.0  # QoS 0: what has not left after this long never will
_LOOK_SEC = 0.05
_NAP_SEC = 0.001  # shorter rests cost more than they hold back: what is due meanwhile goes together


@dataclass(frozen=True, kw_only=True, slots=True)
class SendOptions:
    """How a plan is sent. `seconds` and `messages`: where it ends; inf: nowhere.

    `paced`: at the times of the plan, else as fast as the broker accepts. `window`: most messages that
    are sent and not acknowledged. `wait_sec`: how long the end waits for acknowledgements.
    """

    qos: int = 1
    paced: bool = True
    window: int = 100
    seconds: float = inf
    messages: float = inf
    wait_sec: float = 10.0


class Simulator:
    """One connection that publishes, driven by the thread that calls `run`. Holds `window` messages.

    A lost connection is made again in the background; messages without an acknowledgement are sent again
    on it. Raises, from `run`: `ConfigError` for certificates that cannot be used, and what a bug raised.
    """

    def __init__(
        self,
        mqtt: MqttOptions,
        options: SendOptions,
        tally: Tally,
        stop: StopFlag,
        *,
        on_accepted: Callable[[Message], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._tally = tally
        self._stop = stop
        self._on_accepted = on_accepted
        self._clock = clock
        self._awake = threading.Event()
        self._link = Link(mqtt, self._awake.set, clock)
        self._generation = 0
        self._cut: list[Message] = []  # in flight when the connection was lost
        self._in_flight: dict[int, Message] = {}  # paho's message id: sent, not acknowledged
        self._acknowledged_at = 0.0
        self._next_tend = 0.0
        self._next_word = 0.0
        self._began: float | None = None
        self._ended = 0.0

    @property
    def reached(self) -> bool:
        """Whether there ever was a connection."""
        return self._began is not None

    @property
    def elapsed(self) -> float:
        """Seconds since the first connection, up to the last acknowledgement once `run` is over."""
        if self._began is None:
            return 0.0
        return (self._ended or self._clock()) - self._began

    def run(self, plan: Iterable[Message | None]) -> None:
        """Publish until the plan, `seconds`, `messages` or a stop ends it, and wait for what is open."""
        self._link.start()
        try:
            self._await_connection()
            if self.reached:
                self._publish_all(plan)
                self._drain()
        finally:
            self._ended = self._clock()
            self._link.stop(2.0)

    def _await_connection(self) -> None:
        """Time starts with the first connection, so that a broker that is slow to come costs no turns."""
        ends = self._clock() + self._options.seconds
        while not self._link.connected and not self._stop.is_set() and self._clock() < ends:
            self._look(_LOOK_SEC)
        if self._link.connected:
            self._began = self._acknowledged_at = self._clock()
            self._next_word = self._began + TOLD_SEC

    def _publish_all(self, plan: Iterable[Message | None]) -> None:
        options, left = self._options, self._options.messages
        for message in plan:
            if left <= 0 or self._over():
                break
            if message is None:
                self._stop.pause(0.0 if options.paced else 0.001)
                continue
            if message.due >= options.seconds or not self._ready(message.due if options.paced else 0.0):
                break
            self._send(message)
            self._tally.publish(message)
            left -= 1

    def _over(self) -> bool:
        """Whether to stop, or, where the broker keeps the plan waiting, time is up all the same."""
        spare = self._options.wait_sec if self._options.paced else 0.0
        return self._stop.is_set() or self.elapsed >= self._options.seconds + spare

    def _ready(self, due: float) -> bool:
        """Wait until it is time, and there are a connection and room. False: do not send any more."""
        while (early := due - self.elapsed) > 0 or not self._room():
            if self._over():
                return False
            if early > 0:
                self._look(min(max(early, _NAP_SEC), _LOOK_SEC), wake=False)
            else:
                self._look(_LOOK_SEC)
        if self._link.acknowledged or self._clock() >= self._next_tend:
            self._look(0.0)
        return True

    def _room(self) -> bool:
        window = min(self._options.window, self._link.receive_maximum)
        return self._link.connected and len(self._in_flight) < window

    def _look(self, seconds: float, *, wake: bool = True) -> None:
        """Rest, but not past an acknowledgement where `wake`; then note what has come."""
        if seconds and wake:
            self._awake.wait(seconds)
            self._awake.clear()
        elif seconds:
            self._stop.pause(seconds)
        self._collect()
        self._note_outage()
        now = self._clock()
        if now >= self._next_tend:
            self._next_tend = now + TEND_SEC
            self._tend(now)

    def _collect(self) -> None:
        acknowledged = self._link.acknowledged
        while acknowledged:
            mid, taken = acknowledged.popleft()
            message = self._in_flight.pop(mid, None)
            if message is None:
                continue
            self._acknowledged_at = self._clock()
            if self._tally.settle(message, accepted=taken):
                self._on_accepted(message)

    def _note_outage(self) -> None:
        """Count what paho sends again. An outage lasts a second at least, so a look falls into each."""
        if not self._link.connected:
            if self._options.qos and not self._cut:
                self._cut = list(self._in_flight.values())
        elif self._cut:
            for message in self._cut:
                self._tally.resend(message)
            self._cut = []

    def _tend(self, now: float) -> None:
        self._link.tend()
        if self._generation != self._link.generation:
            self._generation = self._link.generation
            self._collect()  # what the old client got last, under its ids
            again, self._in_flight = list(self._in_flight.values()), {}
            for message in again:
                self._send(message)
        if not self._options.qos and now - self._acknowledged_at > LOST_SEC:
            self._in_flight.clear()  # they went down with a connection; the count says so
        if self.reached and now >= self._next_word:
            self._next_word = now + TOLD_SEC
            structlog.get_logger().info(
                "simulator_progress",
                published=self._tally.published,
                accepted=self._tally.accepted,
                in_flight=len(self._in_flight),
            )

    def _send(self, message: Message) -> None:
        """Give it to paho, which keeps it until it is acknowledged. Waits where message ids are used up."""
        options = self._options
        while True:
            sent = self._link.client.publish(
                message.topic, message.payload, qos=options.qos, retain=message.retain
            )
            if sent.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                break
            if self._stop.is_set():
                return  # counted as published and not accepted
            self._look(_LOOK_SEC)
        if not self._in_flight:
            self._acknowledged_at = self._clock()
        if options.qos or sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._in_flight[sent.mid] = message

    def _drain(self) -> None:
        """Wait for the acknowledgements of what is sent, for a while."""
        ends = self._clock() + self._options.wait_sec
        while self._in_flight and self._clock() < ends:
            self._look(_LOOK_SEC)
        self._collect()
        self._link.tend()
