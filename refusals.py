"""What no waiting mends at the first contact with Redis: told in a sentence, with the remedy."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import redis
from redis.exceptions import AuthenticationError

import redis_client
from redis_tls import WrongTls

_NAME_MISMATCH = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
_WANTS_CERTIFICATE = (
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "TLSV1_ALERT_UNKNOWN_CA",
)


def refusal(error: BaseException) -> str:
    """Why Redis, or this side, will not have it, and what to do; empty where waiting may help."""
    for cause in _causes(error):
        if isinstance(cause, WrongTls):
            return f"no connection to the Redis that REDIS_… names: {cause}"
        if isinstance(cause, ssl.SSLEOFError):  # it may just be restarting
            return ""
        if isinstance(cause, ssl.SSLError):
            return f"TLS with the Redis that REDIS_… names failed: {_of_tls(cause)}"
    if redis_client.is_denied(error):
        return (
            f"the Redis user may not do all that is needed: {redis_client.message(error)}; the ACL lines "
            "are in docs/operations.md, and ACL LOG in Redis names what was denied"
        )
    if isinstance(error, AuthenticationError):
        return refused_connection(error)
    return ""


def refused_connection(error: BaseException) -> str:
    """For the very first command, to which any error reply means that."""
    return f"the Redis that REDIS_… names refused the connection: {error}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        if error.verify_code in _NAME_MISMATCH:
            return f"{said}; name Redis as its certificate does"
        return f"its certificate does not verify, {said}; set REDIS_CA_CERTIFICATE to who has signed it"
    if reason in _NO_TLS:
        return "there is no TLS at this port; write redis://, or the port that has it"
    if reason in _WANTS_CERTIFICATE:
        return "it asks for a certificate that it trusts; set REDIS_CERTIFICATE and REDIS_KEY"
    said = reason or error.strerror or str(error)
    return f"{said}; look at REDIS_CA_CERTIFICATE, REDIS_CERTIFICATE and REDIS_KEY"


def is_refused(error: BaseException) -> bool:
    return isinstance(error, redis.RedisError) and bool(refusal(error))
