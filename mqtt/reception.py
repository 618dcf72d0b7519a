"""What paho's thread does for a bridge: takes in what the broker sends. Nothing here may wait."""

from __future__ import annotations

from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from metrics import BridgeStats
from mqtt.carried import Carried
from mqtt.intake import Intake
from mqtt.layout import Route, Router
from mqtt.subscriptions import Subscriptions


class Reception:
    """A bridge's `client.Listener`: puts messages into the intake.

    `status_topic`, `hand_on_unmatched` and `take_retained` as in `BridgeOptions`.
    """

    def __init__(
        self,
        intake: Intake,
        router: Router,
        subscriptions: Subscriptions,
        carried: Carried,
        stats: BridgeStats,
        *,
        status_topic: str,
        hand_on_unmatched: bool,
        take_retained: bool,
    ) -> None:
        self._intake = intake
        self._router = router
        self._subscriptions = subscriptions
        self._carried = carried
        self._stats = stats
        self._status_topic = status_topic
        self._hand_on_unmatched = hand_on_unmatched
        self._take_retained = take_retained

    def connected(self, client: paho.Client, resumed: bool, properties: Properties | None) -> None:
        self._intake.connected(client, resumed=resumed)
        self._subscriptions.connected(client, resumed, properties)
        if self._status_topic:
            client.publish(self._status_topic, b"online", qos=1, retain=True)

    def lost(self) -> None:
        self._subscriptions.lost()
        self._intake.lost()

    def on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        self._subscriptions.answered(mid, reasons)

    def on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        stats = self._stats
        stats.messages_received += 1
        packet = message.mid if message.qos else 0
        try:
            topic = message.topic
        except UnicodeDecodeError:  # which no broker should let through
            stats.messages_unmatched += 1
            self._intake.pass_over(packet, message.qos)
            return
        route = self._router.route(topic)
        if self._wants(message, topic, route):
            self._intake.put(
                topic,
                bytes(message.payload),
                packet,
                repeated=message.dup,
                urgent=route.status,
                qos=message.qos,
            )
        else:
            self._intake.pass_over(packet, message.qos)

    def _wants(self, message: paho.MQTTMessage, topic: str, route: Route) -> bool:
        """Whether it is to be carried; what is not is counted."""
        stats = self._stats
        if topic == self._status_topic:  # which tells of no device
            return False
        if self._subscriptions.is_copy(topic, bytes(message.payload), message.properties):
            stats.messages_copied += 1
            return False
        if message.retain and not (route.status or self._take_retained):
            stats.messages_retained += 1
            return False
        if not route.matched:
            stats.messages_unmatched += 1
            self._carried.example = topic
            return self._hand_on_unmatched
        return True
