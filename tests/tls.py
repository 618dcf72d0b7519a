"""TLS on purpose: an authority of a test's own, and what ends TLS in front of a server on a Unix socket."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path


def make_certificates(folder: Path, name: str = "localhost") -> Path:
    """`ca.pem`, and `own.pem` with `own.key` for server and client, for DNS `name`; `other.pem` is another
    authority. Needs the openssl command.
    """

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for authority in ("ca", "other"):
        files = ["-keyout", f"{authority}.key", "-out", f"{authority}.pem"]
        openssl("req", "-x509", *new, *files, "-subj", f"/CN={authority}")
    openssl("req", *new, "-keyout", "own.key", "-out", "own.csr", "-subj", f"/CN={name}")
    (folder / "names").write_text(f"subjectAltName=DNS:{name}\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
    openssl("x509", "-req", "-in", "own.csr", *signing, "-out", "own.pem")
    return folder


class TlsEnd:
    """Listens on a loopback port with TLS and passes what comes on to a Unix socket, as stunnel does.

    `client_certificate`: only clients with one of the authority `ca.pem`.
    """

    def __init__(self, upstream: Path, certificates: Path, *, client_certificate: bool) -> None:
        self._upstream = str(upstream)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
        self._context.load_cert_chain(certificates / "own.pem", certificates / "own.key")
        if client_certificate:
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[client])
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._upstream)
            client.settimeout(5)
            with self._context.wrap_socket(client, server_side=True) as outer:
                self._pass_on(outer, server)

    def _pass_on(self, outer: ssl.SSLSocket, server: socket.socket) -> None:
        while not self._closing.is_set():
            ready = [outer] if outer.pending() else select.select([outer, server], [], [], 0.05)[0]
            for source in ready:
                piece = source.recv(1 << 16)
                if not piece:
                    return
                (server if source is outer else outer).sendall(piece)


@contextlib.contextmanager
def tls_in_front_of(
    upstream: Path, certificates: Path, *, client_certificate: bool = False
) -> Iterator[TlsEnd]:
    end = TlsEnd(upstream, certificates, client_certificate=client_certificate)
    try:
        yield end
    finally:
        end.close()
