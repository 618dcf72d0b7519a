"""`python main.py health`: asks the port of a process on this machine. For a container's HEALTHCHECK.

Imports next to nothing: a probe every few seconds must not cost what a worker costs at its start (1.6 s of
processor time, against 0.1 s). So HEALTH_PORT and HEALTH_HOST are read here by hand, from where
`config.py` reads them: the environment, else `.env` in this folder, else beside main.py.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_USAGE = """usage: main.py health [--ready]
Ask the process that listens at HEALTH_PORT whether its loop gets on; with --ready, whether its servers are
all right too. Prints one line. Exit status: 0 yes, 1 no, 2 wrong usage or configuration.
"""
_ANSWER_SEC = 12.0  # looking at servers that are away takes a while
_MOST_BYTES = 65_536


def main(arguments: Sequence[str]) -> int:
    if [*arguments] not in ([], ["--ready"]):
        asked = {*arguments} & {"-h", "--help"}
        print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    found = _settings(os.environ)
    port, host = found.get("HEALTH_PORT", ""), found.get("HEALTH_HOST", "127.0.0.1")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        told = f"is {port!r}" if port else "is not set"
        print(f"sluice: HEALTH_PORT {told}; it takes the port that the process listens at", file=sys.stderr)
        return 2
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        status, body = _ask(host, int(port), "/readyz" if arguments else "/livez")
        said = json.loads(body)
        words = ", ".join(f"{name} {value}" for name, value in said.items())
    except (OSError, ValueError, AttributeError, IndexError) as error:
        print(f"no answer from {host}:{port}: {error}")
        return 1
    print(words)
    return 0 if status == 200 else 1


def _ask(host: str, port: int, path: str) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    with socket.create_connection((host, port), timeout=_ANSWER_SEC) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while (part := connection.recv(_MOST_BYTES)) and len(answer) < _MOST_BYTES:
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The two settings, where they are set. Empty means not set."""
    names = ("HEALTH_PORT", "HEALTH_HOST")
    found: dict[str, str] = {}
    for path in (Path(__file__).resolve().parent.parent / ".env", Path(".env")):
        if path.is_file() and any(name not in environment for name in names):
            from dotenv import dotenv_values  # only where there is a file

            found.update({name.upper(): value or "" for name, value in dotenv_values(path).items()})
    upper = {name.upper(): value for name, value in environment.items()}
    found.update({name: upper[name] for name in names if upper.get(name)})
    return {name: value.strip() for name, value in found.items() if name in names and value.strip()}
