"""Messages to servers are told apart wherever the pieces end in which they come."""

from __future__ import annotations

import pytest
from hiredis import pack_command

import redis_scripts
from tests.wire import Libpq, Resp, Words


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def labels(protocol: Words, said: bytes, size: int) -> list[str]:
    pieces = (said[start : start + size] for start in range(0, len(said), size))
    return [message.label for piece in pieces for message in protocol.sent(piece)]


COMMANDS: list[tuple[bytes | str | int, ...]] = [
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"),
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", "0"),
    ("EVAL", redis_scripts.SETTLE_WIDE, 0),
    ("EVALSHA", "0" * 40, 0),
    ("CLIENT", "SETNAME", "x"),
    ("XADD", "s", "*", "payload", b"\r\n$3\r\n" * 100),
]
STATEMENTS = [
    frame(b"", b"\0\3\0\0user\0me\0\0"),
    frame(b"Q", b"BEGIN\0"),
    frame(b"P", b"\0select set_config('a', $1, true)\0\0\0") + frame(b"B", b"\0\0") + frame(b"S", b""),
    frame(b"P", b'\0copy "sensor_readings" (a) from stdin\0\0\0') + frame(b"B", b"\0\0") + frame(b"S", b""),
    frame(b"d", b"Q\0\0\0\7no" * 50),
    frame(b"c", b"") + frame(b"S", b""),
    frame(b"Q", b"COMMIT\0"),
    frame(b"Q", b"copy t from stdin\0"),
    frame(b"c", b""),
    frame(b"X", b""),
]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_commands_of_redis_are_known_by_name_and_passed_on_as_they_came(size: int) -> None:
    said = b"".join(pack_command(command) for command in COMMANDS)  # type: ignore[arg-type]
    assert labels(Resp(), said, size) == [
        "XREADGROUP new",
        "XREADGROUP own",
        "SETTLE_WIDE",
        "a script",
        "CLIENT SETNAME",
        "XADD",
    ]
    assert b"".join(message.data for message in Resp().sent(said)) == said


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_statements_are_known_by_their_words_and_commit_by_what_it_ends(size: int) -> None:
    said = b"".join(STATEMENTS)
    assert labels(Libpq(), said, size) == [
        "log in",
        "begin",
        "select set_config a true",
        "copy sensor_readings",
        "copy sensor_readings: rows",
        "copy sensor_readings: end",
        "commit: copy sensor_readings",
        "copy t",
        "copy t: end",
        "goodbye",
    ]
    assert b"".join(message.data for message in Libpq().sent(said)) == said


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_answers_are_counted_when_they_are_complete(size: int) -> None:
    redis_said = (
        b"+OK\r\n:1\r\n*-1\r\n*1\r\n*2\r\n$1\r\ns\r\n*1\r\n:2\r\n*1\r\n*2\r\n$1\r\ns\r\n*0\r\n-ERR x\r\n"
    )
    copied = frame(b"G", b"\1\0\0") + frame(b"C", b"COPY 1\0") + frame(b"Z", b"I")
    for protocol, said, wanted in (
        (Resp(), redis_said, [True, True, False, True, False, True]),
        (Libpq(), frame(b"R", b"\0\0\0\5salt") + frame(b"R", b"\0\0\0\0") + copied, [True] * 3),
    ):
        pieces = (said[start : start + size] for start in range(0, len(said), size))
        assert [one for piece in pieces for one in protocol.answers(piece)] == wanted
