"""The books of a consumer group: what Redis says was read, against where every entry ended.

Two counts that come about independently are compared: Redis's own `entries-read` of the group, and the
ledger, which counts an entry once, in the same atomic step as its acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import redis

from cluster_keys import keys_of
from redis_client import execute
from schema import Fate

FATES = tuple(fate.value for fate in Fate)
_PAGE = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """One stream's numbers, or the sums over many. All are entries.

    `read` is what was ever delivered to the group; `trimmed` was pending and `trimmed_unread` was never
    read when something else deleted it. Those that the group has passed since, Redis counts as read: they
    are `passed`, which is worked out (`_passed`). `counted` is false where Redis had lost its own count of
    reads, as it may after a restart, so that it was derived from what is unread. `compared` is false where
    Redis counts neither reads nor additions (6.2): `read` is then what was settled or is pending, by
    definition.
    """

    added: int = 0
    read: int = 0
    unread: int = 0
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    trimmed: int = 0
    pending: int = 0
    trimmed_unread: int = 0
    passed: int = 0
    counted: bool = True
    compared: bool = True
    grouped: bool = True

    @property
    def settled(self) -> int:
        return self.stored + self.duplicate + self.dead_lettered + self.skipped + self.trimmed

    @property
    def missing(self) -> int:
        """Entries read and not accounted for: 0 when the promise is kept."""
        return self.read - self.settled - self.pending

    def __add__(self, other: Books) -> Books:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(Books)
            if field.type != "bool"
        }
        return Books(
            **sums,
            counted=self.counted and other.counted,
            compared=self.compared and other.compared,
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every stream's books, those that do not add up, and what was counted in groups that are gone."""

    streams: dict[bytes, Books]
    closed: dict[str, int]
    dead_letters: int

    @property
    def grouped(self) -> bool:
        """Whether any stream has the group."""
        return any(books.read or books.grouped for books in self.streams.values())

    @property
    def total(self) -> Books:
        return sum(self.streams.values(), Books())

    @property
    def off(self) -> list[tuple[bytes, Books]]:
        return [(stream, books) for stream, books in self.streams.items() if books.missing]


def read_ledger(
    client: redis.Redis, group: str, pattern: str, dead_letter_stream: str, named: Iterable[str] = ()
) -> Ledger:
    """Read the books while workers go on: each stream's numbers are taken in one MULTI.

    `named` are streams beside those of `pattern`; those that are not there have no books.
    Streams without the group, which no worker has found yet, count as unread. Raises redis errors.
    """
    keys = keys_of(client, group)
    dead_letters = dead_letter_stream.encode()
    scan = client.scan_iter(match=pattern, count=1000, _type="stream")
    streams = sorted({*scan, *(name.encode() for name in named)} - {dead_letters})
    found: dict[bytes, Books] = {}
    for ledger, chunk in keys.together(streams, 200):
        found.update(_read_chunk(client, group, ledger, chunk))
    with client.pipeline(transaction=False) as pipe:
        for ledger in keys.ledgers(client):
            execute(pipe, "HMGET", ledger, *(f"closed:{fate}" for fate in FATES))
        execute(pipe, "XLEN", dead_letter_stream)
        *closed, letters = pipe.execute()
    counts = [sum(int(row[place] or 0) for row in closed) for place in range(len(FATES))]
    return Ledger(found, dict(zip(FATES, counts, strict=True)), letters)


def _read_chunk(
    client: redis.Redis, group: str, ledger: str, streams: Sequence[bytes]
) -> Iterable[tuple[bytes, Books]]:
    with client.pipeline(transaction=True) as pipe:
        for stream in streams:
            execute(pipe, "XINFO STREAM", stream)
            execute(pipe, "XINFO GROUPS", stream)
            wanted = [fate.encode() + b":" + stream for fate in FATES]
            execute(pipe, "HMGET", ledger, *wanted, b"dropped:" + stream, b"base:" + stream)
        answers = pipe.execute(raise_on_error=False)
    for stream, info, groups, counts in zip(
        streams, answers[::3], answers[1::3], answers[2::3], strict=True
    ):
        if not isinstance(info, redis.RedisError):
            yield stream, _books(client, group, stream, _pairs(info), groups, counts)


def _books(
    client: redis.Redis,
    group: str,
    stream: bytes,
    info: dict[bytes, Any],
    groups: list[Any],
    counts: list[Any],
) -> Books:
    length = int(info[b"length"])
    added = int(info.get(b"entries-added", length))
    mine = _group(groups, group)
    if mine is None:
        return Books(added=added, unread=length, grouped=False)
    numbers: dict[str, Any] = {fate: int(n or 0) for fate, n in zip(FATES, counts, strict=False)}
    if b"entries-added" not in info:
        return _uncounted(client, stream, info, mine, numbers)
    dropped, base = (int(count or 0) for count in counts[len(FATES) :])
    position = mine[b"entries-read"]
    counted = position is not None
    unread = _unread(client, stream, mine[b"last-delivered-id"], info[b"last-generated-id"])
    if not counted:
        position = added - unread
    deleted = max(0, added - length - int(position))  # trimmed: from the stream's beginning
    behind = added - int(position) - unread  # also by XDEL, while no worker reads on
    if behind > deleted and _still_at(client, group, stream, mine[b"last-delivered-id"]):
        deleted = behind
    read, pending = int(position) - base, int(mine[b"pending"])
    gone = added - length - base - dropped  # deleted by others
    passed = _passed(read - sum(numbers.values()) - pending, gone - numbers["trimmed"] - deleted)
    return Books(
        added=added,
        read=read - passed,
        unread=unread,
        pending=pending,
        trimmed_unread=deleted + passed,
        passed=passed,
        counted=counted,
        **numbers,
    )


def _passed(missing: int, deleted: int) -> int:
    """Of the entries that Redis counts as read, how many the group has passed because they were gone.

    Of those that it counts and that are in no book (`missing`), as many as others have `deleted` that were
    neither pending nor are ahead of the group. What is missing beyond that was delivered, and let go of by
    somebody else.
    """
    return max(0, min(missing, deleted))


def _uncounted(
    client: redis.Redis,
    stream: bytes,
    info: dict[bytes, Any],
    mine: dict[bytes, Any],
    numbers: dict[str, Any],
) -> Books:
    """From a Redis that has no counts of its own to compare with."""
    unread = _unread(client, stream, mine[b"last-delivered-id"], info[b"last-generated-id"])
    pending = int(mine[b"pending"])
    read = sum(numbers.values()) + pending
    return Books(
        added=read + unread,
        read=read,
        unread=unread,
        pending=pending,
        counted=False,
        compared=False,
        **numbers,
    )


def _group(groups: list[Any], name: str) -> dict[bytes, Any] | None:
    return next((group for group in map(_pairs, groups) if group[b"name"] == name.encode()), None)


def _still_at(client: redis.Redis, group: str, stream: bytes, position: bytes) -> bool:
    """Whether the group has read nothing since: else what seems deleted may just have been settled and
    trimmed."""
    try:
        now = _group(execute(client, "XINFO GROUPS", stream), group)
    except redis.ResponseError:  # the stream is gone
        return False
    return now is not None and now[b"last-delivered-id"] == position


def _unread(client: redis.Redis, stream: bytes, after: bytes, last: bytes) -> int:
    """Entries behind `after`, counted: the `lag` of XINFO is wrong or null after deletions and trimming.

    Not beyond `last`: what was added since the other numbers were taken is no part of these books.
    """
    count = 0
    while after != last:
        page = execute(client, "XRANGE", stream, b"(" + after, last, "COUNT", _PAGE)
        count += len(page)
        if len(page) < _PAGE:
            break
        after = page[-1][0]
    return count


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
