"""The connection to an MQTT broker: made in the background, kept up, and what is said of its troubles."""

from __future__ import annotations

import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqtt.options import MqttOptions
from retry import FIRST_REPEAT_SEC, LONGEST_REPEAT_SEC, describe

KEEPALIVE_SEC = 20  # a broker that is frozen is noticed within twice this time
SHORTEST_PAUSE_SEC = 1
LONGEST_PAUSE_SEC = 30
GOOD_BYE_SEC = 2.0  # that it may take: a broker that is frozen takes none
_NOTHING = "sluice/nothing"  # a filter that nobody subscribes to: the broker answers when asked to end it
_RECEIVE_MAXIMUM = 65_535  # where the broker names none (MQTT 5, 3.2.2.3.3)
_REASONS = 50  # kept to tell repeats; there are fewer, but a message may hold something that changes

_LOSSES = ("mqtt_disconnected", "mqtt_refused", "mqtt_unreachable")

_REMEDIES = {
    "Not authorized": "check MQTT_USERNAME and MQTT_PASSWORD, and what the broker allows this user",
    "Bad user name or password": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Bad authentication method": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Unsupported protocol version": "set MQTT_PROTOCOL to the version that the broker speaks",
    "Client identifier not valid": "set MQTT_CLIENT_ID to one that the broker takes",
    "Session taken over": "give each process a name of its own: BRIDGE_NAME, CONSUMER_NAME, MQTT_CLIENT_ID",
    "Banned": "the broker has banned this client: ask whoever runs it",
}


class Seldom:
    """Lets the same words through at once, and then at growing intervals: 10 s, doubled up to 10 min."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, float]] = {}  # words: when they may be said again, interval

    def may_say(self, words: str) -> bool:
        now = self._clock()
        again, interval = self._said.get(words, (now, 0.0))
        if now < again:
            return False
        calm = now - again > interval  # silent for longer than they were kept back: they are news again
        interval = FIRST_REPEAT_SEC if calm or not interval else min(2 * interval, LONGEST_REPEAT_SEC)
        if len(self._said) >= _REASONS:
            self._said.clear()
        self._said[words] = (now + interval, interval)
        return True


class Listener(Protocol):
    """Who receives. Every call comes from paho's thread, and must not block.

    Messages of QoS 1 are acknowledged by the listener, with `paho.Client.ack`, while `connected` holds.
    """

    def connected(self, client: paho.Client, resumed: bool, properties: Properties | None) -> None:
        """A connection is there. `resumed`: with the session of the one before."""

    def lost(self) -> None:
        """It is gone, and with it every message id."""

    def on_message(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None: ...

    def on_subscribe(
        self, client: paho.Client, data: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None: ...


class _Client(paho.Client):
    """paho's client, but an end of its thread is noticed: paho lets it die without a word."""

    failure: Exception | None = None

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # noqa: BLE001  kept for the owner, who raises it: see `Link.tend`
            self.failure = error
            return MQTTErrorCode.MQTT_ERR_UNKNOWN


class Link:
    """One connection, made again whenever it is lost, with 1 to 30 s between attempts.

    Belongs to one thread, its owner's, which calls `tend` about once a second: that logs what paho's
    own thread has met. The callbacks of paho's thread only take notes and call `on_change`.
    `acknowledged` holds what the broker has answered to publications: message id and whether it took it.
    `generation` grows when a new client took the place of one: what that had in hand is forgotten.
    `receive_maximum`: how many publications without an acknowledgement the broker takes.
    Raises: `ConfigError` for certificates that cannot be used.
    """

    def __init__(
        self,
        options: MqttOptions,
        on_change: Callable[[], None],
        clock: Callable[[], float] = monotonic,
        listener: Listener | None = None,
    ) -> None:
        self._options = options
        self._listener = listener
        self._on_change = on_change
        self._clock = clock
        self._seldom = Seldom(clock)
        self._notes: deque[tuple[str, str, str]] = deque(maxlen=_REASONS)  # event, reason, remedy
        self._told_up = False
        self._next_client = 0.0
        self._good_bye = threading.Event()
        self._good_bye_until = 0.0
        self.acknowledged: deque[tuple[int, bool]] = deque()
        self.connected = False
        self.generation = 0
        self.receive_maximum = _RECEIVE_MAXIMUM
        self.client = self._made()

    def start(self) -> None:
        """Connect in the background. Returns at once, whether or not there is a broker."""
        host, port = self._options.address
        self.client.connect_async(host, port, KEEPALIVE_SEC, **self._options.connect_arguments())  # type: ignore[arg-type]
        self.client.loop_start()

    def tend(self) -> None:
        """Log what happened since; replace a client whose thread has ended. Raises what a bug raised."""
        failure = self.client.failure
        if failure is not None:
            # Bytes that are no MQTT end paho's thread: something else listens there. That is the world.
            if not isinstance(failure, MQTTException | OSError):
                raise failure
            self._lost()
            if self._next_client <= self._clock():
                self._next_client = self._clock() + LONGEST_PAUSE_SEC
                self._note("mqtt_refused", describe(failure), "check that MQTT_URL names an MQTT broker")
                self._replace()
        while self._notes:
            event, reason, remedy = self._notes.popleft()
            if self._worth_saying(event, reason):
                _log(event, reason, remedy)

    def _worth_saying(self, event: str, reason: str) -> bool:
        """A loss at growing intervals, and a return after each loss that was told."""
        if event == "mqtt_connected":
            worth, self._told_up = not self._told_up, True
            return worth
        worth = self._seldom.may_say(f"{event} {reason}")
        if worth and event in _LOSSES:
            self._told_up = False
        return worth

    def hang_up(self) -> None:
        """Leave the broker for a while, with a good-bye: `call_again` comes back.

        A broker whose writing fails may leave unread what it was sent last, acknowledgements too, and
        send again what they are for. So it has to answer something before the connection is closed.
        """
        client, said = self.client, threading.Event()
        self._good_bye, self._good_bye_until = said, self._clock() + GOOD_BYE_SEC
        self._lost()
        client.on_connect = None
        client.on_message = None
        client.on_disconnect = lambda *_: said.set()

        def answered(*_: Any) -> None:
            client.disconnect()

        client.on_unsubscribe = answered
        if client.unsubscribe(_NOTHING)[0] is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            client.disconnect()
            said.set()

    def call_again(self) -> bool:
        """Connect after `hang_up`. False: not yet, the good-bye is still on its way."""
        if not self._good_bye.is_set() and self._clock() < self._good_bye_until:
            return False
        self.client.disconnect()
        self._replace()
        return True

    def _replace(self) -> None:
        self.client = self._made()
        self.generation += 1
        self.start()

    def _lost(self) -> None:
        self.connected = False
        if self._listener:
            self._listener.lost()

    def complain(self, event: str, reason: str, remedy: str) -> None:
        """A warning at growing intervals: for what the owner of the thread has met."""
        self._note(event, reason, remedy)

    def drop(self) -> None:
        """Take back what is not acknowledged: paho would send it again when it is connected again."""
        self.client.drop_out_messages()

    def stop(self, timeout: float) -> None:
        """Say good-bye to the broker and end paho's thread. Returns in `timeout` seconds at the latest."""
        if self._listener and self.connected:
            answered = threading.Event()
            self.client.on_unsubscribe = lambda *_: answered.set()
            self.client.unsubscribe(_NOTHING)
            answered.wait(timeout / 2)  # until the acknowledgements have been read: see `hang_up`
        self.connected = False  # so that this end of the connection is not told as a loss
        self.client.disconnect()
        self.drop()
        # paho's own stop waits for its thread without any limit, and that for a broker that is frozen.
        ending = threading.Thread(target=self.client.loop_stop, daemon=True)
        ending.start()
        ending.join(max(0.0, timeout))

    def _made(self) -> _Client:
        options = self._options
        lasting = {} if options.version_5 else {"clean_session": options.session is None}
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            protocol=paho.MQTTv5 if options.version_5 else paho.MQTTv311,
            manual_ack=self._listener is not None,
            **lasting,  # type: ignore[arg-type]
        )
        options.apply(client)
        client.reconnect_delay_set(SHORTEST_PAUSE_SEC, LONGEST_PAUSE_SEC)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if self._listener:
            client.on_message = self._listener.on_message
            client.on_subscribe = self._listener.on_subscribe
        return client

    # In paho's thread, from here on: flags and notes only.

    def _on_connect(
        self,
        client: paho.Client,
        _data: Any,
        flags: Any,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            words = str(reason)
            self._note("mqtt_refused", words, _REMEDIES.get(words, "see the broker's log"))
        else:
            self.receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
            if self._listener:
                self._listener.connected(client, flags.session_present, properties)
            self.connected = True
            self._note("mqtt_connected", "", "")

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles the error, which it does not pass on
        reason = describe(error) if error else "no answer"
        remedy = "check MQTT_URL, and that the broker runs"
        if isinstance(error, ssl.SSLError):
            remedy = "check MQTT_CA_CERTIFICATE, MQTT_CERTIFICATE and the name in the broker's certificate"
        self._note("mqtt_unreachable", reason, remedy)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _data: Any,
        flags: Any,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        words = str(reason)
        if flags.is_disconnect_packet_from_server and words in _REMEDIES:
            self._note("mqtt_refused", words, _REMEDIES[words])
        if self.connected:
            self._lost()
            self._note("mqtt_disconnected", words, "")

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._note("mqtt_publication_refused", str(reason), self._options.refused_remedy)
        self.acknowledged.append((mid, not reason.is_failure))
        self._on_change()

    def _note(self, event: str, reason: str, remedy: str) -> None:
        self._notes.append((event, reason, remedy))
        self._on_change()


def _log(event: str, reason: str, remedy: str) -> None:
    log = structlog.get_logger()
    words = {name: text for name, text in (("reason", reason), ("remedy", remedy)) if text}
    (log.info if event == "mqtt_connected" else log.warning)(event, **words)
