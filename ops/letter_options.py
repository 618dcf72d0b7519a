"""The command line of `python main.py dead-letters`: its actions, and which letters are meant."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

from config import Settings
from ops import output
from ops.letters import UNREADABLE, Wanted, milliseconds
from ops.quantities import finite
from schema import Reason
from stream_glob import compiled

Run = Callable[[Settings, argparse.Namespace], int]
_REASONS = (*(reason.value for reason in Reason), UNREADABLE)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], run: Run) -> None:
    """Add the command `dead-letters`; `run` does what was chosen."""
    parser = commands.add_parser(
        "dead-letters", help="find, replay, remove and export what could not be stored"
    )
    parser.set_defaults(run=run, show_help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = _action(actions, "list", "show dead letters, newest first")
    listing.add_argument("--limit", type=_count, default=100, metavar="N", help="at most N (default 100)")
    listing.add_argument("--all", action="store_true", help="all of them")
    listing.add_argument("--json", action="store_true", help="print one JSON array, with every byte")
    show = actions.add_parser("show", help="show one in full, and what would become of it now")
    show.add_argument("id", type=_id, nargs="+", metavar="LETTER", help="its id, as list shows it")
    show.add_argument("--json", action="store_true", help="print a JSON object a line, with every byte")
    stats = _action(actions, "stats", "count them by reason, device and stream")
    stats.add_argument("--json", action="store_true", help="print one JSON object")
    replay = _action(actions, "replay", "add their entries to their streams again (--yes; else a dry run)")
    _add_replay(replay)
    purge = _action(actions, "purge", "remove them for good")
    purge.add_argument("--all", action="store_true", help="all dead letters, where no filter says which")
    purge.add_argument("--yes", action="store_true", help="remove without asking")
    export = _action(actions, "export", "write them as JSON Lines, with every byte")
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="into this file, not to standard output"
    )
    export.add_argument("--replace", action="store_true", help="write FILE anew where it is there already")


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("--yes", action="store_true", help="do it; without this nothing changes")
    replay.add_argument(
        "--rate",
        type=_rate,
        default=1000.0,
        metavar="N",
        help="at most N a second (default 1000); 0: no limit",
    )
    replay.add_argument("--limit", type=_count, metavar="N", help="at most N, the oldest: for a trial")
    replay.add_argument(
        "--max-replays",
        type=_count,
        default=3,
        metavar="N",
        help="leave out what has failed again after N replays (default 3)",
    )
    replay.add_argument(
        "--rejected", action="store_true", help="also those that the settings of now would reject again"
    )


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=what)
    parser.add_argument(
        "--id", type=_id, action="append", metavar="LETTER", help="this one (may be repeated)"
    )
    parser.add_argument("--reason", type=_reason, metavar="REASON", help="such as value_nan, or value_*")
    parser.add_argument("--device", metavar="GLOB", help="their device, as far as it is known")
    parser.add_argument("--sensor", metavar="GLOB", help="their sensor, as far as it is known")
    parser.add_argument("--stream", metavar="GLOB", help="the stream they came from")
    for name, which in (("since", "then or later"), ("until", "then or earlier")):
        parser.add_argument(
            f"--{name}",
            type=_time,
            metavar="TIME",
            help=f"failed {which}: RFC 3339, or 2h for two hours ago",
        )
    return parser


def wanted(chosen: argparse.Namespace, now_ms: int) -> Wanted:
    """Which letters the command line means. `now_ms`: the present, from which durations count."""
    if chosen.action == "show":
        return Wanted(ids=tuple(chosen.id))
    first, last = (text and milliseconds(text, now_ms) for text in (chosen.since, chosen.until))
    return Wanted(
        ids=tuple(chosen.id or ()),
        first_ms=first,
        last_ms=last,
        reasons=_glob(chosen.reason),
        devices=_glob(chosen.device),
        sensors=_glob(chosen.sensor),
        streams=_glob(chosen.stream),
    )


def _glob(text: str | None) -> re.Pattern[str] | None:
    return None if text is None else compiled(text)


def _id(text: str) -> bytes:
    if not re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", text):
        raise argparse.ArgumentTypeError(
            f"is {output.excerpt(text)!r}; it takes the id of a dead letter, such as 1767323045000-0"
        )
    return text.encode()


def _reason(text: str) -> str:
    if not any(compiled(text).fullmatch(reason) for reason in _REASONS):
        raise argparse.ArgumentTypeError(
            f"is {output.excerpt(text)!r}; it takes a reason or a glob of reasons: {', '.join(_REASONS)}"
        )
    return text


def _time(text: str) -> str:
    try:
        milliseconds(text, time.time_ns() // 1_000_000)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)!r}; {error}") from None
    return text


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)!r}; it takes a number from 1 to 1e9")
    return int(text)


def _rate(text: str) -> float:
    try:
        found = finite(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= found <= 1e6:
        raise argparse.ArgumentTypeError(f"is {output.excerpt(text)}; it takes 0 to 1e6 letters a second")
    return found
