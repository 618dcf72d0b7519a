"""Replaying dead letters: which of them it makes sense to replay, and doing it, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

import cluster_keys
import redis_scripts
import replays
from ops.letters import Letter
from parse import MAX_FIELDS, Parser
from redis_client import execute, is_world, message

RECORD_MS = 7 * 86_400_000  # how long a cluster remembers which letters were replayed
_STEP_BYTES = 4_000_000
_MOST_IN_A_STEP = 500
_STEP_SEC = 0.2
_MOST_FIELDS = 1_900  # what a script can take; far more than an entry may have


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Says of a letter why it is to be left out; an empty text: it is to be replayed.

    `parser` has the settings of now, `read` is what workers read: a stream's name to whether they do.
    `rejected` True: replay also what would be rejected again.
    """

    parser: Parser
    read: Callable[[bytes], bool]
    now_us: int
    most_replays: int
    rejected: bool = False

    def __call__(self, letter: Letter) -> str:
        if not letter.readable:
            return "no dead letter of Sluice"
        if not self.read(letter.entry.stream):
            return "no worker reads its stream (STREAM_PATTERN)"
        if letter.replays >= self.most_replays:
            return f"failed again after {letter.replays} replays (--max-replays)"
        if len(letter.entry.fields) > 2 * _MOST_FIELDS:
            return f"more fields than an entry may have ({MAX_FIELDS})"
        again = () if self.rejected else self.parser.parse(letter.entry, self.now_us).rejections
        return f"would be rejected again: {again[0].reason} (--rejected)" if again else ""


@dataclass(slots=True)
class Plan:
    """How many letters would be replayed, by reason, and how many left out, and why."""

    ready: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, letters: Iterable[Letter], judge: Judge, most: int | None) -> Plan:
        plan = cls()
        for letter in letters:
            why = judge(letter)
            if not why and most is not None and plan.ready.total() >= most:
                why = "beyond --limit"
            if why:
                plan.left_out[why] += 1
            else:
                plan.ready[letter.reason] += 1
        return plan


@dataclass(slots=True)
class Done:
    """What came of it. `gone`: letters that somebody else had replayed or removed meanwhile."""

    replayed: int = 0
    gone: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    streams: set[bytes] = field(default_factory=set)

    @property
    def looked_at(self) -> int:
        return self.replayed + self.gone + self.refused.total()


class Replayer:
    """Replays letters in their order, no more than `rate` a second (0: as fast as it goes).

    On one server each letter is moved by one script: added and deleted, or neither. `apart`: a cluster,
    where the two may be in different slots; there a record beside the stream says which letters were
    added, so that a second attempt after a crash only deletes them. After RECORD_MS, or where Redis had
    lost the record, an entry could be added a second time. It makes no second row: its readings have the
    identity of the original.

    Raises redis errors of the world; what Redis has against one letter is counted, and the others go on.
    """

    def __init__(
        self,
        client: redis.Redis,
        dead_letters: str,
        *,
        rate: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        apart: bool = False,
    ) -> None:
        self._client = client
        self._dead_letters = dead_letters
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._apart = apart
        self.done = Done()

    def run(self, letters: Iterable[Letter], show: Callable[[int], None]) -> None:
        """`show` hears after each step how many letters have had their turn. What was done is in `done`,
        also when this ends half-way.
        """
        began = self._clock()
        for step in _steps(letters, self._most_in_a_step):
            self._replay(step)
            show(self.done.looked_at)
            if self._rate:
                ahead = self.done.looked_at / self._rate - (self._clock() - began)
                if ahead > 0:
                    self._sleep(ahead)

    @property
    def _most_in_a_step(self) -> int:
        return (
            max(1, min(_MOST_IN_A_STEP, int(self._rate * _STEP_SEC) or 1))
            if self._rate
            else _MOST_IN_A_STEP
        )

    def _replay(self, step: Sequence[Letter]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for letter in step:
                execute(pipe, *(self._once(letter) if self._apart else self._moved(letter)))
            answers = pipe.execute(raise_on_error=False)
        added = self._deleted(step, answers) if self._apart else answers
        world: redis.RedisError | None = None
        for letter, answer in zip(step, added, strict=True):
            if not isinstance(answer, redis.RedisError):
                self.done.replayed += answer
                self.done.gone += not answer
                if answer:
                    self.done.streams.add(letter.entry.stream)
            elif is_world(answer):
                world = answer
            else:
                self.done.refused[message(answer).partition(" script: ")[0][:120]] += 1
        if world:
            raise world

    def _moved(self, letter: Letter) -> tuple[bytes | str | int, ...]:
        keys = (self._dead_letters, letter.entry.stream)
        return "EVAL", redis_scripts.REPLAY, len(keys), *keys, letter.id, *_fields(letter)

    def _once(self, letter: Letter) -> tuple[bytes | str | int, ...]:
        keys = (letter.entry.stream, record_of(letter.entry.stream))
        name = f"{self._dead_letters} ".encode() + letter.id
        return "EVAL", redis_scripts.REPLAY_ONCE, len(keys), *keys, name, RECORD_MS, *_fields(letter)

    def _deleted(self, step: Sequence[Letter], answers: Sequence[Any]) -> list[Any]:
        """Delete the letters whose entries are there, by this attempt or by an earlier one."""
        there = [one.id for one, answer in zip(step, answers, strict=True) if isinstance(answer, int)]
        if there:
            execute(self._client, "XDEL", self._dead_letters, *there)
        return list(answers)


def record_of(stream: bytes) -> str:
    """The key of the record beside `stream`: one for each hash slot that has streams."""
    return f"sluice:replayed:{{{cluster_keys.tag_beside(stream)}}}"


def _fields(letter: Letter) -> list[bytes]:
    return replays.marked(letter.entry.id, letter.replays + 1, letter.entry.fields)


def _steps(letters: Iterable[Letter], most: int) -> Iterator[list[Letter]]:
    """Some letters at a time, of some megabytes together."""
    step: list[Letter] = []
    size = 0
    for letter in letters:
        step.append(letter)
        size += letter.size
        if len(step) >= most or size >= _STEP_BYTES:
            yield step
            step, size = [], 0
    if step:
        yield step
