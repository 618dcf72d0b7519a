"""Keeps the logs of a one-command run within bounds: it may run for a year on a small card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LONGEST_LOG = 50_000_000  # bytes; three hours of the demo's worker, at the 5.4 kB/s that were measured


def cut(home: Path, most: int = LONGEST_LOG) -> None:
    """What is longer than `most` bytes goes into `….log.1`, in the place of the one before.

    Whoever writes has the file open for appending, and goes on at its new beginning. A line that is written
    between the copy and the cut is lost: nothing but logs is.
    """
    for log in home.glob("*.log"):
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
