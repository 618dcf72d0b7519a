"""What is refused for good is told in one line, and what may pass is waited for."""

from __future__ import annotations

import ssl

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

import redis_client
from refusals import is_refused, refusal


def after(cause: Exception, error: Exception) -> Exception:
    """`error` as redis-py raises it: while it handles `cause`."""
    try:
        try:
            raise cause
        except type(cause):
            raise error  # noqa: B904  what redis-py does
    except type(error) as raised:
        return raised


def of_tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] something (_ssl.c:1006)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("WRONG_VERSION_NUMBER", "there is no TLS at this port"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "set REDIS_CERTIFICATE and REDIS_KEY"),
        ("KEY_VALUES_MISMATCH", "KEY_VALUES_MISMATCH; look at REDIS_CA_CERTIFICATE"),
    ],
)
def test_what_tls_refuses_names_the_remedy(reason: str, said: str) -> None:
    error = after(of_tls(reason), redis.ConnectionError("Error 1 connecting to localhost:6380."))
    assert said in refusal(error)
    assert redis_client.is_world(error), "while a worker runs it is waited for"


def test_a_denied_command_is_named() -> None:
    error = NoPermissionError("User w has no permissions to run the 'dbsize' command")
    assert "'dbsize'" in refusal(error)


def test_a_wrong_password_is_refused() -> None:
    assert "refused the connection" in refusal(AuthenticationError("WRONGPASS invalid password"))


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("Connection refused"),
        redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        after(ssl.SSLEOFError(8, "EOF occurred"), redis.ConnectionError("closed")),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ValueError("no error of Redis"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_waiting_may_mend_is_not_refused(error: Exception) -> None:
    assert not is_refused(error)


# As Redis 6.2 says it: raised by a command in a script, and answered by a script as the reply of a command.
IN_SCRIPTS = {
    "Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:2: "
    "@user_script: 2: -READONLY You can't write against a read only replica.": "READONLY You can't write",
    "@user_script: 19: -OOM command not allowed when used memory > 'maxmemory'.": "OOM command not allowed",
    "Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:3: "
    "WRONGTYPE Operation against a key": "WRONGTYPE Operation",
}


@pytest.mark.parametrize("said", IN_SCRIPTS)
def test_an_error_in_a_script_of_redis_6_2_is_known_by_its_first_word(said: str) -> None:
    error = ResponseError(said)
    assert redis_client.message(error).startswith(IN_SCRIPTS[said])
    assert redis_client.is_world(error) != redis_client.is_wrong_type(error)


@pytest.mark.parametrize(
    "said",
    [
        "NOPERM ACL failure in script: User w has no permissions to run the 'xack' command",
        "ACL failure in script: User w has no permissions to run the 'xack' command",
        "@user_script: 19: The user executing the script can't run this command or subcommand",
    ],
)
def test_what_is_denied_in_a_script_is_denied(said: str) -> None:
    assert redis_client.is_denied(ResponseError(said))
