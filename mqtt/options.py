"""What a connection to an MQTT broker is made from: address, login, certificates, session, last will."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from config import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Will:
    """What the broker says for a client that has gone without a good-bye. Retained, QoS 1."""

    topic: str
    payload: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A session that outlives its connection: the broker keeps subscriptions, and what comes for them.

    `expiry_sec`: for how long; a broker of MQTT 3.1.1 has its own idea. `receive_maximum`: most messages
    that MQTT 5 may have on their way without an acknowledgement, 1 to 65,535.
    """

    expiry_sec: int
    receive_maximum: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttOptions:
    """Plain values of the settings that a connection depends on.

    `url`: `mqtt://user:password@host:port` or `mqtts://…`; `username` and `password` win over its own.
    `most_in_flight`: publications beyond it paho holds back; 0: whoever publishes bounds them.
    `refused_remedy`: what to do where the broker refuses a publication.
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
    session: Session | None = None
    will: Will | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (8883 if parts.scheme == "mqtts" else 1883)

    @property
    def login(self) -> tuple[str, str]:
        """User and password; empty where there is none."""
        parts = urlsplit(self.url)
        user = self.username or unquote(parts.username or "")
        return user, self.password or unquote(parts.password or "")

    def connect_arguments(self) -> dict[str, object]:
        """What `paho.Client.connect` needs for the session. paho's own default would wipe it at start."""
        if not self.version_5 or self.session is None:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self.session.expiry_sec
        properties.ReceiveMaximum = self.session.receive_maximum
        return {"clean_start": False, "properties": properties}

    def apply(self, client: paho.Client) -> None:
        """Give a new client login, certificates and will. Raises: `ConfigError`."""
        user, password = self.login
        if user:
            client.username_pw_set(user, password or None)
        if self.url.startswith("mqtts:"):
            client.tls_set_context(_tls(self))
        client.max_inflight_messages = self.most_in_flight
        if self.will:
            client.will_set(self.will.topic, self.will.payload, qos=1, retain=True)


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
