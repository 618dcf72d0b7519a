"""Messages between the broker and Redis: bounded queues, and who may be acknowledged when.

Two threads meet here. paho's puts messages in and tells of connections; the bridge's takes them out and
says what Redis has. All of it is under one lock, held for moments only.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from metrics import BridgeStats
from setting_types import WhenFull


@dataclass(slots=True, eq=False)
class Message:
    """One message from its arrival to its acknowledgement.

    `identity` is made from topic and payload: the same message is the same, however often it comes.
    `packet` is its id on the connection `era`; 0 for QoS 0, which nobody acknowledges. QoS 2 comes from
    subscriptions that somebody else has made under this name. `arrived_us`: microseconds since 1970.
    """

    topic: str
    payload: bytes
    packet: int
    arrived_us: int
    era: int
    identity: bytes
    qos: int = 1
    done: bool = False

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload) + OVERHEAD_BYTES


_SET_BACK_US = 1_000_000
OVERHEAD_BYTES = 400  # what a message weighs in memory besides its texts: 356 by tracemalloc


def identity_of(topic: str, payload: bytes) -> bytes:
    """16 bytes that two messages share when topic and payload are equal."""
    return blake2b(b"%b\0%b" % (topic.encode(), payload), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """`count`: most messages in each of the two queues. `size`: most bytes in both."""

    count: int
    size: int
    when_full: WhenFull


@dataclass(slots=True)
class _Connection:
    """What a connection owes: messages in the order of their arrival, not acknowledged yet."""

    client: object = None
    era: int = 0
    up: bool = False
    owed: deque[Message] = field(default_factory=deque)


class Intake:
    """Takes messages in, hands them out, and acknowledges in the order in which they came (MQTT 4.6).

    A connection that breaks voids the message ids. Where the session goes on, the broker sends again
    what was not acknowledged: what is still in hand here is recognised by its id and its content, and
    is not taken in twice. So is what an impatient broker repeats on the same connection. Where the
    session is lost, what is in hand still goes to Redis.

    `acknowledge` is called with the client, the id and the QoS, under the lock: never after its connection.
    """

    def __init__(
        self,
        bounds: Bounds,
        stats: BridgeStats,
        *,
        now_us: Callable[[], int],
        acknowledge: Callable[[object, int, int], object],
    ) -> None:
        self._bounds = bounds
        self._stats = stats
        self._now_us = now_us
        self._acknowledge = acknowledge
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._statuses: deque[Message] = deque()
        self._readings: deque[Message] = deque()
        self._size = 0
        self._last_us = 0
        self._open = True
        self._connection = _Connection()
        self._in_hand: dict[int, Message] = {}  # not acknowledged, by id; also of connections before
        self.overflowed = False  # a message was neither taken nor acknowledged; the broker has it

    # paho's thread

    def connected(self, client: object, *, resumed: bool) -> None:
        """A connection is there. `resumed`: in the session of the one before."""
        with self._lock:
            if not resumed:
                self._in_hand.clear()
            self._connection = _Connection(client, self._connection.era + 1, up=True)
            for message in list(self._in_hand.values()):
                if message.qos == 2:  # the broker sends such a one only once
                    self._owe_again(message)

    def lost(self) -> None:
        """No acknowledgement can be sent any more."""
        with self._lock:
            self._connection.up = False
            self._connection.client = None
            self._connection.owed.clear()  # it stays in hand, for when the broker sends it again

    def put(
        self, topic: str, payload: bytes, packet: int, *, repeated: bool, urgent: bool, qos: int = 1
    ) -> None:
        """A message has come. `repeated`: the broker says that it has sent it before."""
        identity = identity_of(topic, payload)
        with self._lock:
            if not self._open or not (self._connection.up or not packet):
                return  # not acknowledged: the broker keeps it
            if packet:
                known = self._in_hand.get(packet)
                if repeated and known and known.identity == identity:
                    self._owe_again(known)
                    return
                self._in_hand.pop(packet, None)  # the broker means another message by this id now
            message = Message(topic, payload, packet, self._moment(), self._connection.era, identity, qos)
            queue = self._statuses if urgent else self._readings
            if self._has_room(message, queue):
                self._keep(message, queue)

    def pass_over(self, packet: int, qos: int = 1) -> None:
        """A message that is not wanted: acknowledged in its turn."""
        with self._lock:
            connection = self._connection
            if packet and self._open and connection.up:
                known = self._in_hand.get(packet)
                if not (known and known.era == connection.era):  # else it is owed already
                    self._owe(Message("", b"", packet, 0, connection.era, b"", qos, done=True))
                    self._settle()

    # The bridge's thread

    def take(self, count: int, size: int, timeout: float, linger: float = 0.0) -> Sequence[Message]:
        """The next messages, statuses first: at most `count`, and about `size` bytes.

        Waits `timeout` seconds for one, and then `linger` for more. They stay in hand until `added`.
        """
        with self._filled:
            if not self._filled.wait_for(self._waiting, timeout):
                return ()
            if linger and self._open:
                self._filled.wait_for(lambda: self._waiting() >= count or not self._open, linger)
            taken: list[Message] = []
            for queue in (self._statuses, self._readings):
                while queue and len(taken) < count and size > 0:
                    message = queue.popleft()
                    size -= message.size
                    self._size -= message.size
                    taken.append(message)
            return taken

    def added(self, messages: Sequence[Message]) -> None:
        """Redis has confirmed these: acknowledge what is due. A crash before this sends them again."""
        with self._lock:
            for message in messages:
                message.done = True
                message.payload = b""
            self._settle()

    def close(self) -> None:
        """Take in nothing more. What is not acknowledged comes again, in the next session."""
        with self._filled:
            self._open = False
            self._filled.notify()

    def waiting(self) -> int:
        """Messages in the queues. Any thread may ask."""
        with self._lock:
            return self._waiting()

    def unacknowledged(self) -> int:
        with self._lock:
            return len(self._connection.owed)

    def relieved(self) -> bool:
        """Whether, after an overflow, half of the room is free again."""
        with self._lock:
            bounds = self._bounds
            fullest = max(len(self._readings), len(self._statuses))
            return 2 * fullest <= bounds.count and 2 * self._size <= bounds.size

    # Under the lock

    def _waiting(self) -> int:
        return len(self._statuses) + len(self._readings)

    def _moment(self) -> int:
        """The present, but never the same twice: two equal messages are two readings.

        A clock that is set back is followed: times of the future would not be stored.
        """
        now = self._now_us()
        self._last_us = now if now < self._last_us - _SET_BACK_US else max(self._last_us + 1, now)
        return self._last_us

    def _keep(self, message: Message, queue: deque[Message]) -> None:
        if message.packet:
            self._owe(message)
        queue.append(message)
        self._size += message.size
        if self._waiting() == 1 or self._waiting() % 64 == 0:  # a lingering taker wants to know of more
            self._filled.notify()

    def _owe(self, message: Message) -> None:
        self._connection.owed.append(message)
        self._in_hand[message.packet] = message

    def _owe_again(self, message: Message) -> None:
        """Once a connection: a second acknowledgement would hit the next message under this id."""
        self._stats.messages_recognised += 1
        if message.era != self._connection.era:
            message.era = self._connection.era
            self._owe(message)
            self._settle()

    def _has_room(self, message: Message, queue: deque[Message]) -> bool:
        """Whether it may go in: makes room, or does what is to be done where there is none.

        Bytes are short: readings make room for statuses, and never the other way.
        """
        bounds = self._bounds
        while True:
            if len(queue) >= bounds.count:
                victims = queue
            elif self._waiting() and self._size + message.size > bounds.size:
                victims = self._readings if self._readings or queue is self._readings else queue
            else:
                return True
            if bounds.when_full is WhenFull.STOP and message.packet:
                self.overflowed = True
                return False
            oldest = bounds.when_full is WhenFull.DROP_OLDEST
            by_wish = oldest or (bounds.when_full is WhenFull.DROP_NEWEST and victims is not queue)
            if not victims or not by_wish:  # QoS 0 too: no broker keeps it
                self._lose(message)
                if message.packet:
                    self._owe(message)
                    self._settle()
                return False
            victim = victims.popleft() if oldest else victims.pop()
            self._size -= victim.size
            self._lose(victim)
            self._settle()

    def _lose(self, message: Message) -> None:
        """It is counted, and acknowledged in its turn as if Redis had it."""
        self._stats.messages_dropped += 1
        message.done, message.payload = True, b""

    def _settle(self) -> None:
        """Acknowledge from the front, as far as Redis has confirmed."""
        connection = self._connection
        owed = connection.owed
        while owed and owed[0].done:
            message = owed.popleft()
            if self._in_hand.get(message.packet) is message:
                del self._in_hand[message.packet]
            self._acknowledge(connection.client, message.packet, message.qos)
            self._stats.messages_acknowledged += 1
