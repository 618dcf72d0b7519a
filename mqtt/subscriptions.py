"""What a bridge subscribes to: asked for on each connection, and taken back where settings have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from mqtt.filters import Copies
from mqtt.intake import identity_of
from mqtt.options import MqttOptions

# Retained messages come with a subscription that is new, not with every connection (MQTT 5, 3.8.3.1).
_RETAINED_WHEN_NEW = 1
Complain = Callable[[str, str, str], None]


class Subscriptions:
    """The filters of a bridge at its broker. Called from paho's thread; any thread may ask `granted`.

    `filters` without `$share`; `share`: name of the group, or empty. `former`: filters of earlier runs in
    full, `$share/…` included, which the session still has. `complain` takes an event, a reason, a remedy.
    """

    def __init__(self, mqtt: MqttOptions, filters: Sequence[str], share: str, complain: Complain) -> None:
        self._mqtt = mqtt
        prefix = f"$share/{share}/" if share else ""
        self.wanted = tuple(prefix + one for one in filters)
        # Of a group's copies each bridge may get one: nobody could tell them.
        self._copies = Copies(() if share else filters)
        self._asked: dict[int, Sequence[str]] = {}  # paho's message id: filters of a SUBSCRIBE not answered
        self._refused = False
        self._had_all = False  # all were granted, on this connection or one before
        self._ended: int | None = None  # paho's message id of the UNSUBSCRIBE
        self.former: frozenset[str] = frozenset()
        self._shared = bool(share)
        self._complain = complain
        self._connections = 0
        self.granted = False  # all of them, on the present connection
        self.former_gone = False  # the broker has confirmed that `former` is taken back

    def connected(self, client: paho.Client, resumed: bool, properties: Properties | None) -> None:
        """Ask for all: a session that goes on has them already, and takes them again."""
        self._connections += 1
        self.granted = False
        self._tell_of_session(resumed, properties)
        if self._shared and getattr(properties, "SharedSubscriptionAvailable", 1) == 0:
            self._complain(
                "mqtt_subscription_refused",
                "the broker has no shared subscriptions",
                "leave BRIDGE_SHARE empty and run one bridge",
            )
            return
        self._copies.forget()
        if resumed and self._had_all and not self._mqtt.version_5:
            self.granted = True  # asking again would bring every retained message again (3.1.1, 3.8.4)
            return
        self._asked.clear()
        self._refused = False
        for number, filters in self._in_packets(properties):
            self._ask(client, number, filters)
        if self.former and not self.former_gone:
            client.on_unsubscribe = self._on_unsubscribe
            _, self._ended = client.unsubscribe(sorted(self.former))

    def is_copy(self, topic: str, payload: bytes, properties: Properties | None) -> bool:
        """Whether the broker has sent this message for another filter already."""
        if not self._copies.numbered:
            return False
        numbers: Sequence[int] = getattr(properties, "SubscriptionIdentifier", None) or ()
        return bool(numbers) and self._copies.is_copy(identity_of(topic, payload), numbers)

    def _in_packets(self, properties: Properties | None) -> Iterator[tuple[int, Sequence[str]]]:
        """Filters by SUBSCRIBE, with the number that its messages shall carry, or 0.

        Only filters that share topics have one: a property costs time with every message.
        """
        numbered = self._copies.numbered
        if not self._mqtt.version_5 or not getattr(properties, "SubscriptionIdentifierAvailable", 1):
            numbered = {}
        plain = [full for index, full in enumerate(self.wanted) if index not in numbered]
        if plain:
            yield 0, plain
        for index, number in numbered.items():
            yield number, (self.wanted[index],)

    def _ask(self, client: paho.Client, number: int, filters: Sequence[str]) -> None:
        if self._mqtt.version_5:
            options = SubscribeOptions(qos=1, retainHandling=_RETAINED_WHEN_NEW)
            numbering = None
            if number:
                numbering = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
                numbering.SubscriptionIdentifier = number
            _, mid = client.subscribe([(one, options) for one in filters], properties=numbering)
        else:
            _, mid = client.subscribe([(one, 1) for one in filters])
        if mid is not None:
            self._asked[mid] = filters

    def lost(self) -> None:
        self.granted = False

    def answered(self, mid: int, reasons: Sequence[ReasonCode]) -> None:
        """SUBACK: a reason for each filter of the SUBSCRIBE, in order."""
        filters = self._asked.pop(mid, ())
        refused = [(one, why) for one, why in zip(filters, reasons, strict=False) if why.is_failure]
        self._refused = self._refused or bool(refused)
        self.granted = self._had_all = not self._asked and not self._refused
        if refused:
            self._complain(
                "mqtt_subscription_refused",
                f"{', '.join(one for one, _ in refused)[:300]}: {refused[0][1]}",
                "check BRIDGE_TOPICS, and what the broker allows this user",
            )

    def _on_unsubscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: Sequence[ReasonCode], _properties: Any
    ) -> None:
        if mid == self._ended and not any(reason.is_failure for reason in reasons):
            self.former_gone = True

    def _tell_of_session(self, resumed: bool, properties: Properties | None) -> None:
        if not resumed and self._connections > 1:
            self._complain(
                "mqtt_session_lost",
                "the broker has forgotten this client; what came while it was away is lost",
                "make sessions persistent at the broker (docs/bridge.md)",
            )
        session = self._mqtt.session
        kept = getattr(properties, "SessionExpiryInterval", None)
        if session and kept is not None and kept < session.expiry_sec:
            self._complain(
                "mqtt_session_short",
                f"the broker keeps the session for {kept} s, BRIDGE_SESSION_EXPIRY_SEC asks for more",
                "raise the broker's limit; after an absence that is longer, messages are lost",
            )
