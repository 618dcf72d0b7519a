"""What commands print: tables and lists of any length, in bounded memory, safe for a terminal.

Rows are spooled before the first is printed: the transaction that reads them is over by then, however
slowly a pager takes them, and a failure in the middle prints nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self, TextIO

_IN_MEMORY_BYTES = 4_000_000
_CHUNK = 65_536


def printable(text: str) -> str:
    """`text` with what would move a terminal's cursor escaped: names come from devices."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def excerpt(text: str, longest: int = 40) -> str:
    """The beginning of a text, printable."""
    return printable(text if len(text) <= longest else f"{text[:longest]}…")


class Spool:
    """Lines that are kept, in memory or else on disk, until it is known that there are no more."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  closed by `__exit__`
            _IN_MEMORY_BYTES, "w+", encoding="utf-8", newline=""
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        self._file.write(text)

    def lines(self) -> Iterator[str]:
        self._file.seek(0)
        yield from self._file

    def copy_to(self, out: TextIO) -> None:
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            out.write(chunk)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], out: TextIO) -> int:
    """Print an aligned table, and nothing where there are no rows. Answers their number."""
    widths = [len(name) for name in header]
    count = 0
    with Spool() as spool:
        for row in rows:
            shown = [printable(cell) for cell in row]
            widths = [max(width, len(cell)) for width, cell in zip(widths, shown, strict=True)]
            spool.add(json.dumps(shown) + "\n")
            count += 1
        if count:
            _line(header, widths, out)
        for line in spool.lines():
            _line(json.loads(line), widths, out)
    return count


def _line(cells: Sequence[str], widths: Sequence[int], out: TextIO) -> None:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    out.write("  ".join(padded).rstrip() + "\n")


def json_array(objects: Iterable[Mapping[str, object]], out: TextIO) -> int:
    """Print one JSON array, an object a line. Answers their number."""
    count = 0
    with Spool() as spool:
        for one in objects:
            spool.add((",\n" if count else "") + json.dumps(one))
            count += 1
        out.write("[")
        spool.copy_to(out)
        out.write("]\n")
    return count
