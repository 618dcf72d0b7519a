"""What Redis has not confirmed is not acknowledged, nothing is lost, what is in hand comes once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metrics import BridgeStats
from mqtt.intake import OVERHEAD_BYTES, Bounds, Intake, Message, identity_of
from setting_types import WhenFull

PLENTY = 1 << 40
DROPPING = (WhenFull.DROP_OLDEST, WhenFull.DROP_NEWEST)


def bounds(count: int = 100, size: int = PLENTY, when_full: WhenFull = WhenFull.STOP) -> Bounds:
    return Bounds(count=count, size=size, when_full=when_full)


class Rig:
    """An intake, what it has acknowledged, and a clock that goes as the test says."""

    def __init__(self, wanted: Bounds | None = None) -> None:
        self.stats = BridgeStats()
        self.acks: list[tuple[object, int]] = []
        self.levels: list[int] = []  # the QoS of each
        self.now_us = 1_000
        self.intake = Intake(
            wanted or bounds(),
            self.stats,
            now_us=lambda: self.now_us,
            acknowledge=self._acknowledged,
        )
        self.intake.connected("first", resumed=False)

    def _acknowledged(self, client: object, packet: int, qos: int) -> None:
        self.acks.append((client, packet))
        self.levels.append(qos)

    def put(
        self, payload: bytes, packet: int, *, repeated: bool = False, urgent: bool = False, topic: str = "t"
    ) -> None:
        self.intake.put(topic, payload, packet, repeated=repeated, urgent=urgent)

    def take(self, count: int = 100, size: int = PLENTY) -> Sequence[Message]:
        return self.intake.take(count, size, 0.0)

    def payloads(self) -> list[bytes]:
        """What is taken out now, all of it."""
        return [message.payload for message in self.take()]


def test_a_message_is_acknowledged_when_redis_has_confirmed_it_and_not_before() -> None:
    rig = Rig()
    rig.put(b"1", 7)
    batch = rig.take()
    assert [(message.topic, message.payload) for message in batch] == [("t", b"1")]
    assert rig.acks == []
    rig.intake.added(batch)
    assert rig.acks == [("first", 7)]
    assert rig.stats.messages_acknowledged == 1
    assert rig.intake.unacknowledged() == 0


def test_acknowledgements_keep_the_order_of_arrival_whatever_is_added_first() -> None:
    rig = Rig()
    for packet in (3, 1, 2):
        rig.put(b"%d" % packet, packet)
    first, second, third = rig.take(1), rig.take(1), rig.take(1)
    rig.intake.added(third)
    rig.intake.added(second)
    assert rig.acks == []
    rig.intake.added(first)
    assert [packet for _, packet in rig.acks] == [3, 1, 2]


def test_a_status_overtakes_readings_but_not_in_the_order_of_acknowledgements() -> None:
    rig = Rig()
    rig.put(b"reading", 1)
    rig.put(b"status", 2, urgent=True)
    status = rig.take(1)
    assert [message.payload for message in status] == [b"status"]
    rig.intake.added(status)
    assert rig.acks == []
    rig.intake.added(rig.take())
    assert [packet for _, packet in rig.acks] == [1, 2]


def test_a_message_of_qos_0_is_taken_and_never_acknowledged() -> None:
    rig = Rig()
    rig.put(b"1", 0)
    rig.intake.added(rig.take())
    assert (rig.acks, rig.stats.messages_acknowledged) == ([], 0)


def test_what_is_passed_over_is_acknowledged_in_its_turn() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    rig.intake.pass_over(2)
    rig.intake.pass_over(0)
    assert rig.acks == []
    rig.intake.added(rig.take())
    assert [packet for _, packet in rig.acks] == [1, 2]


def test_what_was_confirmed_while_away_is_acknowledged_as_soon_as_it_comes_again() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    batch = rig.take()
    rig.intake.lost()
    rig.intake.added(batch)
    rig.intake.connected("second", resumed=True)
    rig.put(b"1", 1, repeated=True)
    assert rig.acks == [("second", 1)]
    assert rig.payloads() == []


@pytest.mark.parametrize("confirmed", ["before the break", "while away", "after the return"])
def test_what_comes_again_while_it_is_in_hand_is_added_once(confirmed: str) -> None:
    rig = Rig()
    rig.put(b"front", 1)  # keeps the second from being acknowledged
    rig.put(b"1", 2)
    front, batch = rig.take(1), rig.take(1)
    if confirmed == "before the break":
        rig.intake.added(batch)
    rig.intake.lost()
    if confirmed == "while away":
        rig.intake.added(batch)
    rig.intake.connected("second", resumed=True)
    rig.put(b"front", 1, repeated=True)
    rig.put(b"1", 2, repeated=True)
    assert rig.payloads() == []
    if confirmed == "after the return":
        rig.intake.added(batch)
    assert rig.acks == []
    rig.intake.added(front)
    assert rig.acks == [("second", 1), ("second", 2)]
    assert rig.stats.messages_recognised == 2


def test_what_comes_again_on_the_same_connection_is_added_and_acknowledged_once() -> None:
    """Some brokers send again what is not acknowledged for a while. A second acknowledgement could hit
    the next message under this id, which Redis has never seen.
    """
    rig = Rig()
    rig.put(b"1", 1)
    rig.put(b"1", 1, repeated=True)
    batch = rig.take()
    rig.put(b"1", 1, repeated=True)
    rig.intake.pass_over(2)
    rig.intake.pass_over(2)
    assert len(batch) == 1
    assert rig.payloads() == []
    rig.intake.added(batch)
    assert [packet for _, packet in rig.acks] == [1, 2]
    rig.put(b"1", 1)
    assert rig.payloads() == [b"1"]


def test_a_broker_may_be_impatient_on_the_second_connection_too() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    for _ in range(3):
        rig.put(b"1", 1, repeated=True)
    rig.intake.added(rig.take())
    assert rig.acks == [("second", 1)]


def test_nothing_is_acknowledged_between_two_connections() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    batch = rig.take()
    rig.intake.lost()
    rig.intake.added(batch)
    assert rig.acks == []
    rig.intake.connected("second", resumed=True)
    assert rig.acks == []  # it is not known yet whether the broker means the same by 1


def test_an_equal_message_under_a_new_id_is_another_message() -> None:
    rig = Rig()
    rig.put(b"21.5", 1)
    rig.put(b"21.5", 2)
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"21.5", 3)
    assert rig.payloads() == [b"21.5"] * 3


def test_an_id_that_the_broker_uses_anew_is_another_message() -> None:
    rig = Rig()
    rig.put(b"21.5", 1)
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"21.5", 1)  # not said to be a repeat: the broker has given up the one before
    rig.put(b"other", 2, repeated=True)
    assert rig.payloads() == [b"21.5", b"21.5", b"other"]


def test_an_id_used_anew_is_another_message_also_when_there_was_no_room_for_it_at_first() -> None:
    rig = Rig(bounds(count=1))
    rig.put(b"21.5", 1)
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"21.5", 1)
    assert rig.intake.overflowed
    rig.take()
    rig.intake.lost()
    rig.intake.connected("third", resumed=True)
    rig.put(b"21.5", 1, repeated=True)
    assert rig.payloads() == [b"21.5"]


def test_a_broker_that_confuses_its_ids_harms_nobody() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    rig.put(b"2", 1)
    batch = rig.take()
    rig.intake.added(batch)
    assert [message.payload for message in batch] == [b"", b""]  # both were added, and are let go of
    assert [packet for _, packet in rig.acks] == [1, 1]


def test_an_id_that_was_acknowledged_means_nothing_any_more() -> None:
    """The broker may have used it for an equal message that got lost on its way."""
    rig = Rig()
    rig.put(b"21.5", 1)
    rig.intake.added(rig.take())
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"21.5", 1, repeated=True)
    assert rig.payloads() == [b"21.5"]


@pytest.mark.parametrize("topic", ["t", "u"])
def test_an_id_with_another_content_is_another_message(topic: str) -> None:
    rig = Rig()
    rig.put(b"1", 1)
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"1" if topic == "u" else b"2", 1, repeated=True, topic=topic)
    assert len(rig.take()) == 2


def test_after_a_lost_session_what_is_in_hand_is_added_and_ids_mean_nothing() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    batch = rig.take()
    rig.put(b"2", 2)
    rig.intake.lost()
    rig.intake.connected("second", resumed=False)
    rig.intake.added(batch)
    rig.put(b"1", 1, repeated=True)  # of a session of which nothing is known here
    assert rig.payloads() == [b"2", b"1"]
    assert rig.acks == []


def test_what_a_broken_connection_still_brings_is_left_to_the_broker() -> None:
    rig = Rig()
    rig.intake.lost()
    rig.put(b"1", 1)
    rig.intake.pass_over(2)
    rig.put(b"qos 0", 0)  # this one nobody would send again
    assert rig.payloads() == [b"qos 0"]
    assert rig.acks == []


def test_after_closing_nothing_more_is_taken_in_and_the_rest_comes_out() -> None:
    rig = Rig()
    rig.put(b"1", 1)
    rig.intake.close()
    rig.put(b"2", 2)
    rig.put(b"3", 0)
    rig.intake.pass_over(4)
    batch = rig.take()
    assert [message.payload for message in batch] == [b"1"]
    rig.intake.added(batch)
    assert [packet for _, packet in rig.acks] == [1]


def test_a_batch_is_bounded_by_count_and_about_by_bytes() -> None:
    rig = Rig()
    for packet in range(1, 11):
        rig.put(b"x" * 999, packet)
    assert len(rig.take(count=3)) == 3
    assert len(rig.take(size=1 + (OVERHEAD_BYTES + 1000))) == 2  # the one that reaches the limit is in
    assert len(rig.take(size=1)) == 1
    assert rig.intake.waiting() == 4


def test_stopping_leaves_to_the_broker_what_finds_no_room() -> None:
    rig = Rig(bounds(count=2))
    for packet in (1, 2, 3):
        rig.put(b"%d" % packet, packet)
    rig.put(b"qos 0", 0)  # which the broker cannot keep
    rig.put(b"status", 4, urgent=True)  # has a queue of its own
    assert rig.intake.overflowed
    assert rig.stats.messages_dropped == 1
    assert not rig.intake.relieved()
    rig.intake.added(rig.take())
    assert [packet for _, packet in rig.acks] == [1, 2, 4]
    assert rig.intake.relieved()
    rig.intake.lost()
    rig.intake.connected("second", resumed=True)
    rig.put(b"3", 3, repeated=True)
    assert rig.payloads() == [b"3"]


@pytest.mark.parametrize(
    ("when_full", "kept"),
    [(WhenFull.DROP_OLDEST, [b"3", b"4"]), (WhenFull.DROP_NEWEST, [b"1", b"2"])],
)
def test_what_is_dropped_is_counted_and_acknowledged_in_its_turn(
    when_full: WhenFull, kept: list[bytes]
) -> None:
    rig = Rig(bounds(count=2, when_full=when_full))
    rig.put(b"status", 9, urgent=True)
    for packet in (1, 2, 3, 4):
        rig.put(b"%d" % packet, packet)
    assert rig.stats.messages_dropped == 2
    assert rig.acks == []
    assert not rig.intake.overflowed
    batch = rig.take()
    assert [message.payload for message in batch] == [b"status", *kept]
    rig.intake.added(batch)
    assert [packet for _, packet in rig.acks] == [9, 1, 2, 3, 4]


def test_dropping_the_oldest_makes_room_for_a_status_among_the_readings() -> None:
    """The bytes are shared: a status that comes is newer, and worth more, than the readings there."""
    rig = Rig(bounds(size=3 * (OVERHEAD_BYTES + 2), when_full=WhenFull.DROP_OLDEST))
    for packet in (1, 2, 3):
        rig.put(b"%d" % packet, packet)
    rig.put(b"s", 4, urgent=True)
    assert rig.payloads() == [b"s", b"2", b"3"]
    assert [packet for _, packet in rig.acks] == [1]


@pytest.mark.parametrize("when_full", list(WhenFull))
def test_a_message_larger_than_all_room_is_taken_when_nothing_else_is_there(when_full: WhenFull) -> None:
    rig = Rig(bounds(size=10, when_full=when_full))
    rig.put(b"x" * 5000, 1)
    assert [len(payload) for payload in rig.payloads()] == [5000]


def test_bytes_are_bounded_too_and_free_again_when_taken() -> None:
    rig = Rig(bounds(size=2 * (OVERHEAD_BYTES + 11)))
    for packet in (1, 2, 3):
        rig.put(b"x" * 10, packet)
    assert rig.intake.waiting() == 2
    assert rig.intake.overflowed
    rig.take()
    for packet in (4, 5, 6):
        rig.put(b"x" * 10, packet)
    assert rig.intake.waiting() == 2


def test_times_of_arrival_differ_and_increase_though_the_clock_goes_back() -> None:
    rig = Rig()
    times = []
    for packet, now in enumerate((1_000, 1_000, 400, 2_000, 1_999), start=1):
        rig.now_us = now
        rig.put(b"x", packet)
        times.append(rig.take()[0].arrived_us)
    assert times == [1_000, 1_001, 1_002, 2_000, 2_001]


def test_a_clock_that_is_set_back_is_followed_since_times_of_the_future_would_be_refused() -> None:
    rig = Rig()
    hour = 3_600_000_000
    rig.now_us = 2 * hour
    rig.put(b"x", 1)
    rig.now_us = hour
    rig.put(b"x", 2)
    assert [message.arrived_us for message in rig.take()] == [2 * hour, hour]


def test_a_message_of_qos_2_is_acknowledged_as_such_and_owed_again_on_a_new_connection() -> None:
    rig = Rig()
    rig.intake.put("t", b"1", 5, repeated=False, urgent=False, qos=2)
    batch = rig.take()
    rig.intake.lost()
    rig.intake.added(batch)
    assert rig.acks == []
    rig.intake.connected("second", resumed=True)  # which brings no PUBLISH of it
    assert (rig.acks, rig.levels) == ([("second", 5)], [2])


def test_an_identity_depends_on_topic_and_payload() -> None:
    assert identity_of("t", b"1") == identity_of("t", b"1")
    assert len({identity_of("t", b"1"), identity_of("t", b"2"), identity_of("t1", b""), b""}) == 4
    assert len(identity_of("t", b"1")) == 16


# The model


class Marked(bytes):
    """A payload that tells which publication it is: equal contents are told apart by the test alone."""

    serial: int


@dataclass(slots=True, eq=False)
class Sent:
    """One publication. `kind`: what the bridge makes of its topic."""

    serial: int
    kind: str
    payload: Marked
    qos: int


@dataclass(slots=True)
class Session:
    """What the broker keeps of one client: what waits, and what is on its way, by packet id."""

    waiting: deque[Sent] = field(default_factory=deque)
    on_its_way: dict[int, Sent] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)  # ids that this connection must repeat first


IDS = 4
SELDOM = st.sampled_from([False] * 5 + [True])
KINDS = st.sampled_from(["reading", "reading", "status", "unwanted"])
TOPICS = {"reading": "r", "status": "s"}


class Traffic(RuleBasedStateMachine):
    """A broker that keeps to MQTT, a Redis that confirms when it likes, and an intake between them."""

    @initialize(
        when_full=st.sampled_from(WhenFull),
        count=st.integers(1, 6),
        size=st.sampled_from([PLENTY, PLENTY, 4 * OVERHEAD_BYTES, 2 * OVERHEAD_BYTES, 1]),
    )
    def begin(self, when_full: WhenFull, count: int, size: int) -> None:
        self.bounds = Bounds(count=count, size=size, when_full=when_full)
        self.session = Session()
        self.sent: list[Sent] = []
        self.added: Counter[int] = Counter()
        self.given_up: set[int] = set()  # acknowledged although not added
        self.excused: set[int] = set()  # that nobody could have kept
        self.perhaps_twice: set[int] = set()  # whose acknowledgement got lost, in one way or another
        self.dropped = 0
        self.now_us = 1_000_000
        self.connections = 0
        self._start()

    def _start(self) -> None:
        """A process begins."""
        self.stats = BridgeStats()
        self.intake = Intake(
            self.bounds, self.stats, now_us=lambda: self.now_us, acknowledge=self._acknowledged
        )
        self.up = False
        self.last_place = -1
        self.acks_arrive = True
        self.batches: list[Sequence[Message]] = []
        self.inside: dict[int, str] = {}  # what was taken in, and not yet out
        self.homeless: set[int] = set()  # inside, and the broker has forgotten it
        self.turn: dict[int, int] = {}  # serial: its place in the order of arrival, over all connections
        self.times: list[tuple[int, int]] = []
        self.last_time = {"reading": 0, "status": 0}

    def _acknowledged(self, client: object, packet: int, _qos: int) -> None:
        assert self.up, "acknowledged without a connection"
        assert client == self.connections, "acknowledged to an earlier connection"
        assert packet in self.arrived, "an id that this connection has not brought, or twice"
        place, sent = self.arrived.pop(packet)
        assert place > self.last_place, "not in the order of arrival"
        self.last_place = place
        if sent.kind != "unwanted" and not self.added[sent.serial]:
            assert self.bounds.when_full in DROPPING, "acknowledged, but neither added nor dropped"
            self.given_up.add(sent.serial)
            self.inside.pop(sent.serial, None)
        if self.acks_arrive:
            assert self.session.on_its_way.pop(packet) is sent
        else:
            self.perhaps_twice.add(sent.serial)

    def _hand_over(self, sent: Sent, packet: int, *, repeated: bool) -> None:
        """One PUBLISH arrives."""
        if packet:
            self.arrived.setdefault(packet, (self.places, sent))
            self.places += 1
        if sent.kind == "unwanted":
            self.intake.pass_over(packet)
            return
        self.intake.overflowed = False
        before, dropped = self.stats.messages_recognised, self.stats.messages_dropped
        self.turn.setdefault(sent.serial, len(self.turn))
        self.intake.put(
            TOPICS[sent.kind], sent.payload, packet, repeated=repeated, urgent=sent.kind == "status"
        )
        if self.intake.overflowed:
            assert self.bounds.when_full is WhenFull.STOP
            self.arrived.pop(packet)
            del self.turn[sent.serial]
        elif self.stats.messages_recognised == before:
            assert sent.serial not in self.inside, "taken in twice"
            self.given_up.discard(sent.serial)
            self.inside[sent.serial] = sent.kind
            gone = self.inside.keys() - self._held()
            assert not gone or self.stats.messages_dropped > dropped
            self._check_victims(gone, sent)

    def _held(self) -> set[int]:
        """What is in the queues."""
        waiting = (*self.intake._statuses, *self.intake._readings)
        return {mark.serial for mark in self._marks(waiting)}

    def _check_victims(self, gone: set[int], came: Sent) -> None:
        """Whatever makes room: never a status for a reading, nor anything but as the policy says."""
        for serial in gone:
            kind = self.inside.pop(serial)
            self.given_up.add(serial)
            assert serial == came.serial or self.bounds.when_full in DROPPING
            assert kind == "reading" or came.kind == "status", "a status made room for a reading"

    # The broker

    @rule(messages=st.lists(st.tuples(KINDS, st.sampled_from([b"a", b"b"])), min_size=1, max_size=4))
    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        for kind, payload in messages:
            self.session.waiting.append(self._publication(kind, payload, qos=1))

    @precondition(lambda self: self.up)
    @rule(kind=st.sampled_from(["reading", "status"]), payload=st.sampled_from([b"a", b"b"]))
    def publish_at_most_once(self, kind: str, payload: bytes) -> None:
        self._hand_over(self._publication(kind, payload, qos=0), 0, repeated=False)

    def _publication(self, kind: str, payload: bytes, qos: int) -> Sent:
        marked = Marked(payload)
        marked.serial = len(self.sent)
        self.sent.append(Sent(len(self.sent), kind, marked, qos))
        return self.sent[-1]

    @precondition(lambda self: self.up)
    @rule(most=st.integers(1, 6))
    def deliver(self, most: int) -> None:
        """First what the connection before has left open, in the same order, then what is new."""
        session = self.session
        for _ in range(most):
            if session.again:
                packet = session.again.popleft()
                self._hand_over(session.on_its_way[packet], packet, repeated=True)
            else:
                for packet in self._send_new(1):
                    self._hand_over(session.on_its_way[packet], packet, repeated=False)

    def _send_new(self, most: int) -> list[int]:
        session = self.session
        free = sorted(set(range(1, IDS + 1)) - set(session.on_its_way))[:most]
        for packet, sent in zip(free, list(session.waiting), strict=False):
            session.on_its_way[packet] = sent
            session.waiting.popleft()
        return [packet for packet in free if packet in session.on_its_way]

    @precondition(lambda self: self.up and self.arrived and self.acks_arrive)
    @rule(choice=st.integers(0, IDS))
    def grow_impatient(self, choice: int) -> None:
        """Some brokers repeat on the same connection."""
        packet = sorted(self.arrived)[choice % len(self.arrived)]
        self._hand_over(self.session.on_its_way[packet], packet, repeated=True)

    @precondition(lambda self: self.up)
    @rule(seldom=SELDOM)
    def lose_acknowledgements(self, seldom: bool) -> None:
        """From here to the break of this connection."""
        self.acks_arrive = self.acks_arrive and not seldom

    @precondition(lambda self: self.up)
    @rule(in_vain=st.integers(0, 2))
    def break_off(self, in_vain: int = 0) -> None:
        """`in_vain`: messages that the broker still sends, and that never arrive."""
        self._send_new(in_vain)
        self.up = False
        self.intake.lost()
        for packet, sent in self.session.on_its_way.items():  # the last of the old connection's bytes
            if sent.kind == "unwanted":
                self.intake.pass_over(packet)
            else:
                self.intake.put("r", sent.payload, packet, repeated=False, urgent=False)

    @precondition(lambda self: self.up)
    @rule(seldom=SELDOM)
    def replace_the_connection(self, seldom: bool) -> None:
        """Another one is there before anybody has told the end of the one before."""
        if seldom:
            self.connect(keeps=True)

    @precondition(lambda self: not self.up)
    @rule(keeps=st.sampled_from([True, True, True, False]))
    def connect(self, keeps: bool) -> None:
        session = self.session
        if not keeps:
            lost = {sent.serial for sent in (*session.waiting, *session.on_its_way.values())}
            self.homeless |= lost & set(self.inside)
            self.homeless |= {m.serial for batch in self.batches for m in self._marks(batch)} & lost
            self.excused |= lost - self.homeless
            self.session = session = Session()
        session.again = deque(session.on_its_way)
        self.connections += 1
        self.arrived: dict[int, tuple[int, Sent]] = {}
        self.places = 0
        self.last_place = -1
        self.acks_arrive = True
        self.up = True
        self.intake.connected(self.connections, resumed=keeps)

    # The bridge and Redis

    @staticmethod
    def _marks(batch: Sequence[Message]) -> list[Marked]:
        return [message.payload for message in batch if isinstance(message.payload, Marked)]

    @rule(count=st.integers(1, 9), size=st.sampled_from([1, 2 * OVERHEAD_BYTES, PLENTY]))
    def take(self, count: int, size: int) -> None:
        batch = self.intake.take(count, size, 0.0)
        assert len(batch) <= count
        kinds = ["status" if message.topic == "s" else "reading" for message in batch]
        assert kinds == sorted(kinds, reverse=True), "a reading before a status"
        for message, kind, mark in zip(batch, kinds, self._marks(batch), strict=True):
            assert self.inside.pop(mark.serial) == kind
            assert message.arrived_us > self.last_time[kind]
            self.last_time[kind] = message.arrived_us
            self.times.append((self.turn[mark.serial], message.arrived_us))
            assert mark.serial not in self.given_up, "dropped, and yet there"
        if "reading" in kinds and self.bounds.when_full is WhenFull.STOP:
            assert "status" not in self.inside.values(), "a status has to wait for readings"
        if batch:
            self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule(choice=st.integers(0, 9))
    def confirm(self, choice: int) -> None:
        batch = self.batches.pop(choice % len(self.batches))
        for mark in self._marks(batch):
            self.added[mark.serial] += 1
            self.homeless.discard(mark.serial)
        self.intake.added(batch)

    @rule(seldom=SELDOM)
    def crash(self, seldom: bool) -> None:
        """SIGKILL: what is in hand is gone, and the broker sends it again, if it has it."""
        if not seldom:
            return
        in_hand = {mark.serial for batch in self.batches for mark in self._marks(batch)} | set(self.inside)
        self.excused |= {serial for serial in in_hand if not self.sent[serial].qos} | self.homeless
        self.perhaps_twice |= {sent.serial for sent in self.session.on_its_way.values()}
        self.dropped += self.stats.messages_dropped
        self._check_times()
        self._start()

    @rule(now_us=st.integers(1_000_000, 1_900_000))  # one set back further is followed
    def set_the_clock(self, now_us: int) -> None:
        self.now_us = now_us

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "intake"):
            return
        assert self.intake.waiting() <= 2 * self.bounds.count
        by_size = max(1, self.bounds.size // OVERHEAD_BYTES)
        assert self.intake.waiting() <= by_size
        if self.bounds.when_full is WhenFull.STOP:
            kinds = Counter(self.inside.values())
            assert max(kinds.values(), default=0) <= self.bounds.count
            assert self.intake.waiting() == len(self.inside)

    @invariant()
    def nothing_comes_twice_while_session_and_process_live(self) -> None:
        if hasattr(self, "added"):
            twice = {serial for serial, times in self.added.items() if times > 1}
            assert twice <= self.perhaps_twice
            assert not self.given_up & {serial for serial, times in self.added.items() if times} - (
                self.perhaps_twice
            )

    def _check_times(self) -> None:
        ordered = [moment for _, moment in sorted(self.times)]
        assert all(one < other for one, other in pairwise(ordered))

    def teardown(self) -> None:
        """In the end everything is added, or was dropped and counted."""
        if not hasattr(self, "intake"):
            return
        for _ in range(len(self.sent) + 2):
            if self.up:
                self.break_off()
            self.connect(keeps=True)
            while self.session.again:
                self.deliver(1)
            self.deliver(2)
            self.take(100, PLENTY)
            while self.batches:
                self.confirm(0)
        session = self.session
        assert not session.waiting
        assert not session.on_its_way, "never acknowledged"
        wanted = {sent.serial for sent in self.sent if sent.kind != "unwanted"}
        missing = wanted - {serial for serial, times in self.added.items() if times} - self.excused
        assert len(missing) <= self.dropped + self.stats.messages_dropped, "lost, and not counted"
        if self.bounds.when_full is WhenFull.STOP:
            assert not {serial for serial in missing if self.sent[serial].qos}
        self._check_times()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
