"""`python main.py check`: the configuration, and every server that it names, tried out; a line each.

Exit status: 0 all right, 1 a server is away or lacks something, 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from config import ConfigError, Settings
from mqtt.options import MqttOptions
from ops import configuration, session
from ops.check_database import database_checks
from ops.check_redis import redis_checks
from ops.verify import Check
from retry import describe

_BROKER_SEC = 5.0
_MARKS = {True: "ok  ", False: "FAIL", None: "note"}

MqttOf = Callable[[Settings, str], MqttOptions]
Parts = Mapping[str, Callable[[Settings], object]]


def add_arguments(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], mqtt_of: MqttOf, parts: Parts
) -> None:
    """Teach the command line `check`. `parts`: what makes the options of each program, and refuses settings
    that do not go together.
    """

    def run(settings: Settings, chosen: argparse.Namespace) -> int:
        return main(settings, mqtt_of, parts, as_json=chosen.json)

    parser = commands.add_parser("check", help="validate the configuration and try the servers it names")
    parser.set_defaults(run=run, action="check")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def main(settings: Settings, mqtt_of: MqttOf, parts: Parts, *, as_json: bool) -> int:
    """Look at everything, also when something is wrong; the exit status."""

    def job() -> int:
        wrong = list(_of_configuration(settings, parts))
        told = [*wrong, *_of_servers(settings, mqtt_of)]
        if as_json:
            print(json.dumps([check._asdict() for check in told]))
        else:
            for check in told:
                print(f"{_MARKS[check.ok]}  {check.name:<14}{check.sentence}")
        if any(check.ok is False for check in wrong):
            return 2
        return 1 if any(check.ok is False for check in told) else 0

    return session.run(job)


def _of_configuration(settings: Settings, parts: Parts) -> Iterator[Check]:
    yield Check("configuration", True, f"{len(Settings.model_fields)} settings are well formed")
    for sentence in configuration.misspelled():
        yield Check("configuration", None, sentence)
    for name, options_of in parts.items():
        try:
            options_of(settings)
        except ConfigError as error:
            yield Check(name, False, f"it would not start: {error}")


def _of_servers(settings: Settings, mqtt_of: MqttOf) -> Iterator[Check]:
    unique = uuid.uuid4().hex[:12]
    yield from redis_checks(settings, unique)
    yield from database_checks(settings)
    if settings.mqtt_url is None:
        yield Check("mqtt", None, "MQTT_URL is not set: no bridge runs, and no alert is published")
    else:
        yield _broker(mqtt_of(settings, f"sluice-check-{unique}"))


def _broker(options: MqttOptions) -> Check:
    """Connect under a name that nobody else has, and leave again."""
    answered = threading.Event()
    answers: list[Any] = []

    def on_connect(_client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        answers.append(reason)
        answered.set()

    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        protocol=paho.MQTTv5 if options.version_5 else paho.MQTTv311,
    )
    host, port = options.address
    try:
        options.apply(client)
        client.on_connect = on_connect
        client.connect_timeout = _BROKER_SEC
        client.connect(host, port)
        client.loop_start()
        answered.wait(_BROKER_SEC)
        client.disconnect()
        client.loop_stop()
    except ConfigError as error:
        return Check("mqtt", False, str(error))
    except OSError as error:
        return Check("mqtt", False, f"{host}:{port} is not usable: {describe(error)}; check MQTT_URL")
    finally:
        client.reinitialise()  # of paho's calls only this one closes the sockets that wake its thread
    if not answers:
        sentence = f"{host}:{port} did not answer within {_BROKER_SEC:.0f} s; is it an MQTT broker?"
        return Check("mqtt", False, sentence)
    if answers[0].is_failure:
        return Check(
            "mqtt", False, f"{host}:{port} refused: {answers[0]}; check MQTT_USERNAME, MQTT_PASSWORD"
        )
    return Check(
        "mqtt", True, f"{host}:{port} takes this client, MQTT {'5' if options.version_5 else '3.1.1'}"
    )
