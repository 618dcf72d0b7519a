"""The process of amqtt: by itself, since importing what tests share would take longer than amqtt does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from standalone.mqtt_broker import ANYBODY, serve


def _listener(wanted: dict[str, Any]) -> dict[str, Any]:
    listener: dict[str, Any] = {"bind": f"127.0.0.1:{wanted['port']}"}
    if wanted["certificate"]:
        listener |= {"ssl": True, "certfile": wanted["certificate"], "keyfile": wanted["key"]}
        listener |= {"cafile": wanted["ca_certificate"]}
    return listener


def _plugins(wanted: dict[str, Any]) -> dict[str, Any]:
    if not wanted["username"]:
        return ANYBODY
    from pwdlib import PasswordHash

    passwords = Path(f"/proc/self/fd/{os.memfd_create('passwords')}")
    passwords.write_text(f"{wanted['username']}:{PasswordHash.recommended().hash(wanted['password'])}\n")
    return {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(passwords)}}


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    asyncio.run(serve(_listener(options), _plugins(options)))
