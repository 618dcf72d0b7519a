"""A Lua script, in the form that the server at hand takes.

From Redis 7 on, and in every Valkey, a script says in its first line that it may run while memory is full.
Redis 6.2 takes that line for a mistake, but lets a script go on writing once it has written: so there the
script begins with a write that changes nothing.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from redis_client import Argument, execute
from redis_scripts import FLAGS

# No field of ours has an empty name. A key of another type refuses it, which does as well.
_WITHOUT_FLAGS = "redis.pcall('HDEL', KEYS[1], '')\n"


class Script:
    """A script of `redis_scripts`, for one client. Raises redis errors as they come."""

    def __init__(self, client: redis.Redis, text: str) -> None:
        self._client = client
        self._newest = text
        self.text = text  # in the form that the server took last
        self.sha = _digest(text)

    def __call__(self, keys: list[Any], args: list[Any]) -> Any:
        """What the script answers."""
        command: tuple[Argument, ...] = (len(keys), *keys, *args)
        try:
            return execute(self._client, "EVALSHA", self.sha, *command)
        except NoScriptError:
            self.load()
            return execute(self._client, "EVALSHA", self.sha, *command)

    def load(self) -> None:
        """Make the script known to the server, which may be another one than before."""
        self._use(self._newest)
        try:
            execute(self._client, "SCRIPT LOAD", self.text)
        except ResponseError as error:
            if "compiling script" not in str(error) or not self.text.startswith(FLAGS):
                raise
            self._use(_WITHOUT_FLAGS + self.text.removeprefix(FLAGS))
            execute(self._client, "SCRIPT LOAD", self.text)

    def _use(self, text: str) -> None:
        self.text, self.sha = text, _digest(text)


def _digest(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()  # Redis's own name for a script
