"""The keys that Sluice keeps in a cluster: beside what they are about, since a script has one slot only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import redis

from redis_client import chunks
from redis_cluster import SLOTS, ClusterClient, slot_of
from redis_scripts import Keys


@cache
def _tags() -> list[str]:
    """For each slot the smallest number that falls into it, so that a key can be put there."""
    tags = [""] * SLOTS
    left, number = SLOTS, 0
    while left:
        slot = slot_of(str(number))
        if not tags[slot]:
            tags[slot] = str(number)
            left -= 1
        number += 1
    return tags


def tag_beside(key: bytes | str) -> str:
    """What to put into a name's braces so that it is in the slot of `key`, whatever braces that has."""
    return _tags()[slot_of(key)]


class ClusterKeys(Keys):
    """One ledger for each slot that has streams. It moves with them, and is lost or kept with them."""

    def __init__(self, group: str) -> None:
        super().__init__(group)
        self._group = group

    def beside(self, key: bytes | str, name: str) -> str:
        """A key of the group in the slot of `key`."""
        return f"sluice:{{{tag_beside(key)}}}:{self._group}:{name}"

    def ledger_of(self, stream: bytes) -> str:
        return self.beside(stream, "ledger")

    def ledgers(self, client: redis.Redis) -> list[str]:
        found = client.scan_iter(match=f"sluice:{{*}}:{self._group}:ledger", count=1000)
        return sorted({key.decode() for key in found})

    def together(self, streams: Sequence[bytes], most: int) -> Iterator[tuple[str, Sequence[bytes]]]:
        slots: dict[int, list[bytes]] = {}
        for stream in streams:
            slots.setdefault(slot_of(stream), []).append(stream)
        for some in slots.values():
            for part in chunks(some, most):
                yield self.ledger_of(part[0]), part


def keys_of(client: redis.Redis, group: str) -> Keys:
    """The names of the group's keys there."""
    return ClusterKeys(group) if isinstance(client, ClusterClient) else Keys(group)
