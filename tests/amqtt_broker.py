"""The process of amqtt: by itself, since importing what tests share would take longer than amqtt does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from amqtt.broker import Broker as Amqtt


async def _serve(wanted: dict[str, Any]) -> None:
    """amqtt until it is killed."""
    listener: dict[str, Any] = {"type": "tcp", "bind": f"127.0.0.1:{wanted['port']}"}
    if wanted["certificate"]:
        listener |= {"ssl": True, "certfile": wanted["certificate"], "keyfile": wanted["key"]}
        listener |= {"cafile": wanted["ca_certificate"]}
    known = "amqtt.plugins.authentication"
    plugins: dict[str, Any] = {f"{known}.AnonymousAuthPlugin": {"allow_anonymous": True}}
    if wanted["username"]:
        from pwdlib import PasswordHash

        passwords = Path(f"/proc/self/fd/{os.memfd_create('passwords')}")
        passwords.write_text(
            f"{wanted['username']}:{PasswordHash.recommended().hash(wanted['password'])}\n"
        )
        plugins = {f"{known}.FileAuthPlugin": {"password_file": str(passwords)}}
    broker = Amqtt({"listeners": {"default": listener}, "plugins": plugins})
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
