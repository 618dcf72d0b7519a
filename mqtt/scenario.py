"""What goes wrong in a simulation, and how often: a TOML file read and checked. Pure but for the file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path


class Unfit(Exception):
    """Something that cannot be simulated. The message is complete: what, what it got, what it takes."""


class Flaw(StrEnum):
    """The kinds of bad payloads. Each makes one dead letter of its message."""

    NAN = "nan"
    NULL = "null"
    INFINITY = "infinity"
    TRUNCATED = "truncated"
    TEXT = "text"
    TIME = "time"
    FUTURE = "future"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Fault:
    """How often (0 to 1), and how much: seconds or messages, drawn evenly from `least` to `most`."""

    chance: float = 0.0
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What goes wrong. The default: nothing. Chances are per turn of a device or per message.

    `jitter`: seconds by which a turn may come later. `death`: chance that a turn is the device's last.
    `bad`: chances of bad payloads, together at most 1. `status_topic`: template of the topic on which
    devices say `online`, and their last will `offline`; empty: none do.
    """

    jitter: float = 0.0
    gap: Fault = Fault()
    duplicate: Fault = Fault()
    disorder: Fault = Fault()
    burst: Fault = Fault()
    restart: Fault = Fault()
    death: float = 0.0
    bad: tuple[tuple[Flaw, float], ...] = ()
    status_topic: str = ""
    status_retain: bool = False


# Table of the file: its amount's name, and the most that this takes.
_FAULTS = {
    "gap": ("seconds", 86_400.0),
    "duplicate": ("seconds", 3600.0),
    "disorder": ("seconds", 3600.0),
    "burst": ("messages", 10_000.0),
    "restart": ("seconds", 86_400.0),
}
_KEYS = ("jitter", *_FAULTS, "death", "bad", "status")
MOST_JITTER = 3600.0


def load(path: Path) -> Scenario:
    """The scenario in a file. Raises: `Unfit`, with the file, the key, what it got and what it takes."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unfit(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Unfit(f"{path} is not TOML: {error}") from None
    return read(document, str(path))


def read(document: Mapping[str, object], name: str) -> Scenario:
    """The scenario in a parsed file that is called `name`. Raises: `Unfit`."""
    _known(document, _KEYS, "", name)
    topic, retain = _status(document, name)
    return Scenario(
        jitter=_number(document, "jitter", f"{name}: jitter", MOST_JITTER, default=0.0),
        gap=_fault(document, "gap", name),
        duplicate=_fault(document, "duplicate", name),
        disorder=_fault(document, "disorder", name),
        burst=_fault(document, "burst", name),
        restart=_fault(document, "restart", name),
        death=_death(document, name),
        bad=_bad(document, name),
        status_topic=topic,
        status_retain=retain,
    )


def _fault(document: Mapping[str, object], key: str, name: str) -> Fault:
    if key not in document:
        return Fault()
    amount, most = _FAULTS[key]
    table = _table(document, key, ("chance", amount), name)
    chance = _number(table, "chance", f"{name}: {key}.chance", 1.0)
    where, raw = f"{name}: {key}.{amount}", table.get(amount)
    takes = f"it takes a number from 0 to {most:g}, or two in brackets: the least and the most"
    both = [_as_number(one, most) for one in (raw if isinstance(raw, list) else [raw, raw])]
    numbers = [one for one in both if one is not None]
    if len(both) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise Unfit(f"{where} {_got(raw)}; {takes}")
    return Fault(chance, *numbers)


def _death(document: Mapping[str, object], name: str) -> float:
    if "death" not in document:
        return 0.0
    return _number(_table(document, "death", ("chance",), name), "chance", f"{name}: death.chance", 1.0)


def _bad(document: Mapping[str, object], name: str) -> tuple[tuple[Flaw, float], ...]:
    if "bad" not in document:
        return ()
    table = _table(document, "bad", tuple(Flaw), name)
    found = tuple((Flaw(key), _number(table, key, f"{name}: bad.{key}", 1.0)) for key in table)
    total = sum(chance for _, chance in found)
    if total > 1 + 1e-9:
        raise Unfit(f"{name}: the chances in bad add up to {total:g}; together they take at most 1")
    return tuple((flaw, chance) for flaw, chance in found if chance)


def _status(document: Mapping[str, object], name: str) -> tuple[str, bool]:
    if "status" not in document:
        return "", False
    table = _table(document, "status", ("topic", "retain"), name)
    topic, retain = table.get("topic"), table.get("retain", False)
    if not isinstance(topic, str) or not topic:
        raise Unfit(
            f"{name}: status.topic {_got(topic)}; it takes a topic such as 'devices/{{device_id}}/status'"
        )
    if not isinstance(retain, bool):
        raise Unfit(f"{name}: status.retain {_got(retain)}; it takes true or false")
    return topic, retain


def _table(
    document: Mapping[str, object], key: str, keys: tuple[str, ...], name: str
) -> Mapping[str, object]:
    table = document[key]
    if not isinstance(table, dict):
        raise Unfit(f"{name}: {key} {_got(table)}; it takes a table [{key}] with {', '.join(keys)}")
    _known(table, keys, f"{key}.", name)
    return table


def _known(table: Mapping[str, object], keys: tuple[str, ...], prefix: str, name: str) -> None:
    for key in table:
        if key not in keys:
            raise Unfit(f"{name}: there is no key {prefix + key!r}; it takes {', '.join(keys)}")


def _number(
    table: Mapping[str, object], key: str, where: str, most: float, default: float | None = None
) -> float:
    if key not in table and default is not None:
        return default
    found = _as_number(table.get(key), most)
    if found is None:
        raise Unfit(f"{where} {_got(table.get(key))}; it takes a number from 0 to {most:g}")
    return found


def _as_number(raw: object, most: float) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if isfinite(raw) and 0 <= raw <= most else None


def _got(raw: object) -> str:
    return "is missing" if raw is None else f"is {str(raw)[:40]!r}"
