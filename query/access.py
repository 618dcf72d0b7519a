"""Who may call what: bearer tokens, compared in constant time. Pure.

Certificates of callers are checked before, by TLS itself. A token is never logged, nor is it in an answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from query.refusal import Code, Refused

_DELETING = "DeleteReadings"
# Without a token, so that whatever watches over the process can ask: it answers a yes or no.
_OPEN = "/grpc.health.v1.Health/Check"
_HEADER = "authorization"
_SCHEME = "bearer "


class Access:
    """Decides by the name of the method and the metadata of the call.

    `token` None: whoever reaches the port may call. `delete_token` allows deleting, and all else too; None:
    nobody may delete.
    """

    def __init__(self, token: str | None, delete_token: str | None) -> None:
        self._token = _hidden(token)
        self._delete_token = _hidden(delete_token)

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """`method`: its full name, `/package.Service/Method`. Raises `Refused`."""
        if method == _OPEN:
            return
        given = _given(metadata)
        may_delete = _same(given, self._delete_token)
        may_call = _same(given, self._token) or may_delete
        if method.rpartition("/")[2] == _DELETING:
            self._check_deleting(given, may_delete)
        elif self._token is not None and not may_call:
            raise Refused(
                Code.UNAUTHENTICATED,
                "this call needs the metadata 'authorization: Bearer TOKEN' with the token of QUERY_TOKEN",
            )

    def _check_deleting(self, given: bytes | None, may_delete: bool) -> None:
        if self._delete_token is None:
            raise Refused(
                Code.PERMISSION_DENIED, "nobody may delete here: the server has no QUERY_DELETE_TOKEN"
            )
        if given is None:
            raise Refused(
                Code.UNAUTHENTICATED,
                "DeleteReadings needs the metadata 'authorization: Bearer TOKEN' with the token of "
                "QUERY_DELETE_TOKEN",
            )
        if not may_delete:
            raise Refused(
                Code.PERMISSION_DENIED,
                "this token does not allow to delete; that of QUERY_DELETE_TOKEN does",
            )


def _hidden(token: str | None) -> bytes | None:
    return None if token is None else token.encode()


def _given(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """The one token that came along; None where there is none, or several."""
    values = [value for name, value in metadata if name == _HEADER]
    if len(values) != 1:
        return None
    value = values[0] if isinstance(values[0], str) else values[0].decode("latin-1")
    if not value.lower().startswith(_SCHEME):
        return None
    return value[len(_SCHEME) :].strip().encode()


def _same(given: bytes | None, wanted: bytes | None) -> bool:
    return given is not None and wanted is not None and hmac.compare_digest(given, wanted)
