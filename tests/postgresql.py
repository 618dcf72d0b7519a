"""PostgreSQL as people run it: over TCP, with certificates, with a standby, behind PgBouncer.

Every server listens on loopback or a Unix socket, and belongs to the test that starts it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from standalone.ports import free_port
from standalone.servers import Postgres, Server
from tests.faults import Proxy, proxy_to
from tests.support import wait_until

PLAIN = "sslmode=disable&gssencmode=disable"


def programs_with_tls() -> Path | None:
    """Of the newest server that Debian's packages have put here: the embedded one is built without TLS."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class TcpPostgres(Postgres):
    """A server that listens on a port of loopback too. `programs`: of another version than the embedded."""

    def __init__(
        self, data: Path, options: Sequence[str] = (), *, programs: Path | None = None, port: int = 0
    ) -> None:
        self.port = port or free_port()
        super().__init__(data, ["listen_addresses=127.0.0.1", f"port={self.port}", *options])
        self.log = data.parent / f"{data.name}.log"
        if programs:
            self._programs = programs

    def url_of(self, database: str) -> str:
        return f"{super().url_of(database)}&port={self.port}"

    def tcp_url(self, user: str = "postgres", host: str = "127.0.0.1", options: str = PLAIN) -> str:
        return f"postgresql://{user}@{host}:{self.port}/sluice?{options}"

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url_of("postgres"), connect_timeout=2).close()
            return True
        return False

    @property
    def owner(self) -> str | None:
        """The user that it runs as, None for whoever runs the tests."""
        return self._user

    def give(self, *files: Path) -> None:
        """Hand files to the server, which takes no key that others may read."""
        for file in files:
            file.chmod(0o600)
            if self._user:
                shutil.chown(file, self._user, pwd.getpwnam(self._user).pw_gid)

    def allow(self, *lines: str) -> None:
        """What pg_hba.conf says from the next start on."""
        (self.data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))

    def crash(self) -> None:
        """An immediate shutdown: sessions are cut off where they are, and the next start recovers."""
        assert self.process
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)
        self.process = None

    def standby(self, data: Path) -> TcpPostgres:
        """A copy of this server, made by pg_basebackup, that follows it."""
        made = TcpPostgres(data)
        made.data.mkdir(mode=0o700)
        if self._user:
            shutil.chown(made.data, self._user, pwd.getpwnam(self._user).pw_gid)
        program, source = self._programs / "pg_basebackup", self.url_of("postgres")
        made._run([program, "-D", made.data, "-R", "-c", "fast", "-X", "stream", "-d", source])
        return made

    def promote(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as session:
            session.execute("select pg_promote()")


class PgBouncer(Server):
    """PgBouncer in transaction mode, in front of a server, for one account without a password."""

    name = "pgbouncer"

    def __init__(self, folder: Path, server: TcpPostgres) -> None:
        super().__init__(folder / "data")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._user = server.owner  # who may enter the folder of the server's socket
        users, self._config = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n"sluice_worker" ""\n"sluice_query" ""\n')
        self._config.write_text(
            f"""
[databases]
sluice = host={server.socket_folder} port={server.port} dbname=sluice
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 3
server_reset_query =
server_login_retry = 1
"""
        )
        self._config.chmod(0o644)
        users.chmod(0o644)

    def start(self) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program, "no pgbouncer"
        self._spawn([program, self._config], self._user)
        self._wait_until(self._answers)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/sluice?{PLAIN}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2):
            return True
        return False


class Authority:
    """A certificate authority in a folder: `ca.pem`, and what it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.pem"
        self._openssl("req", "-x509", *_NEW, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test")

    def sign(self, name: str, alternative: str = "") -> tuple[Path, Path]:
        """A certificate for `name`, and its key, which only their owner may read."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self._openssl("req", *_NEW, "-keyout", key, "-out", "request", "-subj", f"/CN={name}")
        extra = self.folder / "extensions"
        extra.write_text(f"subjectAltName={alternative or f'DNS:{name}'}\n")
        signing: list[str | Path] = [
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extra,
        ]
        self._openssl("x509", "-req", "-in", "request", *signing, "-out", certificate)
        key.chmod(0o600)
        return certificate, key

    def _openssl(self, *arguments: str | Path) -> None:
        command = ["openssl", *map(str, arguments)]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@contextlib.contextmanager
def proxy_of(server: Postgres, port: int = 5432) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of a server, and the address by way of it."""
    with proxy_to(f"{server.socket_folder}/.s.PGSQL.{port}") as proxy:
        yield proxy, f"postgresql://postgres@127.0.0.1:{proxy.port}/sluice?{PLAIN}"


def in_step(primary: Postgres) -> None:
    """Wait until a standby confirms every COMMIT before it is answered."""
    asked = "select 1 from pg_stat_replication where sync_state = 'sync'"
    with psycopg.connect(primary.url, autocommit=True) as session:
        wait_until(lambda: session.execute(asked).fetchone(), what="a standby in step")
