"""Who may look: passwords, tokens, cookies, and how guessing is slowed."""

from __future__ import annotations

import pytest

from dashboard.access import FREE_TRIES, LONGEST_WAIT_SEC, SESSION_SEC, Access, Attempts

PASSWORD = "correct horse battery"
TOKEN = "0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_without_secrets_everybody_may_look_and_no_cookie_counts() -> None:
    access = Access(None, None)
    assert access.open
    assert not access.is_secret("")
    assert not access.is_token("Bearer ")
    assert access.session_left("1.9999999999.x.y") == 0


@pytest.mark.parametrize(
    ("password", "token", "given", "right"),
    [
        (PASSWORD, None, PASSWORD, True),
        (PASSWORD, None, PASSWORD + " ", False),
        (PASSWORD, None, "", False),
        (None, TOKEN, TOKEN, True),
        (PASSWORD, TOKEN, TOKEN, True),
        ("pässwörter sind gut", None, "pässwörter sind gut", True),
        (PASSWORD, None, "\udcff", False),
    ],
)
def test_people_log_in_with_the_password_or_the_token(
    password: str | None, token: str | None, given: str, right: bool
) -> None:
    assert Access(password, token).is_secret(given) is right


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {PASSWORD}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("", False),
    ],
)
def test_programs_show_the_token_and_nothing_else(header: str, right: bool) -> None:
    assert Access(PASSWORD, TOKEN).is_token(header) is right


def test_a_session_lasts_its_time_and_survives_a_restart() -> None:
    clock = Clock()
    cookie = Access(PASSWORD, None, clock).new_session()
    again = Access(PASSWORD, None, clock)
    assert again.session_left(cookie) == SESSION_SEC
    clock.now += SESSION_SEC - 1
    assert again.session_left(cookie) == 1
    clock.now += 2
    assert again.session_left(cookie) == 0


def test_a_session_ends_with_the_password_it_was_begun_with() -> None:
    cookie = Access(PASSWORD, None).new_session()
    assert Access(PASSWORD + "2", None).session_left(cookie) == 0
    assert Access(PASSWORD, TOKEN).session_left(cookie) == 0


def test_a_cookie_that_somebody_has_changed_is_none() -> None:
    access = Access(PASSWORD, None)
    cookie = access.new_session()
    version, until, nonce, signature = cookie.split(".")
    for changed in (
        f"{version}.{int(until) + 1}.{nonce}.{signature}",
        f"2.{until}.{nonce}.{signature}",
        f"{version}.{until}.{nonce}.",
        f"{version}.{until}.{nonce}",
        f"{version}.{until}.{nonce}.{signature[:-1]}",
        f"{cookie}.",
        "",
        "....",
        "\udcff" * 4,
        "x" * 5_000,
    ):
        assert access.session_left(changed) == 0, changed


def test_two_sessions_are_never_the_same() -> None:
    access = Access(PASSWORD, None, Clock())
    assert access.new_session() != access.new_session()


def test_wrong_passwords_make_an_address_wait_longer_and_longer() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    waits = []
    for _ in range(FREE_TRIES + 7):
        waits.append(attempts.wait_sec("192.0.2.1"))
        clock.now += waits[-1]
        attempts.wrong("192.0.2.1")
    assert waits == [0.0] * FREE_TRIES + [2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_WAIT_SEC, LONGEST_WAIT_SEC]
    assert attempts.wait_sec("192.0.2.2") == 0
    attempts.right("192.0.2.1")
    assert attempts.wait_sec("192.0.2.1") == 0


def test_wrong_passwords_are_forgiven_after_a_while() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(FREE_TRIES + 3):
        attempts.wrong("192.0.2.1")
    clock.now += 3600
    attempts.wrong("192.0.2.1")
    assert attempts.wait_sec("192.0.2.1") == 0


def test_a_network_of_one_person_counts_as_one_address() -> None:
    attempts = Attempts(Clock())
    for number in range(FREE_TRIES):
        attempts.wrong(f"2001:db8:0:1::{number:x}")
    assert attempts.wait_sec("2001:db8:0:1:ffff::1") > 0
    assert attempts.wait_sec("2001:db8:0:2::1") == 0


def test_as_many_addresses_as_one_likes_take_no_more_memory() -> None:
    attempts = Attempts(Clock())
    for number in range(10_000):
        attempts.wrong(f"198.51.{number // 256}.{number % 256}")
    assert len(attempts._wrong) == 4_096
