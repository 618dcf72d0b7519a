"""The connection to an MQTT broker: made in the background, kept up, and what is said of its troubles."""

from __future__ import annotations

import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqtt.notes import Notes
from mqtt.options import MqttOptions
from retry import describe

KEEPALIVE_SEC = 20  # a broker that is frozen is noticed within twice this time
LAST_WORD_SEC = 1.0
SOON_SEC = 5.0
OFTEN = 3
SHORTEST_PAUSE_SEC = 1
_NOBODYS = "sluice/nothing"  # a filter that is not subscribed to, to be answered
LONGEST_PAUSE_SEC = 30
_RECEIVE_MAXIMUM = 65_535  # where the broker names none (MQTT 5, 3.2.2.3.3)


_REMEDIES = {
    "Not authorized": "check MQTT_USERNAME and MQTT_PASSWORD, and what the broker allows this user",
    "Bad user name or password": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Bad authentication method": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Unsupported protocol version": "set MQTT_PROTOCOL to the version that the broker speaks",
    "Client identifier not valid": "set MQTT_CLIENT_ID to one that the broker takes",
    "Session taken over": "give each process a name of its own: BRIDGE_NAME, CONSUMER_NAME, MQTT_CLIENT_ID",
    "Banned": "the broker has banned this client: ask whoever runs it",
}


_UNANSWERED = (
    "see the broker's log; does it ask for TLS (mqtts://), or for a certificate (MQTT_CERTIFICATE)?"
)


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


def _ended(client: _Client) -> threading.Thread:
    """End a client that is not wanted any more, in a thread that lasts as long as that takes.

    paho's own stop waits for its thread without any limit, and that for a broker that is frozen. What is
    left then is the pair of sockets that wakes paho's thread: of paho's calls only this one closes it.
    """

    def end() -> None:
        client.loop_stop()
        client.reinitialise()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    return ending


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
        self._notes = Notes(clock)
        self._next_client = 0.0
        self.acknowledged: deque[tuple[int, bool]] = deque()
        self.connected = False
        self._away = False  # left on purpose: whatever still connects is not wanted
        self._connected_at = -inf
        self._short = 0  # connections in a row that ended soon
        self._answered = False  # CONNACK has come
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
        self._notes.tell()

    def hang_up(self) -> None:
        """Leave the broker for a while, with a good-bye: `call_again` comes back. Takes up to 1 s."""
        self._await_broker(LAST_WORD_SEC)
        self._away = True
        self._lost()
        self.client.disconnect()

    def call_again(self) -> None:
        """Connect after `hang_up`."""
        self._away = False
        self._replace()

    def _await_broker(self, timeout: float) -> None:
        """Wait until the broker has read all that was sent, acknowledgements too: it answers in order.

        Closing at once, with something unread, makes the kernel throw away what is on its way.
        """
        if self._listener and self.connected:
            answered = threading.Event()
            asked: int | None = None

            def heard(_client: paho.Client, _data: Any, mid: int, *_: Any) -> None:
                if asked is None or mid == asked:  # None: the answer was quicker than our noting it
                    answered.set()

            self.client.on_unsubscribe = heard
            _, asked = self.client.unsubscribe(_NOBODYS)
            answered.wait(timeout)

    def _replace(self) -> None:
        _ended(self.client)
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
        began = self._clock()
        self._await_broker(min(LAST_WORD_SEC, timeout / 2))
        self.connected, self._away = False, True  # so that this end of the connection is not told as a loss
        self.client.disconnect()
        self.drop()
        _ended(self.client).join(max(0.0, began + timeout - self._clock()))

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
            client.on_message = self._on_message
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
        self._answered = True
        if reason.is_failure:
            words = str(reason)
            self._note("mqtt_refused", words, _REMEDIES.get(words, "see the broker's log"))
        elif self._stale(client):
            client.disconnect()  # it was connecting when it was replaced, and nobody listens to it
        else:
            self._connected_at = self._clock()
            self.receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
            if self._listener:
                self._listener.connected(client, flags.session_present, properties)
            self.connected = True
            self._note("mqtt_connected", "", "")

    def _on_message(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        if self._listener and not self._stale(client):
            self._listener.on_message(client, data, message)

    def _stale(self, client: paho.Client) -> bool:
        return self._away or client is not self.client

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles the error, which it does not pass on
        reason = describe(error) if error else "no answer"
        remedy = "check MQTT_URL, and that the broker runs"
        if self._options.url.startswith("mqtts:"):
            remedy += " and speaks TLS on this port"
        if isinstance(error, ssl.SSLError):
            remedy = "check MQTT_CA_CERTIFICATE, MQTT_CERTIFICATE and the name in the broker's certificate"
        self._note("mqtt_unreachable", reason, remedy)

    def _on_disconnect(
        self,
        client: paho.Client,
        _data: Any,
        flags: Any,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._stale(client):
            return
        words = str(reason)
        if flags.is_disconnect_packet_from_server and words in _REMEDIES:
            self._note("mqtt_refused", words, _REMEDIES[words])
        if self.connected:
            self._lost()
            soon = self._clock() - self._connected_at < SOON_SEC
            self._short = self._short + 1 if soon else 0
            remedy = f"is another process connected as {self._options.client_id!r}? Names must be unique"
            self._note("mqtt_disconnected", words, remedy if self._short >= OFTEN else "")
        elif not self._answered:
            self._note("mqtt_refused", "closed before the broker answered", _UNANSWERED)
        self._answered = False

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._note("mqtt_publication_refused", str(reason), self._options.refused_remedy)
        self.acknowledged.append((mid, not reason.is_failure))
        self._on_change()

    def _note(self, event: str, reason: str, remedy: str) -> None:
        self._notes.add(event, reason, remedy)
        self._on_change()
