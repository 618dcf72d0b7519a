"""What `./run-standalone.sh` takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run-standalone.sh",
        description="Everything on this machine, started in order and stopped in order.",
    )
    for option, help_ in (
        ("--redis-url", "use this Redis or Valkey: redis://…, rediss://… or unix://…"),
        ("--database-url", "use this database: postgresql://…; it gets the migrations"),
        ("--mqtt-url", "use this MQTT broker: mqtt://… or mqtts://…; MQTT_… go with it"),
    ):
        parser.add_argument(option, type=_address, help=help_ + "; @FILE: what stands in this file")
    demo = parser.add_mutually_exclusive_group()
    demo.add_argument("--no-demo", action="store_true", help="leave out the simulated devices")
    demo.add_argument(
        "--demo",
        action="store_true",
        help="with servers of your own too: writes readings and rules there",
    )
    parser.add_argument("--for", dest="seconds", type=_seconds, help="end by itself after SECONDS")
    parser.add_argument(
        "--data", type=Path, default=ROOT / ".standalone", help="folder of the data (default .standalone)"
    )
    return parser.parse_args(given)


def _address(text: str) -> str:
    """Every user of a machine sees the arguments of its processes: an address with a password is better
    given as the name of a file.
    """
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text} names a file that cannot be read ({error})") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds
