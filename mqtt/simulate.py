"""`python main.py simulate`: invented devices that publish to a broker (docs/simulator.md).

Exit status: 0 all was accepted, 1 something was not, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from math import inf, isfinite
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from config import ConfigError
from mqtt import feeds, scenario
from mqtt.options import MqttOptions
from mqtt.plan import Crowd, Message, Plan
from mqtt.scenario import Scenario, Unfit
from mqtt.shapes import Shape
from mqtt.simulator import SendOptions, Simulator
from mqtt.tally import Tally, manifest
from retry import StopFlag
from serving import stop_on_signals

_REMEDY = "check --topics and what the broker allows this user"


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `simulate`."""
    parser = commands.add_parser("simulate", help="publish what devices would: for tests and measurements")
    add = parser.add_argument
    add("--devices", type=_whole(1, 1_000_000), default=10, metavar="N", help="how many (10)")
    add("--rate", type=_amount, default=10.0, metavar="R", help="turns a second of all devices together, "
        "a message each (10); 0: as fast as the broker accepts")  # fmt: skip
    add("--topics", default="devices/{device_id}/telemetry", metavar="TEMPLATE[,…]",
        help="topics; devices speak them in turn (devices/{device_id}/telemetry)")  # fmt: skip
    add("--payload", type=Shape, choices=list(Shape), help="default: what goes with the names in the topic")
    add("--scenario", type=Path, metavar="FILE", help="TOML: what goes wrong, and how often (nothing)")
    values = parser.add_mutually_exclusive_group()
    values.add_argument("--data", type=Path, default=feeds.SAMPLE, metavar="FILE", help="CSV to replay")
    values.add_argument("--generated", action="store_true", help="random walks in place of recorded rows")
    add("--for", type=_amount, default=inf, dest="seconds", metavar="SECONDS", help="stop after this long")
    add("--messages", type=_whole(1, 10**12), default=inf, metavar="N", help="stop after this many")
    add("--seed", type=_whole(0, 2**63), metavar="S", help="the same seed makes the same plan")
    add("--qos", type=int, choices=(0, 1, 2), default=1, help="quality of service (1)")
    add("--window", type=_whole(1, 60_000), default=100, metavar="N", help="most unacknowledged (100)")
    add(
        "--wait", type=_amount, default=10.0, metavar="SECONDS", help="for acknowledgements at the end (10)"
    )
    add("--prefix", default="sim-", help="of device names (sim-)")
    add("--manifest", type=Path, metavar="FILE", help="write a JSON line for each reading accepted")
    add("--json", action="store_true", help="print the counts as one JSON object")
    add("--yes-load-this-broker", action="store_true", help="also where it is not on this machine")


def client_id() -> str:
    """A client id for this run alone: with MQTT_CLIENT_ID it would take the worker's connection."""
    return f"sluice-simulator-{socket.gethostname()[:100]}-{os.getpid()}"


def main(mqtt: MqttOptions, chosen: argparse.Namespace) -> int:
    """Run it. Raises: `ConfigError` for what is wrong before it starts."""
    _refuse_others(mqtt, allowed=chosen.yes_load_this_broker)
    seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
    tally, stop = Tally(), StopFlag(chosen.wait)
    options = SendOptions(
        qos=chosen.qos, paced=chosen.rate > 0, window=chosen.window,
        seconds=chosen.seconds, messages=chosen.messages, wait_sec=chosen.wait,
    )  # fmt: skip
    mqtt = replace(mqtt, most_in_flight=0, refused_remedy=_REMEDY)
    with contextlib.ExitStack() as stack:
        try:
            out = (
                stack.enter_context(chosen.manifest.open("w", encoding="utf-8"))
                if chosen.manifest
                else None
            )
            simulator = Simulator(mqtt, options, tally, stop, on_accepted=_writer(out))
            plan = _plan(chosen, seed, lambda: simulator.elapsed)
        except Unfit as unfit:
            raise ConfigError(str(unfit)) from None
        except OSError as error:
            raise ConfigError(f"--manifest {chosen.manifest} cannot be written: {error.strerror}") from None
        stop_on_signals(stop.set)
        simulator.run(plan)
    _report(chosen, simulator, tally, seed)
    return 0 if simulator.reached and not tally.not_accepted else 1


def _plan(chosen: argparse.Namespace, seed: int, elapsed: Callable[[], float]) -> Iterator[Message | None]:
    """The plan of this command line. Its time is turns at the rate; without a rate, that of the clock."""
    rng = random.Random(seed)
    feed = feeds.Generated(rng) if chosen.generated else feeds.recorded(chosen.data, chosen.devices)
    if not chosen.prefix or set(chosen.prefix) & set("/+#\0") or len(chosen.prefix) > 80:
        raise Unfit(f"--prefix is {chosen.prefix[:90]!r}; it takes 1 to 80 characters, none of / + #")
    templates = tuple(part.strip() for part in chosen.topics.split(",") if part.strip())
    if not templates:
        raise Unfit("--topics is empty; it takes templates such as devices/{device_id}/telemetry")
    crowd = Crowd(devices=chosen.devices, templates=templates, shape=chosen.payload, prefix=chosen.prefix)
    found = scenario.load(chosen.scenario) if chosen.scenario else Scenario()
    rate = chosen.rate
    now: Callable[[int], float] = (lambda turn: turn / rate) if rate else (lambda _: elapsed())
    return iter(Plan(crowd, found, feed, rng, now, time.time_ns() // 1_000_000 * 1000))


def _refuse_others(mqtt: MqttOptions, *, allowed: bool) -> None:
    host = urlsplit(mqtt.url).hostname or ""
    with contextlib.suppress(ValueError):
        allowed = allowed or ip_address(host).is_loopback
    if not allowed and host != "localhost":
        raise ConfigError(
            f"MQTT_URL names a broker at {host!r}, not on this machine; simulate loads a broker as hard as "
            "it can with readings that nobody measured: add --yes-load-this-broker where that is meant"
        )


def _writer(out: TextIO | None) -> Callable[[Message], None]:
    return (lambda message: out.writelines(manifest(message))) if out else lambda _: None


def _report(chosen: argparse.Namespace, simulator: Simulator, tally: Tally, seed: int) -> None:
    seconds = simulator.elapsed
    rate = tally.accepted / seconds if seconds else 0.0
    if chosen.json:
        figures = {"seed": seed, "seconds": round(seconds, 3), "messages_per_second": round(rate, 1)}
        print(json.dumps(tally.as_dict() | figures))
    else:
        print(*tally.lines(), "", sep="\n")
        print(f"{seconds:,.1f} s, {rate:,.0f} messages accepted a second, seed {seed}")
    if not simulator.reached:
        print("sluice: there was no connection to the broker, so nothing was published", file=sys.stderr)
    elif tally.not_accepted:
        print(
            f"sluice: {tally.not_accepted:,} messages were not accepted: {tally.refused:,} refused, "
            f"{tally.not_accepted - tally.refused:,} not acknowledged (the broker may have them)",
            file=sys.stderr,
        )


def _amount(text: str) -> float:
    with contextlib.suppress(ValueError):
        found = float(text)
        if isfinite(found) and 0 <= found <= 1e9:
            return found
    raise argparse.ArgumentTypeError(f"{text[:40]!r}; it takes a number from 0 to 1000000000")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; it takes a whole number from {least} to {most}")

    return read
