"""Entries as replies brought them: a sequence that makes a value only of the entry that is asked for.

They are read and let go of by the thousand, and nearly all of them are alike: a value for each would
cost more than what is done with it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Any, overload

from schema import Entry

Row = Sequence[Any]  # an entry as a reply holds it: its ID, and its fields
Block = tuple[bytes, Sequence[Row]]  # a stream, and entries of it


class Entries(Sequence[Entry]):
    """Entries in blocks, a stream each. The same stream may have several blocks. None of them is empty."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self._ends = list(accumulate(len(rows) for _, rows in blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect_right(self._ends, place)
        stream, rows = self.blocks[number]
        entry_id, fields = rows[place - self._ends[number]]
        return Entry(stream, entry_id, fields or ())

    def __iter__(self) -> Iterator[Entry]:
        for stream, rows in self.blocks:
            for entry_id, fields in rows:
                yield Entry(stream, entry_id, fields or ())

    def weight(self) -> int:
        """How many bytes their fields have. All are weighed: a sample would miss one heavy device in turn
        with light ones.
        """
        return sum(sum(map(len, row[1] or ())) for _, rows in self.blocks for row in rows)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence) and len(self) == len(other) and all(map(Entry.__eq__, self, other))
        )

    __hash__ = None  # type: ignore[assignment]


def weight(entries: Sequence[Entry]) -> int:
    """How many bytes their fields have."""
    return sum(len(part) for entry in entries for part in entry.fields)


def blocks_of(entries: Sequence[Entry]) -> Sequence[Block]:
    """`entries` in blocks, in their order."""
    if isinstance(entries, Entries):
        return entries.blocks
    return [
        (stream, [(entry.id, entry.fields) for entry in some])
        for stream, some in groupby(entries, key=attrgetter("stream"))
    ]
