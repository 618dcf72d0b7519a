"""Letting go of entries in a cluster: each in the slot of its stream, dead letters first and in theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError, ResponseError

import cluster_scripts
import fates
import redis_scripts
from cluster_keys import ClusterKeys
from redis_client import chunks, execute, is_gone
from redis_cluster import Argument, ClusterClient, Unit
from redis_scripts import Keys
from schema import Fate, Settled
from settlement import CALL_BYTES, LUA_VALUES, Settler, dead_letter_fields

NOTE_MS = 7 * 24 * 3600 * 1000  # for so long an entry with a letter may wait for its acknowledgement
AFTER_MS = 3600 * 1000  # for so long an acknowledgement may be undone by a failover
REPLICA_MS = 1000  # for a replica to take over a dead letter


class Letter(NamedTuple):
    """A dead letter: the entry it is about, its fields, and the key of its note."""

    settled: Settled
    fields: list[bytes]
    note: str


class ClusterSettler(Settler):
    """As `Settler`. An entry is acknowledged and counted in one step, in the slot of its stream; its letter
    is safe before.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *others: Any) -> None:
        super().__init__(client, keys, *others)
        if not isinstance(client, ClusterClient) or not isinstance(keys, ClusterKeys):
            raise TypeError("it takes the client and the keys of a cluster")
        self._cluster, self._beside = client, keys.beside

    def settle(self, settled: Sequence[Settled]) -> None:
        """As in `Settler`. A crash between a letter and its acknowledgement makes no second letter."""
        letters = self._wanted(list(fates.letters(settled)))
        ids = [self._add(part) for part in _parts(letters)]
        calls = [
            self._call(stream, fate, part)
            for (stream, fate), found in fates.acknowledged(settled).items()
            for part in chunks(found, 1000)
        ]
        for letter in letters:
            entry = letter.settled.entry
            calls.append(self._call(entry.stream, Fate.DEAD_LETTERED, [entry.id]))
        replies = self._run(redis_scripts.SETTLE, calls)
        self.count(reply for reply in replies if not isinstance(reply, Exception))
        _raise_first(replies)
        of_letters = iter(replies[len(replies) - len(letters) :])
        for part, added in zip(_parts(letters), ids, strict=True):
            self._finish(part, added, [bool(next(of_letters)) for _ in part])

    def _call(self, stream: bytes, fate: Fate, ids: Sequence[bytes]) -> tuple[Argument, ...]:
        ledger = self._keys.ledger_of(stream)
        return 3, ledger, ledger, stream, self._group, "A", fate.value, 3, len(ids), *ids

    def _run(self, script: str, calls: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """The script's answer to each call, or its error; the nodes work side by side."""
        replies = self._evaluate(script, calls)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            execute(self._client, "SCRIPT LOAD", script)
            for n, reply in zip(unknown, self._evaluate(script, [calls[n] for n in unknown]), strict=True):
                replies[n] = reply
        return replies

    def _evaluate(self, script: str, calls: Sequence[tuple[Argument, ...]]) -> list[Any]:
        digest = redis_scripts.digest(script)
        with self._client.pipeline(transaction=False) as pipe:
            for call in calls:
                execute(pipe, "EVALSHA", digest, *call)
            found: list[Any] = pipe.execute(raise_on_error=False)
        return found

    def _wanted(self, settled: Sequence[Settled]) -> list[Letter]:
        """The letters of those that are still pending: nobody else has settled them meanwhile."""
        if not settled:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for item in settled:
                entry = item.entry
                execute(pipe, "XPENDING", entry.stream, self._group, entry.id, entry.id, 1)
            pending = pipe.execute(raise_on_error=False)
        letters: list[Letter] = []
        for item, reply in zip(settled, pending, strict=True):
            if isinstance(reply, Exception):
                if not is_gone(reply):
                    raise reply
            elif reply:
                letters.append(self._letter(item))
        return letters

    def _letter(self, item: Settled) -> Letter:
        """The note is named after the contents too: the same ID may be given again to another entry."""
        digest = blake2b(digest_size=16)
        for part in (item.entry.stream, item.entry.id, *item.entry.fields):
            digest.update(b"%d:%s" % (len(part), part))
        fields = dead_letter_fields(item, self._wall_ms())
        return Letter(item, fields, self._beside(self._dead_letters, f"letter:{digest.hexdigest()}"))

    def _add(self, letters: Sequence[Letter]) -> list[bytes]:
        """Add those that are not there yet: the ID of each, or nothing. Returns when a replica has them
        too, where there is one: an entry may be acknowledged on a node that outlives this one.
        """
        ((role,),) = self._cluster.exchange([Unit(self._dead_letters, [("ROLE",)])])
        if isinstance(role, ResponseError):
            raise role
        wait = [("WAIT", 1, REPLICA_MS)] if role[2] else []
        unit = Unit(self._dead_letters, [*self._adding(letters), *wait])
        (replies,) = self._cluster.exchange([unit])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            execute(self._cluster, "SCRIPT LOAD", cluster_scripts.ADD_LETTERS)
            (replies,) = self._cluster.exchange([unit])
        _raise_first(replies)
        if wait and replies.pop() < 1:
            raise redis.TimeoutError("no replica has taken over the dead letters in time")
        ids: list[bytes] = replies[-1]
        _raise_first(ids)
        return ids[-len(letters) :]  # of a MULTI, what the last command says

    def _adding(self, letters: Sequence[Letter]) -> list[tuple[Argument, ...]]:
        first = letters[0]
        if len(first.fields) > LUA_VALUES:
            stream, entry_id = first.fields[1], first.fields[3]
            keys = (2, self._dead_letters, first.note)
            note = ("EVAL", cluster_scripts.NOTE_WIDE_LETTER, *keys, NOTE_MS, stream, entry_id)
            return [("MULTI",), ("XADD", self._dead_letters, "*", *first.fields), note, ("EXEC",)]
        notes = [letter.note for letter in letters]
        values: list[Argument] = []
        for letter in letters:
            values += [len(letter.fields), *letter.fields]
        head = ("EVALSHA", redis_scripts.digest(cluster_scripts.ADD_LETTERS), 1 + len(notes))
        return [(*head, self._dead_letters, *notes, NOTE_MS, *values)]

    def _finish(self, letters: Sequence[Letter], ids: Sequence[bytes], settled: Sequence[bool]) -> None:
        notes = [letter.note for letter in letters]
        told = [part for done, one in zip(settled, ids, strict=False) for part in (str(int(done)), one)]
        keys: tuple[Argument, ...] = (1 + len(notes), self._dead_letters, *notes)
        _raise_first(self._run(cluster_scripts.FINISH_LETTERS, [(*keys, AFTER_MS, *told)]))


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _parts(letters: Sequence[Letter]) -> Iterator[list[Letter]]:
    """`letters` in parts short enough for one call; one that is too wide for any stands alone."""
    part: list[Letter] = []
    values = size = 0
    for letter in letters:
        wide = len(letter.fields) > LUA_VALUES
        weight = sum(map(len, letter.fields))
        if part and (wide or values + len(letter.fields) > LUA_VALUES or size + weight > CALL_BYTES):
            yield part
            part, values, size = [], 0, 0
        part.append(letter)
        values += len(letter.fields)
        size += weight
        if wide:
            yield part
            part, values, size = [], 0, 0
    if part:
        yield part
