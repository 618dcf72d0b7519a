"""From the fates of rows to the fates of entries. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import overload

from entries import blocks_of
from schema import Answer, Batch, Entry, Fate, Outcome, Rejection, RowFate, Settled


class Settlement(Sequence[Settled]):
    """What becomes of each of `entries`: `usual`, but for those that `others` names by their place."""

    def __init__(
        self,
        entries: Sequence[Entry],
        usual: Fate,
        others: Mapping[int, tuple[Fate, Rejection | None]],
    ) -> None:
        self._entries = entries
        self._usual = usual
        self._others = others

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Settled: ...
    @overload
    def __getitem__(self, index: slice) -> list[Settled]: ...
    def __getitem__(self, index: int | slice) -> Settled | list[Settled]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Settled(self._entries[place], *self._others.get(place, (self._usual, None)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def acknowledged(self) -> dict[tuple[bytes, Fate], list[bytes]]:
        """The IDs of the entries that have no dead letter, by stream and fate."""
        found: dict[tuple[bytes, Fate], list[bytes]] = {}
        special = sorted(self._others, reverse=True)
        begin = 0
        for stream, rows in blocks_of(self._entries):
            ids: list[bytes] = [row[0] for row in rows]
            left_out: list[int] = []
            while special and special[-1] < begin + len(rows):
                place = special.pop()
                fate, rejection = self._others[place]
                if rejection is None:
                    found.setdefault((stream, fate), []).append(ids[place - begin])
                left_out.append(place - begin)
            begin += len(rows)
            for place in reversed(left_out):
                del ids[place]
            if ids:
                known = found.setdefault((stream, self._usual), ids)
                if known is not ids:
                    known += ids
        return found

    def letters(self) -> Iterator[Settled]:
        """The entries that have a dead letter, in order."""
        return (self[place] for place in self.places())

    def places(self) -> list[int]:
        """The places of the entries that have a dead letter, in order."""
        return sorted(place for place, (_, rejection) in self._others.items() if rejection is not None)


def acknowledged(settled: Sequence[Settled]) -> dict[tuple[bytes, Fate], list[bytes]]:
    """The IDs of the entries that have no dead letter, by stream and fate."""
    if isinstance(settled, Settlement):
        return settled.acknowledged()
    found: dict[tuple[bytes, Fate], list[bytes]] = {}
    for item in settled:
        if item.rejection is None:
            found.setdefault((item.entry.stream, item.fate), []).append(item.entry.id)
    return found


def letters(settled: Sequence[Settled]) -> Iterator[Settled]:
    """The entries that have a dead letter, in order."""
    if isinstance(settled, Settlement):
        return settled.letters()
    return (item for item in settled if item.rejection is not None)


def places_of_letters(settled: Sequence[Settled]) -> list[int]:
    """The places of the entries that have a dead letter, in order."""
    if isinstance(settled, Settlement):
        return settled.places()
    return [place for place, item in enumerate(settled) if item.rejection is not None]


_ENDS: Mapping[RowFate, tuple[Fate, Rejection | None]] = {
    RowFate.DUPLICATE: (Fate.DUPLICATE, None),
    RowFate.SKIPPED: (Fate.SKIPPED, None),
}


def decide(batch: Batch, rows: Sequence[Answer] | None, retried: bool) -> Outcome:
    """Turn what became of the rows into what becomes of the entries.

    `rows` answers `batch.readings` one by one; None: all of them were stored. `retried` says that an
    earlier attempt at this very batch may have committed. An entry is dead-lettered when anything of it
    was rejected, else stored when it put a row in or had no readings to put in, else a duplicate, or
    skipped when all of its series are switched off. Rows that were there already are the entry's own
    when it was delivered or tried before and carries no other message's id: then it counts as stored,
    because the attempt that stored it never got to count it.
    """
    again = retried or batch.redelivered
    if rows is None:
        return _all_stored(batch)
    answers = iter(rows)
    counts = dict.fromkeys(RowFate, 0)
    rejected = 0
    partly: set[int] = set()
    fates: dict[int, tuple[Fate, Rejection | None]] = {}
    for place in range(len(batch.entries)):
        parsed = batch.others.get(place)
        if parsed is None:
            own, rejections, found = place not in batch.carried, [], [next(answers)]
        else:
            own, rejections = parsed.own_id, list(parsed.rejections)
            found = list(islice(answers, len(parsed.readings)))
        kinds: list[RowFate] = []
        for answer in found:
            if isinstance(answer, Rejection):
                rejections.append(answer)
            else:
                its_own = own and again and answer is RowFate.DUPLICATE
                kinds.append(RowFate.STORED if its_own else answer)
                counts[kinds[-1]] += 1
        if rejections:
            rejected += len(rejections)
            fates[place] = Fate.DEAD_LETTERED, summarise(rejections)
            if kinds:
                partly.add(place)
        elif kinds and RowFate.STORED not in kinds:
            fates[place] = _ENDS[RowFate.DUPLICATE if RowFate.DUPLICATE in kinds else RowFate.SKIPPED]
    return Outcome(
        Settlement(batch.entries, Fate.STORED, fates),
        readings_stored=counts[RowFate.STORED],
        readings_duplicate=counts[RowFate.DUPLICATE],
        readings_rejected=rejected,
        readings_skipped=counts[RowFate.SKIPPED],
        partly=partly,
    )


def _all_stored(batch: Batch) -> Outcome:
    """Every row went in: only what was rejected before ends elsewhere."""
    rejected = 0
    partly: set[int] = set()
    fates: dict[int, tuple[Fate, Rejection | None]] = {}
    for place, parsed in batch.others.items():
        if parsed.rejections:
            rejected += len(parsed.rejections)
            fates[place] = Fate.DEAD_LETTERED, summarise(parsed.rejections)
            if parsed.readings:
                partly.add(place)
    return Outcome(
        Settlement(batch.entries, Fate.STORED, fates),
        readings_stored=len(batch.readings),
        readings_rejected=rejected,
        partly=partly,
    )


def summarise(rejections: Sequence[Rejection]) -> Rejection:
    """One rejection for one dead letter: the first, naming the others by sensor and reason."""
    first = rejections[0]
    if len(rejections) == 1:
        return first
    others = ", ".join(
        f"{rejection.sensor_type}: {rejection.reason}" if rejection.sensor_type else rejection.reason
        for rejection in rejections[1:6]
    )
    more = f" and {len(rejections) - 6} more" if len(rejections) > 6 else ""
    return first._replace(sentence=f"{first.sentence}; also rejected: {others}{more}")
