"""Letting go of entries: acknowledge, dead-letter and count them, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

import fates
import redis_scripts
from metrics import Stats
from redis_client import Argument, chunks, execute
from redis_line import Command, Line
from redis_scripts import Keys
from replays import original
from schema import Fate, Settled
from scripting import Script

CALL_BYTES = 32_000_000  # of dead letters in one call; Redis ends a connection whose query exceeds 1 GB
LUA_VALUES = 4000  # values that one Lua call can unpack safely; its limit is about 8,000


class Settler:
    """Settles entries of one group. Raises redis errors as they come; the reader retries."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        group: str,
        dead_letter_stream: str,
        stats: Stats,
        wall_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._group = group
        self._dead_letters = dead_letter_stream
        self._keys = keys
        self._ledger = keys.ledger
        self._stats = stats
        self._wall_ms = wall_ms
        self.known = False  # the server knows the script
        self._script = Script(client, redis_scripts.SETTLE)
        self._wide = Script(client, redis_scripts.SETTLE_WIDE)

    def settle(self, settled: Sequence[Settled]) -> None:
        """Idempotent: what somebody else settled meanwhile is neither acknowledged nor counted again."""
        for call in plan(settled, self._wall_ms()):
            if call.too_wide:
                self._settle_wide(call)
                continue
            keys: list[bytes | str] = [self._ledger, self._dead_letters, *call.streams]
            self.count([self._script(keys=keys, args=[self._group, *call.arguments])])
            self.known = True

    def send(self, line: Line, settled: Sequence[Settled]) -> tuple[int, int]:
        """Send what settles these: which connection will bring the replies, and how many."""
        commands: list[Command] = []
        for call in plan(settled, self._wall_ms()):
            if call.too_wide:
                self._settle_wide(call)
                continue
            keys: tuple[bytes | str, ...] = (self._ledger, self._dead_letters, *call.streams)
            head = ("EVALSHA", self._script.sha, len(keys))
            commands.append((*head, *keys, self._group, *call.arguments))
        return line.send(commands), len(commands)

    def count(self, replies: Iterable[Sequence[Any]]) -> None:
        """What the script answered, into the counts."""
        for reply in replies:
            for fate, count in zip(reply[::2], reply[1::2], strict=True):
                self._count(Fate(fate.decode()), int(count))

    def note_letters(self, settled: Sequence[Settled]) -> None:
        """Count the dead letters that were made, by reason."""
        for item in fates.letters(settled):
            if item.rejection is not None:
                self._stats.lettered(item.rejection.reason.value)

    def note_batch(self, settled: Sequence[Settled]) -> None:
        """Count a batch, and how long its first and its last entry have taken since they arrived."""
        self._stats.batch_entries.observe(len(settled))
        now_ms = self._wall_ms()
        for place in {0, len(settled) - 1} if settled else ():
            arrived = int(settled[place].entry.id.partition(b"-")[0])
            self._stats.entry_age_sec.observe(max(0, now_ms - arrived) / 1000)

    def _settle_wide(self, call: SettleCall) -> None:
        """One dead letter with more fields than a Lua call can take: the same in one MULTI.

        The script goes in full: were it unknown to the server, the letter would be added all the same.
        """
        stream, entry_id, fields = call.streams[0], call.arguments[2], call.arguments[4:]
        self._wide.load()
        keys = (self._dead_letters, stream, self._ledger)
        with self._client.pipeline(transaction=True) as pipe:
            execute(pipe, "XADD", self._dead_letters, "*", *fields)
            execute(pipe, "EVAL", self._wide.text, len(keys), *keys, self._group, entry_id, fields[3])
            _, dead_lettered = pipe.execute()
        self._count(Fate.DEAD_LETTERED, dead_lettered)

    def _count(self, fate: Fate, entries: int) -> None:
        if fate is Fate.STORED:
            self._stats.messages_written += entries
        elif fate is Fate.DUPLICATE:
            self._stats.messages_duplicate += entries
        elif fate is Fate.DEAD_LETTERED:
            self._stats.messages_failed += entries
        elif fate is Fate.SKIPPED:
            self._stats.messages_skipped += entries
        elif fate is Fate.TRIMMED:
            self._stats.messages_trimmed += entries


@dataclass(frozen=True, slots=True)
class SettleCall:
    """One call of the SETTLE script. `too_wide`: a single dead letter that Lua cannot take."""

    streams: list[bytes]
    arguments: list[Argument]
    too_wide: bool = False


def plan(settled: Sequence[Settled], now_ms: int) -> Iterable[SettleCall]:
    """Cut what is to be settled into script calls short enough not to hold up Redis."""
    streams: dict[bytes, int] = {}
    arguments: list[Argument] = []
    size = 0

    def index(stream: bytes) -> int:
        return streams.setdefault(stream, len(streams) + 3)  # KEYS[1] is the ledger, [2] the dead letters

    for (stream, fate), ids in fates.acknowledged(settled).items():
        for part in chunks(ids, 1000):
            arguments += ["A", fate.value, index(stream), len(part), *part]
            if len(arguments) > LUA_VALUES:
                yield SettleCall(list(streams), arguments)
                streams, arguments = {}, []
    for item in fates.letters(settled):
        fields = dead_letter_fields(item, now_ms)
        size += sum(map(len, fields))
        letter: list[Argument] = [
            "D",
            index(item.entry.stream),
            item.entry.id,
            len(fields),
            *fields,
        ]
        if len(fields) > LUA_VALUES:
            yield SettleCall([item.entry.stream], letter, too_wide=True)
            continue
        arguments += letter
        if len(arguments) > LUA_VALUES or size > CALL_BYTES:
            yield SettleCall(list(streams), arguments)
            streams, arguments, size = {}, [], 0
    if arguments:
        yield SettleCall(list(streams), arguments)


def dead_letter_fields(item: Settled, now_ms: int) -> list[bytes]:
    """A dead letter: the header, then `original_fields` with their number, then the original fields.

    The original fields stand last, in order, byte for byte and with repeated names kept, so that a
    replay takes exactly that many pairs from the end, whatever the original names are. Where the
    original has a field `value` of its own, the header leaves it out. Of a replayed entry, `original_id`
    and the fields are those of its original, so that it can be replayed again; `replays` says how often
    it was, and `replayed_id` which entry failed this time.
    """
    entry, replays = original(item.entry)
    rejection = item.rejection
    if rejection is None:
        raise ValueError("only a rejected entry has a dead letter")
    header: list[bytes] = [
        b"original_stream",
        entry.stream,
        b"original_id",
        entry.id,
        b"device_id",
        rejection.device_id.encode("utf-8", "replace"),
        b"sensor_type",
        rejection.sensor_type.encode("utf-8", "replace"),
    ]
    if rejection.value and b"value" not in entry.fields[::2]:
        header += [b"value", rejection.value.encode("utf-8", "replace")]
    if replays:
        header += [b"replays", str(replays).encode(), b"replayed_id", item.entry.id]
    header += [
        b"error",
        f"{rejection.reason}: {rejection.sentence}".encode("utf-8", "replace"),
        b"failed_at",
        f"{now_ms / 1000:.3f}".encode(),
        b"original_fields",
        str(len(entry.fields) // 2).encode(),
    ]
    return [*header, *entry.fields]
