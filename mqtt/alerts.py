"""The outbox `alerts`, emptied over MQTT: each event published at least once, marked after its PUBACK.

A repeat carries the same id. Repeats come where a crash, a lost connection or an outage of the database
fell between a publication and its mark (docs/internals.md).
"""

from __future__ import annotations

import random
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import psycopg
import structlog
from paho.mqtt.enums import MQTTErrorCode

import database
import duties
from database import BoundedConnection
from mqtt import outbox
from mqtt.client import Link
from mqtt.messages import Event, payload_of, topic_of
from mqtt.options import MqttOptions
from mqtt.outbox import Item
from retry import Outage

DUTY = "publish"
MOST_IN_FLIGHT = 100
POLL_SEC = 1.0  # other workers' alerts are found by looking, so that poolers in transaction mode do
GATHER_SEC = 0.05  # acknowledgements of this long are marked together
# Cut off for this long, leave the duty to a worker that is not, and take back what paho would send later.
PATIENCE_SEC = 10.0
REFUSED_AGAIN_SEC = 60.0
MOST_REFUSED = 1000
SILENT_BROKER_SEC = 60.0
LONGEST_BACKOFF_SEC = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PublisherOptions:
    """Plain values of the settings that publishing depends on. Times in seconds.

    `holder` names this worker among those that may publish: unique. `lease_sec`: how long a worker that
    died keeps the others from publishing.
    """

    database_url: str = field(repr=False)
    mqtt: MqttOptions
    topic: str
    holder: str
    timeout_sec: float = 30.0
    lease_sec: float = 30.0


class AlertPublisher:
    """Publishes what is due, in one thread of a worker: one worker at a time does.

    In a thread, because a broker that is away must never slow ingest. It shares nothing with the loop
    but `wake`, and has a database connection of its own. It is a daemon thread: a broker or a database
    that is frozen cannot keep the process from ending. Raises, from the constructor: `ConfigError` for
    certificates that cannot be used.
    """

    def __init__(
        self,
        options: PublisherOptions,
        *,
        clock: Callable[[], float] = monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._rng = rng or random.Random()
        self._awake = threading.Event()
        self._link = Link(options.mqtt, self._awake.set, clock)
        self._generation = 0
        self._outage = Outage("postgresql", clock)
        self._connection: BoundedConnection | None = None
        self._deadline: float | None = None  # set by `stop`: when the thread must have ended
        self._holding = False
        self._next_take = 0.0
        self._last_connected = clock()
        self._in_flight: dict[int, Item] = {}  # paho's message id: what it stands for; not acknowledged
        self._handed_over_at = clock()
        self._to_mark: set[Item] = set()  # acknowledged, not marked
        self._refused: dict[uuid.UUID, float] = {}  # by the broker: when to try again
        self._emptied = False  # a look since the stop found nothing more to hand over
        self._thread = threading.Thread(target=self._run, name="alert-publisher", daemon=True)
        self.failed: Exception | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker now. Any thread may ask."""
        return self._link.connected

    def start(self) -> None:
        self._link.start()
        self._thread.start()

    def wake(self) -> None:
        """Something is due: called after the COMMIT that made it so. Costs no time; from any thread."""
        self._awake.set()

    def stop(self, timeout: float) -> None:
        """Publish what is due and can be in `timeout` seconds, then disconnect. Never takes longer.

        What is left stays due in the table, for whoever publishes next.
        """
        self._deadline = self._clock() + timeout
        self._awake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def raise_failure(self) -> None:
        """Raises what ended the thread, if anything did: a bug, which must end the worker too."""
        if self.failed is not None:
            raise self.failed

    def _run(self) -> None:
        try:
            attempts = 0
            while not self._finished():
                attempts = 0 if self._attempt() else attempts + 1
                self._rest(attempts)
            self._close()
        except Exception as bug:  # noqa: BLE001  the outermost of this thread: told, and raised by the worker
            where = [f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(bug.__traceback__)]
            structlog.get_logger().critical(
                "publisher_crashed", error=type(bug).__name__, where=where[-8:], left="due"
            )
            self._disconnect()
            self._link.stop(1.0)
            self.failed = bug

    def _attempt(self) -> bool:
        """One round; False when the database was away. What is due stays due in the table."""
        try:
            self._round()
        except psycopg.Error as error:
            if not database.is_world(error):
                raise
            self._outage.failed(error, stopping=self._deadline is not None)
            self._disconnect()
            return False
        return True

    def _round(self) -> None:
        self._link.tend()
        if self._generation != self._link.generation:
            self._generation = self._link.generation
            self._in_flight.clear()
        self._collect()
        self._mark()
        if self._may_publish():
            self._hand_over()

    def _rest(self, failures: int) -> None:
        """Wait for a reason to go on: a wake, an acknowledgement, time."""
        if failures:
            # A wake does not shorten this, or a busy worker would hammer a database that is away.
            ceiling = min(LONGEST_BACKOFF_SEC, 0.1 * 2.0 ** min(failures, 10))
            ends = self._clock() + self._rng.uniform(0.05, ceiling)
            while self._deadline is None and (left := ends - self._clock()) > 0:
                self._link.tend()
                self._awake.wait(min(left, POLL_SEC))
                self._awake.clear()
            if self._deadline is not None:
                threading.Event().wait(GATHER_SEC)
            return
        self._awake.wait(POLL_SEC)
        self._awake.clear()
        if self._in_flight:
            threading.Event().wait(GATHER_SEC)

    def _finished(self) -> bool:
        """Whether a stop was asked for, and nothing is left that could be done about it in time."""
        if self._deadline is None:
            return False
        if self._overdue():
            return True
        idle = self._emptied and not self._in_flight
        return not self._to_mark and (idle or not self._link.connected or not self._holding)

    def _overdue(self) -> bool:
        """Whether no time is left but what disconnecting needs. Asked by every wait for the database."""
        return self._deadline is not None and self._clock() > self._deadline - 0.5

    def _collect(self) -> None:
        """Sort out what the broker has answered since."""
        while self._link.acknowledged:
            mid, taken = self._link.acknowledged.popleft()
            item = self._in_flight.pop(mid, None)
            if item is None:
                continue
            self._handed_over_at = self._clock()
            if taken:
                self._to_mark.add(item)
            else:
                self._refused[item[0]] = self._clock() + REFUSED_AGAIN_SEC
        if self._in_flight and self._clock() - self._handed_over_at > SILENT_BROKER_SEC:
            self._link.complain(
                "mqtt_not_acknowledged", f"{len(self._in_flight)} publications", "see the broker's log"
            )

    def _mark(self) -> None:
        """Note in the table what the broker has. A crash before this COMMIT publishes it once more."""
        if not self._to_mark:
            return
        connection = self._begun()
        later = outbox.mark(connection, self._to_mark)
        self._commit(connection)
        marked = [item for item in self._to_mark if item[0] not in later]
        self._to_mark.difference_update(marked)
        if marked:
            structlog.get_logger().info(
                "alerts_published",
                created=sum(event is Event.CREATED for _, event in marked),
                resolved=sum(event is Event.RESOLVED for _, event in marked),
            )

    def _may_publish(self) -> bool:
        """Whether there is a connection, and the duty is this worker's; takes or renews it."""
        now = self._clock()
        if not self._link.connected:
            if now - self._last_connected > PATIENCE_SEC:
                self._let_go()
            return False
        self._last_connected = now
        if now >= self._next_take:
            connection = self._begun()
            held = duties.take(connection, DUTY, self._options.holder, self._options.lease_sec)
            self._commit(connection)
            self._next_take = now + self._options.lease_sec / (3 if held else 6)
            if self._holding and not held:
                self._forget()  # stopped or cut off for too long: another publishes these now
            self._holding = held
        return self._holding

    def _hand_over(self) -> None:
        """Give paho what is due and not yet in its hands. A crash after this publishes it once more."""
        now = self._clock()
        stopping = self._deadline is not None
        self._refused = {alert: again for alert, again in self._refused.items() if again > now}
        room = MOST_IN_FLIGHT - len(self._in_flight) - len(self._to_mark)
        if room <= 0 or len(self._refused) >= MOST_REFUSED:
            self._emptied = stopping and room > 0
            return
        connection = self._begun()
        alerts = outbox.due(connection, self._refused, MOST_IN_FLIGHT)
        self._commit(connection)
        known = self._to_mark.union(self._in_flight.values())
        new = [(alert, event) for alert in alerts for event in alert.due if (alert.id, event) not in known]
        self._emptied = stopping and not new
        if new and not self._in_flight:
            self._handed_over_at = now
        for alert, event in new[:room]:
            topic = topic_of(self._options.topic, alert)
            sent = self._link.client.publish(topic, payload_of(alert, event), qos=1)
            # Where the connection has just gone, paho keeps it and sends it on the next one. Where message
            # ids are used up, it takes nothing, and the event stays due.
            if sent.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                self._in_flight[sent.mid] = (alert.id, event)

    def _let_go(self) -> None:
        """Leave publishing to a worker that has a connection."""
        self._forget()
        if self._holding:
            connection = self._begun()
            duties.give_back(connection, DUTY, self._options.holder)
            self._commit(connection)
        self._holding = False
        self._next_take = 0.0

    def _forget(self) -> None:
        if self._in_flight:
            self._link.drop()
            self._in_flight.clear()

    def _close(self) -> None:
        try:
            if self._holding and not self._outage:
                self._let_go()
        except psycopg.Error as error:
            if not database.is_world(error):
                raise
            self._outage.failed(error, stopping=True)  # the lease runs out by itself
        self._disconnect()
        left = (self._deadline or 0.0) - self._clock()
        self._link.stop(max(0.0, left - 0.1))

    def _begun(self) -> BoundedConnection:
        """The connection, in a new transaction."""
        if self._connection is None or self._connection.closed:
            options = self._options
            self._connection = database.connect(options.database_url, options.timeout_sec, self._overdue)
        database.begin(self._connection, self._options.timeout_sec, self._overdue)
        return self._connection

    def _commit(self, connection: BoundedConnection) -> None:
        connection.commit()
        self._outage.over()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
