"""Who may look: password or token, compared in constant time; sessions in a signed cookie; guessing slowed.

A session is not kept anywhere: the cookie says until when it lasts and is signed with a key that comes from
password and token. So it survives a restart, and ends when either is changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic, time

SESSION_SEC = 7 * 86_400
RENEW_SEC = 86_400  # a session that is older gets a new cookie
FREE_TRIES = 5  # before an address has to wait
LONGEST_WAIT_SEC = 60.0
FORGET_SEC = 900.0
_MOST_ADDRESSES = 4_096
_MOST_COOKIE = 200
_SALT = b"sluice dashboard session 1"
_SCHEME = "bearer "


class Attempts:
    """Wrong passwords of each address: the sixth has to wait 2 s, the next 4 s, at most a minute.

    Addresses of IPv6 count by their /64, which one person has whole. At most `_MOST_ADDRESSES` are
    remembered, the last to be wrong; a quarter of an hour without a wrong one forgives.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait_sec(self, address: str) -> float:
        """How long this address must not try; 0: it may."""
        count, last = self._wrong.get(_group(address), (0, 0.0))
        if count < FREE_TRIES:
            return 0.0
        pause = min(LONGEST_WAIT_SEC, 2.0 ** (count - FREE_TRIES + 1))
        return max(0.0, last + pause - self._clock())

    def wrong(self, address: str) -> None:
        group, now = _group(address), self._clock()
        count, last = self._wrong.pop(group, (0, now))
        self._wrong[group] = (count + 1 if now - last < FORGET_SEC else 1, now)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)

    def right(self, address: str) -> None:
        self._wrong.pop(_group(address), None)


class Access:
    """Decides by secrets, tokens and cookies. Both secrets None: whoever reaches the port may look."""

    def __init__(self, password: str | None, token: str | None, clock: Callable[[], float] = time) -> None:
        self._secrets = [one.encode() for one in (password, token) if one is not None]
        self._token = None if token is None else token.encode()
        self._clock = clock
        # Slow on purpose, once at the start: who has a cookie could try passwords on its signature.
        known = b"\0".join(self._secrets)
        self._key = hashlib.scrypt(known, salt=_SALT, n=2**14, r=8, p=1, dklen=32) if known else b""

    @property
    def open(self) -> bool:
        return not self._secrets

    def is_secret(self, given: str) -> bool:
        """Whether somebody may log in with this: the password, or the token."""
        same = [hmac.compare_digest(_bytes(given), one) for one in self._secrets]
        return any(same)

    def is_token(self, authorization: str) -> bool:
        """Whether this is the header `Authorization: Bearer TOKEN` with the right token."""
        if self._token is None or not authorization.lower().startswith(_SCHEME):
            return False
        return hmac.compare_digest(_bytes(authorization[len(_SCHEME) :].strip()), self._token)

    def new_session(self) -> str:
        """A cookie's value."""
        body = f"1.{int(self._clock()) + SESSION_SEC}.{secrets.token_urlsafe(9)}"
        return f"{body}.{self._signature(body)}"

    def session_left(self, cookie: str) -> float:
        """For how many seconds this session lasts; 0 where it is none of ours, or over."""
        body, _, signature = cookie.rpartition(".")
        parts = body.split(".")
        if self.open or len(cookie) > _MOST_COOKIE or len(parts) != 3 or parts[0] != "1":
            return 0.0
        if not hmac.compare_digest(_bytes(signature), self._signature(body).encode()):
            return 0.0
        return min(max(0.0, int(parts[1]) - self._clock()), SESSION_SEC)

    def _signature(self, body: str) -> str:
        digest = hmac.new(self._key, _bytes(body), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    """Whatever a browser has sent, half a character too."""
    return text.encode(errors="surrogatepass")


def _group(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 6:
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
