"""MQTT to streams: nothing is acknowledged to the broker before Redis has confirmed it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import redis
import structlog
from paho.mqtt import client as paho

import metrics
import redis_client
from config import ConfigError
from metrics import BridgeStats, Sample
from mqtt.carried import Carried
from mqtt.client import Link
from mqtt.filters import overlapping
from mqtt.intake import Bounds, Intake, Message
from mqtt.layout import Addition, Composer, Router
from mqtt.options import MqttOptions
from mqtt.reception import Reception
from mqtt.subscriptions import Subscriptions
from parse import Limits
from readiness import Readiness, redis_check
from redis_servers import RedisServers
from refusals import refusal, refused_connection
from retry import StopFlag, Stopping, describe
from setting_types import Layout
from signs import OK, Signs
from stream_writer import StreamWriter

IDLE_SEC = 0.2  # how soon a stop is noticed while nothing comes
BATCH_BYTES = 4_194_304
MOST_ENTRIES = 2000  # in one pipeline
REDIS_TIMEOUT_SEC = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeOptions:
    """Plain values of the settings that a bridge depends on. Times in seconds, sizes in bytes.

    `filters` without `$share`; `filters_chosen`: not made from templates, which share topics that no
    device has. `share`: name of the group of bridges, or empty. `status_topic`: where the
    bridge tells of itself, or empty. `reserved`: streams that are not for readings.
    """

    redis: RedisServers | str = field(repr=False)
    mqtt: MqttOptions
    filters: tuple[str, ...]
    filters_chosen: bool
    limits: Limits
    bounds: Bounds
    share: str = ""
    layout: Layout = Layout.SHARDS
    shards: int = 16
    maxlen: int = 0
    batch_size: int = 500
    linger_sec: float = 0.0
    hand_on_unmatched: bool = False
    take_retained: bool = False
    status_topic: str = ""
    reserved: tuple[str, ...] = ()
    shutdown_sec: float = 30.0
    stuck_sec: float = 60.0


class Bridge:
    """Carries what the broker sends into streams.

    `run` returns after `stop`, which any thread or signal handler may call. `health_check` and `stats` may
    be asked from any thread. Two threads: paho's (`Reception`) puts messages into the intake and never
    waits for Redis; this one takes them out, adds them, and acknowledges. Raises, from the constructor:
    `ConfigError`.
    """

    def __init__(
        self,
        options: BridgeOptions,
        stop: StopFlag,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._stop = stop
        self._clock = clock
        self._stats = BridgeStats()
        router = Router(options.limits, options.shards)
        self._composer = Composer(options.layout, options.limits, router, options.reserved)
        self._intake = Intake(options.bounds, self._stats, now_us=now_us, acknowledge=_acknowledge)
        # The last attempt begins when three quarters of the time to stop are used up (`StopFlag.overdue`).
        timeout = min(REDIS_TIMEOUT_SEC, max(1.0, 0.15 * options.shutdown_sec))
        self._goodbye_sec = min(2.0, 0.05 * options.shutdown_sec)
        self._client = redis_client.connect(options.redis, timeout, name=options.mqtt.client_id)
        self._writer = StreamWriter(
            self._client, stop, self._stats, options.maxlen, on_outage=self._tend_link
        )
        self._subscriptions = Subscriptions(
            options.mqtt, options.filters, options.share, lambda *words: self._link.complain(*words)
        )
        self._carried = Carried(self._stats, clock)
        reception = Reception(
            self._intake,
            router,
            self._subscriptions,
            self._carried,
            self._stats,
            status_topic=options.status_topic,
            hand_on_unmatched=options.hand_on_unmatched,
            take_retained=options.take_retained,
        )
        self._link = Link(options.mqtt, lambda: None, clock, reception)
        self._told_granted = self._ever_granted = False
        self._away = False  # left the broker until the queue has room again
        self._running = False
        self._readiness = Readiness([redis_check(options.redis)])

    def run(self) -> None:
        """The promise, in order: added, confirmed, acknowledged."""
        try:
            self._start()
            while not self._finished():
                self._stop.progress.made()
                self._tend()
                options = self._options
                batch = self._intake.take(
                    options.batch_size, BATCH_BYTES, IDLE_SEC, linger=options.linger_sec
                )
                if batch:
                    for entries in self._composed(batch):
                        self._writer.add(entries)  # returns when Redis has confirmed all
                        self._stats.entries_added += len(entries)
                    self._intake.added(batch)  # acknowledges
                    self._stats.messages_added += len(batch)
                    self._stats.batches_processed += 1
        except Stopping as stopping:
            structlog.get_logger().warning(
                "stopped_in_outage", left="unacknowledged", error=describe(stopping)
            )
        finally:
            self._close()

    def stop(self) -> None:
        """Finish what is in hand and end `run`. Returns at once; takes no lock and logs nothing."""
        self._stop.set()

    @property
    def stats(self) -> BridgeStats:
        """Counts since this bridge started."""
        return self._stats

    def health_check(self) -> dict[str, object]:
        """Whether the bridge runs and reaches its servers, and its counts. Never raises.

        Keys: `running`, `mqtt` (connected, and every subscription granted), `redis` (booleans), `waiting`
        (messages in the queues) and `stats`. Takes up to about 5 s when Redis does not answer.
        """
        checks = self._checks(fresh=True)
        return {
            "running": self._running,
            **{name: said == OK for name, said in checks.items()},
            "waiting": self._intake.waiting(),
            "stats": self._stats.as_dict(),
        }

    def signs(self) -> Signs:
        """What it shows of itself while it runs."""
        return Signs(
            progress=self._stop.progress,
            stuck_after_sec=self._options.stuck_sec + REDIS_TIMEOUT_SEC,
            started=lambda: self._ever_granted,
            stopping=self._stop.is_set,
            checks=self._checks,
            samples=self._samples,
            status=self._status,
        )

    def _checks(self, *, fresh: bool = False) -> dict[str, str]:
        broker = OK if self._subscriptions.granted else "not subscribed"
        return {
            **self._readiness.look(fresh=fresh),
            "mqtt": broker if self._link.connected else "not connected",
        }

    def _samples(self) -> Iterator[Sample]:
        yield from metrics.of_bridge(self._stats)
        yield metrics.BRIDGE_WAITING, (), self._intake.waiting()
        yield metrics.BRIDGE_BOUND, (), self._options.bounds.count
        yield metrics.BRIDGE_CONNECTED, (), int(self._link.connected and self._subscriptions.granted)

    def _status(self) -> str:
        where = "" if self._link.connected else "; off the broker"
        return f"{self._stats.messages_added:,} messages added, {self._intake.waiting():,} wait{where}"

    def _start(self) -> None:
        options = self._options
        log = structlog.get_logger()
        if options.maxlen:
            log.warning(
                "bridge_cuts_streams",
                maxlen=options.maxlen,
                loses="entries that no worker has read",
                remedy="leave BRIDGE_MAXLEN at 0: workers trim what they have acknowledged",
            )
        for one, other in overlapping(options.filters) if options.filters_chosen else ():
            log.warning(
                "bridge_filters_overlap",
                filters=[one, other],
                remedy="set BRIDGE_TOPICS to filters that share no topic; some brokers send twice",
            )
        self._refuse_login()
        subscriptions = self._subscriptions
        subscriptions.former = self._writer.note_filters(options.mqtt.client_id, subscriptions.wanted)
        self._running = True
        log.info(
            "bridge_started",
            filters=list(options.filters),
            share=options.share or None,
            layout=options.layout.value,
        )
        self._link.start()

    def _refuse_login(self) -> None:
        try:
            self._writer.wait_for_server()
        except redis.RedisError as error:
            raise ConfigError(refusal(error) or refused_connection(error)) from None

    def _finished(self) -> bool:
        if not self._stop.is_set():
            return False
        self._intake.close()
        return self._stop.overdue() or not self._intake.waiting()

    def _composed(self, batch: Sequence[Message]) -> Iterator[Sequence[Addition]]:
        """What the messages become, in parts: one message may be a thousand entries."""
        part: list[Addition] = []
        for message in batch:
            part += self._composer.compose(message)
            if len(part) >= MOST_ENTRIES:
                yield part
                part = []
        if part:
            yield part

    def _tend(self) -> None:
        self._tend_link()
        subscriptions = self._subscriptions
        if subscriptions.granted != self._told_granted:
            self._told_granted = subscriptions.granted
            if self._told_granted:
                self._ever_granted = True
                structlog.get_logger().info("mqtt_subscribed", filters=len(subscriptions.wanted))
        if subscriptions.former and subscriptions.former_gone:
            self._writer.forget_filters(self._options.mqtt.client_id, subscriptions.former)
            subscriptions.former = frozenset()
        self._carried.tell(self._intake.waiting())

    def _tend_link(self) -> None:
        """What the broker needs, also while Redis is away."""
        self._link.tend()
        self._link.acknowledged.clear()  # of the bridge's own status, which nobody waits for
        if self._intake.overflowed and not self._away:
            # What was passed over comes again only on a new connection.
            self._link.hang_up()
            self._away = True
            waits = "acknowledges nothing; waits for Redis, off the broker"
            self._carried.warn("bridge_queue_full", waits, self._intake.waiting())
        if self._away and self._intake.relieved():
            self._away = self._intake.overflowed = False
            self._link.call_again()

    def _close(self) -> None:
        """Say good-bye; the session stays at the broker, with what was not acknowledged."""
        self._intake.close()
        if self._options.status_topic and self._link.connected:
            told = self._link.client.publish(self._options.status_topic, b"offline", qos=1, retain=True)
            self._wait(told.is_published, self._goodbye_sec / 2)
        self._link.stop(self._goodbye_sec)
        self._link.tend()
        self._carried.tell(self._intake.waiting(), last=True)
        self._client.close()
        self._running = False
        # What still waits is not acknowledged: the broker has it.
        left = self._intake.waiting()
        structlog.get_logger().info("bridge_stopped", waiting=left, **self._stats.as_dict())

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        ends = self._clock() + seconds
        while not condition() and self._clock() < ends:
            self._stop.wait(0.0)


def _acknowledge(client: object, packet: int, qos: int) -> None:
    if isinstance(client, paho.Client):
        client.ack(packet, qos)
