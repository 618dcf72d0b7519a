"""`python main.py lag`: what the group has still to read and to acknowledge, and whether that is too much.

Exit status: 0 in order, 1 a limit is exceeded or Redis is not usable, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import redis

import redis_client
from config import Settings
from ops import backlog, lag_views, output, session
from ops.backlog import Backlog
from ops.lag_views import Look
from ops.quantities import finite
from retry import describe
from stream_glob import compiled

_UNKNOWN = float("inf")  # sorts before every number: what is not known may be any
_SORTED: dict[str, Callable[[Backlog], Any]] = {
    "lag": lambda one: _UNKNOWN if one.lag is None else one.lag,
    "age": lambda one: one.lag_sec,
    "pending": lambda one: one.pending,
    "idle": lambda one: one.idle_sec,
    "deliveries": lambda one: one.deliveries,
    "trimmed": lambda one: _UNKNOWN if one.trimmed_unread is None else one.trimmed_unread,
}
_LIMITS = {
    "lag": ("N", "more than N entries are unread"),
    "age": ("SEC", "the oldest unread entry is older (90, or 5m, 2h, 1d)"),
    "pending": ("N", "more than N entries are pending"),
    "idle": ("SEC", "an entry is pending without anything happening for longer"),
    "deliveries": ("N", "an entry was delivered more than N times"),
    "trimmed": ("N", "more than N entries were deleted before they were read"),
}
_IN_SECONDS = ("age", "idle")
_MOST_TOLD = 10


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `lag`."""
    parser = commands.add_parser("lag", help="show what is unread and pending, and whether it is too much")
    parser.set_defaults(run=main, action="lag")
    parser.add_argument("--stream", metavar="GLOB", help="only these streams")
    parser.add_argument(
        "--consumer", metavar="GLOB", help="only what these consumers have pending, and where they have any"
    )
    parser.add_argument("--sort", choices=(*_SORTED, "stream"), default="lag", help="largest first")
    parser.add_argument(
        "--top", type=_whole, default=20, metavar="N", help="the first N (default 20); 0: all"
    )
    parser.add_argument(
        "--watch", type=_pause, nargs="?", const=2.0, metavar="SEC", help="again and again, every 2 s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, a line for each look")
    for name, (what, when) in _LIMITS.items():
        kind = _seconds if name in _IN_SECONDS else _whole
        parser.add_argument(f"--max-{name}", type=kind, metavar=what, help=f"exit status 1 when {when}")


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)!r}; it takes a whole number from 0 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        found = finite(text, duration=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found < 0:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)}; it takes 0 or more seconds")
    return found


def _pause(text: str) -> float:
    found = _seconds(text)
    if not 0.1 <= found <= 86_400:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)}; it takes 0.1 to 86400 seconds")
    return found


def main(settings: Settings, chosen: argparse.Namespace) -> int:
    """Look once, or again and again until Ctrl-C; the exit status."""

    def job() -> int:
        with redis_client.connect(settings.redis_servers(), timeout_sec=30, name="sluice-lag") as client:
            if chosen.watch is None:
                return _look(client, settings, chosen)
            while True:
                _look_again(client, settings, chosen)
                sys.stdout.flush()
                time.sleep(chosen.watch)

    return session.run(job)


def _look_again(client: redis.Redis, settings: Settings, chosen: argparse.Namespace) -> None:
    """A look of `--watch`, which an outage of Redis does not end."""
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not chosen.json else ""
    try:
        found = _found(client, settings, chosen)
    except redis.RedisError as error:
        if not redis_client.is_world(error):
            raise
        session.complain(f"Redis is not usable: {describe(error)}; trying again")
        return
    print(clear, end="")
    _tell(client, settings, chosen, found)
    if not chosen.json:
        print()


def _look(client: redis.Redis, settings: Settings, chosen: argparse.Namespace) -> int:
    return 1 if _tell(client, settings, chosen, _found(client, settings, chosen)) else 0


def _found(client: redis.Redis, settings: Settings, chosen: argparse.Namespace) -> list[Backlog]:
    """The streams that were asked for."""
    wanted = chosen.stream
    if wanted is not None and not set(wanted) & set("*?[\\"):
        streams = [wanted.encode("utf-8", "surrogateescape")]
    else:
        streams = backlog.streams_of(
            client, settings.stream_pattern, settings.dead_letter_stream, settings.event_streams()
        )
        if wanted is not None:
            glob = compiled(wanted)
            streams = [name for name in streams if glob.fullmatch(name.decode("utf-8", "surrogateescape"))]
    if chosen.stream is not None and not streams:
        raise session.Refused(f"no stream that workers read matches {output.excerpt(wanted)!r}")
    found = list(backlog.read(client, settings.consumer_group_name, streams))
    if wanted is not None and not found:
        raise session.Refused(f"there is no stream {output.excerpt(wanted)!r}")
    return found if chosen.consumer is None else list(_of_consumers(found, chosen.consumer))


def _of_consumers(found: Iterable[Backlog], wanted: str) -> Iterator[Backlog]:
    glob = compiled(wanted)
    for one in found:
        held = {name: held for name, held in one.consumers.items() if glob.fullmatch(name)}
        if held:
            yield replace(one, consumers=held, pending=sum(some.pending for some in held.values()))


def _tell(
    client: redis.Redis, settings: Settings, chosen: argparse.Namespace, found: Sequence[Backlog]
) -> list[str]:
    """Print what was found, and on standard error what is too much. Answers the latter."""
    exceeded = list(_exceeded(client, settings, chosen, found))
    look = Look(
        group=settings.consumer_group_name,
        found=found,
        shown=_first(found, chosen.sort, chosen.top),
        alive=backlog.workers_alive(client, settings.consumer_group_name),
        exceeded=exceeded,
    )
    if chosen.json:
        print(json.dumps(lag_views.as_json(look)))
    else:
        lag_views.show(look)
    for sentence in exceeded[:_MOST_TOLD]:
        session.complain(sentence)
    if len(exceeded) > _MOST_TOLD:
        session.complain(f"and {len(exceeded) - _MOST_TOLD:,} more")
    return exceeded


def _first(found: Sequence[Backlog], by: str, top: int) -> list[Backlog]:
    most = top or len(found)
    if by == "stream":
        return heapq.nsmallest(most, found, key=lambda one: one.stream)
    measure = _SORTED[by]
    return heapq.nsmallest(most, found, key=lambda one: (-measure(one), -one.lag_sec, one.stream))


def _exceeded(
    client: redis.Redis, settings: Settings, chosen: argparse.Namespace, found: Iterable[Backlog]
) -> Iterator[str]:
    """A sentence for each limit and stream that is beyond it."""
    for name, (what, _) in _LIMITS.items():
        limit = getattr(chosen, f"max_{name}")
        if limit is None:
            continue
        for one in found:
            value = _SORTED[name](one)
            if name == "lag" and one.lag is None:
                if backlog.unread_beyond(client, settings.consumer_group_name, one.stream, limit):
                    yield f"{_name(one)}: {name} is more than {limit:,}; Redis does not know how much"
            elif value == _UNKNOWN:
                yield f"{_name(one)}: Redis does not know whether entries were deleted unread"
            elif value > limit:
                told, most = (
                    (f"{value:,.1f} s", f"{limit:,} s") if what == "SEC" else (f"{value:,}", f"{limit:,}")
                )
                yield f"{_name(one)}: {name} {told} is more than {most}"


def _name(one: Backlog) -> str:
    return output.excerpt(one.stream, 120)
