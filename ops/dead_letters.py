"""`python main.py dead-letters`: find, show, count, replay, remove and export what could not be stored.

Exit status: 0 done, 1 something is wrong, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import redis

from config import Settings
from ops import letter_options, letter_views, letters, output, session
from ops.letters import Letter, Wanted
from ops.progress import Progress
from ops.replay import Judge, Plan, Replayer
from ops.session import Refused
from parse import Limits, Parser
from redis_client import chunks, execute
from stream_glob import compiled

_AT_ONCE = 1_000  # letters deleted by one command

LimitsOf = Callable[[Settings], Limits]


class Desk(NamedTuple):
    """What an action works with."""

    client: redis.Redis
    settings: Settings
    chosen: argparse.Namespace
    wanted: Wanted
    judge: Judge

    @property
    def stream(self) -> str:
        return self.settings.dead_letter_stream

    def read(self, *, newest_first: bool = False, last: bytes | None = None) -> Iterator[Letter]:
        return letters.read(self.client, self.stream, self.wanted, newest_first=newest_first, last=last)


def add_arguments(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], limits_of: LimitsOf
) -> None:
    """Teach the command line `dead-letters` and its actions. `limits_of`: what workers accept."""

    def run(settings: Settings, chosen: argparse.Namespace) -> int:
        return main(settings, chosen, limits_of(settings))

    letter_options.add(commands, run)


def main(settings: Settings, chosen: argparse.Namespace, limits: Limits) -> int:
    """Do what was chosen; the exit status."""

    def job() -> int:
        wanted = letter_options.wanted(chosen, time.time_ns() // 1_000_000)
        with session.to_redis(settings) as client:
            desk = Desk(client, settings, chosen, wanted, _judge(settings, chosen, limits))
            return _ACTIONS[chosen.action](desk)

    return session.run(job)


def _judge(settings: Settings, chosen: argparse.Namespace, limits: Limits) -> Judge:
    pattern = compiled(settings.stream_pattern)
    named = settings.event_streams()

    def read(stream: bytes) -> bool:
        name = stream.decode("utf-8", "surrogateescape")
        return name != settings.dead_letter_stream and (name in named or bool(pattern.fullmatch(name)))

    return Judge(
        parser=Parser(limits),
        read=read,
        now_us=time.time_ns() // 1000,
        most_replays=getattr(chosen, "max_replays", sys.maxsize),
        rejected=getattr(chosen, "rejected", False),
    )


def _list(desk: Desk) -> int:
    most = None if desk.chosen.all else desk.chosen.limit
    found = _first(desk.read(newest_first=True), None if most is None else most + 1)
    if desk.chosen.json:
        output.json_array((letter_views.json_object(one) for one in _first(found, most)), sys.stdout)
        return 0
    shown = output.table(
        letter_views.HEADER, (letter_views.cells(one) for one in _first(found, most)), sys.stdout
    )
    if not shown:
        print("no dead letter" if desk.wanted.everything else "no dead letter matches")
    elif next(iter(found), None) is not None:
        print(f"the newest {shown:,}; there are more (--limit N, --all)")
    return 0


def _first(found: Iterator[Letter], most: int | None) -> Iterator[Letter]:
    for number, letter in enumerate(found, 1):
        yield letter
        if most is not None and number >= most:
            return


def _show(desk: Desk) -> int:
    missing: list[str] = []
    for letter_id in desk.wanted.ids:
        found = list(letters.read(desk.client, desk.stream, Wanted(ids=(letter_id,))))
        if not found:
            missing.append(letter_id.decode())
        elif desk.chosen.json:
            print(json.dumps(letter_views.json_object(found[0])))
        else:
            print(letter_views.in_full(found[0], _verdict(desk, found[0])))
    if missing:
        raise Refused(
            f"there is no dead letter {', '.join(missing)}; it was replayed, removed or trimmed,"
            " or never was: main.py dead-letters list"
        )
    return 0


def _verdict(desk: Desk, letter: Letter) -> str:
    why = desk.judge(letter)
    return why.partition(" (--")[0] if why else "would be accepted, as far as its bytes tell: replay it"


def _stats(desk: Desk) -> int:
    found = letter_views.Statistics.of(desk.read())
    if desk.chosen.json:
        print(json.dumps(found.as_json()))
        return 0
    if not found.letters:
        print("no dead letter" if desk.wanted.everything else "no dead letter matches")
        return 0
    output.table(("reason", "letters", "first", "last"), found.rows(), sys.stdout)
    for what, counts in (("device", found.devices), ("stream", found.streams)):
        print()
        rows = ((name, f"{count:,}") for name, count in counts.most_common(10))
        output.table((what, "letters"), rows, sys.stdout)
    again = sum(count for times, count in found.replays.items() if times)
    print(f"\n{found.letters:,} letters, {found.size:,} bytes; {again:,} of them had been replayed before")
    return 0


def _replay(desk: Desk) -> int:
    last = letters.newest_id(desk.client, desk.stream)  # what fails again meanwhile is for another time
    plan = Plan.of(desk.read(last=last), desk.judge, desk.chosen.limit)
    ready, left_out = plan.ready.total(), plan.left_out.total()
    print(f"{ready + left_out:,} dead letters match")
    if ready:
        verb = "are being" if desk.chosen.yes else "would be"
        print(f"{ready:>9,} {verb} replayed: {_by_number(plan.ready)}")
    for why, count in plan.left_out.most_common():
        print(f"{count:>9,} left out: {why}")
    if not ready:
        return 0
    if not desk.chosen.yes:
        print("nothing was replayed: --yes does it")
        return 0
    sys.stdout.flush()
    return _replayed(
        desk, _first((one for one in desk.read(last=last) if not desk.judge(one)), ready), ready
    )


def _replayed(desk: Desk, ready: Iterator[Letter], total: int) -> int:
    replayer = Replayer(
        desk.client,
        desk.stream,
        rate=desk.chosen.rate,
        clock=time.monotonic,
        sleep=time.sleep,
        apart=str(desk.settings.redis_mode) == "cluster",
    )
    try:
        with Progress("replaying", total) as progress:
            replayer.run(ready, progress.show)
    except (redis.RedisError, KeyboardInterrupt):
        print(f"replayed {replayer.done.replayed:,} for certain; the same command goes on with the rest")
        raise
    done = replayer.done
    streams = len(done.streams)
    print(f"replayed {done.replayed:,} into {streams:,} stream{'' if streams == 1 else 's'}")
    if done.gone:
        print(f"{done.gone:,} were gone by then: replayed before, or removed by another command")
    for why, count in done.refused.most_common():
        session.complain(f"{count:,} are still dead letters: Redis answered {why}")
    return 1 if done.refused else 0


def _purge(desk: Desk) -> int:
    if desk.wanted.everything and not desk.chosen.all:
        raise Refused("nothing says which dead letters to remove: give a filter, or --all")
    last = letters.newest_id(desk.client, desk.stream)
    counted = Counter(one.reason for one in desk.read(last=last))
    total = counted.total()
    if not total:
        print("no dead letter matches")
        return 0
    print(f"{total:,} dead letters: {_by_number(counted)}")
    if not desk.chosen.yes and not _agreed(f"remove these {total:,} for good?"):
        raise Refused("nothing was removed; --yes removes without asking")
    removed = 0
    try:
        with Progress("removing", total) as progress:
            for some in _ids(desk.read(last=last)):
                removed += execute(desk.client, "XDEL", desk.stream, *some)
                progress.show(removed)
    finally:
        print(f"removed {removed:,} dead letters")
    return 0


def _ids(found: Iterable[Letter]) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    for letter in found:
        some.append(letter.id)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    yield from (list(part) for part in chunks(some, _AT_ONCE))


def _agreed(question: str) -> bool:
    """Ask on the terminal. Nobody there: no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _export(desk: Desk) -> int:
    last = letters.newest_id(desk.client, desk.stream)
    if desk.chosen.output is None:
        _write(desk.read(last=last), sys.stdout, None)
        return 0
    path: Path = desk.chosen.output
    total = sum(1 for _ in desk.read(last=last))
    with _new_file(path, replace=desk.chosen.replace) as out, Progress("exporting", total) as progress:
        count = _write(desk.read(last=last), out, progress)
    print(f"{count:,} dead letters are in {path}")
    return 0


def _write(found: Iterable[Letter], out: TextIO, progress: Progress | None) -> int:
    count = 0
    for count, letter in enumerate(found, 1):
        out.write(json.dumps(letter_views.json_object(letter)) + "\n")
        if progress:
            progress.show(count)
    return count


@contextmanager
def _new_file(path: Path, *, replace: bool) -> Iterator[TextIO]:
    """A file that is there when it is whole. Only its owner reads it: letters hold what devices sent."""
    if path.exists() and not replace:
        raise Refused(f"{path} is there already; --replace writes it anew")
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch(mode=0o600)
        with part.open("w", encoding="utf-8") as out:
            yield out
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _by_number(counted: Counter[str]) -> str:
    return ", ".join(f"{count:,} {output.excerpt(reason)}" for reason, count in counted.most_common(12))


_ACTIONS: dict[str, Callable[[Desk], int]] = {
    "list": _list,
    "show": _show,
    "stats": _stats,
    "replay": _replay,
    "purge": _purge,
    "export": _export,
}
