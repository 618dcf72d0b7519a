"""The mark on an entry that was replayed from a dead letter: whose identity and time it has. Pure.

A replayed entry gets a new ID, since Redis gives no old ones again. But its readings must be the ones
that the original entry had: stored ones have to be recognised, and a time that was the entry ID's must
stay. So the mark, its first field, carries the original ID, and how often it was replayed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from schema import Entry

MARK = b"sluice_replay"
_SAID = re.compile(rb"([0-9]{1,20})-([0-9]{1,20}) ([1-9][0-9]{0,8})")
_LARGEST = 2**64


def marked(original_id: bytes, replays: int, fields: Sequence[bytes]) -> list[bytes]:
    """The fields of a replayed entry: the mark, then the original ones byte for byte. `replays` from 1."""
    return [MARK, b"%s %d" % (original_id, replays), *fields]


def original(entry: Entry) -> tuple[Entry, int]:
    """The entry as it first stood in its stream, and how often it was replayed since.

    An entry without a mark, as nearly all are, is its own original. A mark that is none (a producer's
    field of that name) is passed over as any other field.
    """
    fields = entry.fields
    if not fields or fields[0] != MARK:
        return entry, 0
    said = _SAID.fullmatch(fields[1])
    if said is None or max(int(said[1]), int(said[2])) >= _LARGEST:
        return entry, 0
    return entry._replace(id=b"%s-%s" % (said[1], said[2]), fields=fields[2:]), int(said[3])
