"""What runs beside a worker in a benchmark: hiredis alone, the bare loop, and the peers, as processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import ROOT

PEERS = {"peer a": "sqlalchemy_bulk.py", "peer b": "faststream_copy.py"}
HOME = ROOT / ".venv" / "peers"  # goes with .venv, which git and the checks leave alone
PINNED = ROOT / "benchmarks" / "peers" / "requirements.txt"
LONGEST_SEC = 600


class Ran(NamedTuple):
    """What a program says of itself: seconds by the clock and of processor time, after its start."""

    seconds: float
    cpu: float


def bare(way: str, redis_url: str, database_url: str, entries: int) -> Ran:
    """`benchmarks.bare` on the backlog that is in Redis. `way`: read or store."""
    options = ["--redis-url", redis_url, "--database-url", database_url, "--entries", str(entries)]
    return _run([sys.executable, "-m", "benchmarks.bare", way, *options], ROOT)


def peer(name: str, redis_url: str, database_url: str, entries: int) -> Ran:
    """A peer, until it has stored `entries`."""
    program = PINNED.parent / PEERS[name]
    python = HOME / "bin" / "python"
    return _run([str(python), str(program), redis_url, database_url, str(entries)], tempfile.gettempdir())


def _run(command: list[str], folder: Path | str) -> Ran:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_SEC, check=False
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"benchmark: {command[1]} took longer than {LONGEST_SEC} s") from None
    if done.returncode:
        raise SystemExit(f"benchmark: {' '.join(command[1:3])} failed:\n{done.stderr[-2000:]}")
    return Ran(**json.loads(done.stdout.splitlines()[-1]))


def have_peers() -> bool:
    """Whether the packages of the peers are installed as they are pinned."""
    stamp = HOME / "installed.txt"
    return stamp.exists() and stamp.read_bytes() == PINNED.read_bytes()


def install_peers() -> None:
    """Their packages into a virtual environment of their own, unless they are there."""
    if have_peers():
        return
    print(f"Installing what the peers need into {HOME.relative_to(ROOT)} …", file=sys.stderr)
    shutil.rmtree(HOME, ignore_errors=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
    for command in (
        [sys.executable, "-m", "venv", str(HOME)],
        [*pip, "--require-hashes", "-r", str(PINNED)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(
                "benchmark: the peers' packages could not be installed (--no-peers leaves them out):\n"
                + done.stderr[-1500:]
            )
    shutil.copy(PINNED, HOME / "installed.txt")
