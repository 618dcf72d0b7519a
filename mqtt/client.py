"""The connection to an MQTT broker: made in the background, kept up, and what is said of its troubles."""

from __future__ import annotations

import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from config import ConfigError
from retry import FIRST_REPEAT_SEC, LONGEST_REPEAT_SEC, describe

KEEPALIVE_SEC = 20  # a broker that is frozen is noticed within twice this time
SHORTEST_PAUSE_SEC = 1
LONGEST_PAUSE_SEC = 30
_RECEIVE_MAXIMUM = 65_535  # where the broker names none (MQTT 5, 3.2.2.3.3)
_REASONS = 50  # kept to tell repeats; there are fewer, but a message may hold something that changes

_LOSSES = ("mqtt_disconnected", "mqtt_refused", "mqtt_unreachable")

_REMEDIES = {
    "Not authorized": "check MQTT_USERNAME and MQTT_PASSWORD, and what the broker allows this user",
    "Bad user name or password": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Bad authentication method": "check MQTT_USERNAME and MQTT_PASSWORD",
    "Unsupported protocol version": "set MQTT_PROTOCOL to the version that the broker speaks",
    "Client identifier not valid": "set MQTT_CLIENT_ID to one that the broker takes",
    "Session taken over": "give each worker a CONSUMER_NAME or MQTT_CLIENT_ID of its own",
    "Banned": "the broker has banned this client: ask whoever runs it",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttOptions:
    """Plain values of the settings that a connection depends on.

    `url`: `mqtt://user:password@host:port` or `mqtts://…`; `username` and `password` win over its own.
    `most_in_flight`: beyond, paho holds messages back; 0: whoever publishes bounds them. `refused_remedy`:
    what to do where the broker refuses a publication.
    """

    url: str = field(repr=False)
    client_id: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    version_5: bool = True
    ca_certificate: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    most_in_flight: int = 20
    refused_remedy: str = "check ALERT_TOPIC and what the broker allows this user"


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
    Raises, from `start`: `ConfigError` for certificates that cannot be used.
    """

    def __init__(
        self,
        options: MqttOptions,
        on_change: Callable[[], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._on_change = on_change
        self._clock = clock
        self._seldom = Seldom(clock)
        self._notes: deque[tuple[str, str, str]] = deque(maxlen=_REASONS)  # event, reason, remedy
        self._told_up = False
        self._next_client = 0.0
        self.acknowledged: deque[tuple[int, bool]] = deque()
        self.connected = False
        self.generation = 0
        self.receive_maximum = _RECEIVE_MAXIMUM
        self.client = self._made()

    def start(self) -> None:
        """Connect in the background. Returns at once, whether or not there is a broker."""
        parts = urlsplit(self._options.url)
        self.client.connect_async(
            parts.hostname or "", parts.port or (8883 if parts.scheme == "mqtts" else 1883), KEEPALIVE_SEC
        )
        self.client.loop_start()

    def tend(self) -> None:
        """Log what happened since; replace a client whose thread has ended. Raises what a bug raised."""
        failure = self.client.failure
        if failure is not None:
            # Bytes that are no MQTT end paho's thread: something else listens there. That is the world.
            if not isinstance(failure, MQTTException | OSError):
                raise failure
            self.connected = False
            if self._next_client <= self._clock():
                self._next_client = self._clock() + LONGEST_PAUSE_SEC
                self._note("mqtt_refused", describe(failure), "check that MQTT_URL names an MQTT broker")
                self.client = self._made()
                self.generation += 1
                self.start()
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

    def complain(self, event: str, reason: str, remedy: str) -> None:
        """A warning at growing intervals: for what the owner of the thread has met."""
        self._note(event, reason, remedy)

    def drop(self) -> None:
        """Take back what is not acknowledged: paho would send it again when it is connected again."""
        self.client.drop_out_messages()

    def stop(self, timeout: float) -> None:
        """Say good-bye to the broker and end paho's thread. Returns in `timeout` seconds at the latest."""
        self.connected = False  # so that this end of the connection is not told as a loss
        self.client.disconnect()
        self.drop()
        # paho's own stop waits for its thread without any limit, and that for a broker that is frozen.
        ending = threading.Thread(target=self.client.loop_stop, daemon=True)
        ending.start()
        ending.join(max(0.0, timeout))

    def _made(self) -> _Client:
        options = self._options
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            protocol=paho.MQTTv5 if options.version_5 else paho.MQTTv311,
        )
        parts = urlsplit(options.url)
        user = options.username or unquote(parts.username or "")
        password = options.password or unquote(parts.password or "")
        if user:
            client.username_pw_set(user, password or None)
        if parts.scheme == "mqtts":
            client.tls_set_context(_tls(options))
        client.max_inflight_messages = options.most_in_flight
        client.reconnect_delay_set(SHORTEST_PAUSE_SEC, LONGEST_PAUSE_SEC)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    # In paho's thread, from here on: flags and notes only.

    def _on_connect(
        self,
        _client: paho.Client,
        _data: Any,
        _flags: Any,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            words = str(reason)
            self._note("mqtt_refused", words, _REMEDIES.get(words, "see the broker's log"))
        else:
            self.receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
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
            self.connected = False
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


def _tls(options: MqttOptions) -> ssl.SSLContext:
    """Verifies the broker by the given authority, or by those of the system."""
    try:
        context = ssl.create_default_context(cafile=options.ca_certificate)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"MQTT_CA_CERTIFICATE is '{options.ca_certificate}', which cannot be used ({error}); "
            "it takes a file of certificates in PEM format"
        ) from None
    if options.certificate:
        try:
            context.load_cert_chain(options.certificate, options.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"MQTT_CERTIFICATE is '{options.certificate}', which cannot be used ({error}); it takes a "
                "file in PEM format whose key, without a passphrase, is in it or in MQTT_KEY"
            ) from None
    return context
