"""Numbers, times, names, metadata and message ids: what is accepted, and the reason for what is not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

import values
from schema import Bad, Reason

NBSP = "\u00a0"
NARROW_NBSP = "\u202f"


def reason_of(call: Callable[..., object], *arguments: object) -> Reason:
    """The reason for which `call` refuses `arguments`."""
    with pytest.raises(Bad) as refused:
        call(*arguments)
    assert refused.value.sentence
    assert len(refused.value.value) <= 200
    return refused.value.reason


def micros(text: str) -> int:
    """An ISO time in microseconds since 1970, worked out in whole numbers."""
    passed = datetime.fromisoformat(text).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


# Numbers


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b"21.5", 21.5, id="decimal"),
        pytest.param(b"0", 0.0, id="zero"),
        pytest.param(b"-0.0", 0.0, id="negative zero"),
        pytest.param(b"+7", 7.0, id="plus sign"),
        pytest.param(b"007", 7.0, id="leading zeros"),
        pytest.param(b"5.", 5.0, id="nothing after the point"),
        pytest.param(b"-.5", -0.5, id="nothing before the point"),
        pytest.param(b"1e3", 1000.0, id="exponent"),
        pytest.param(b"1.5E-3", 0.0015, id="negative exponent"),
        pytest.param(b" 21.5\r\n", 21.5, id="white space around"),
        pytest.param(b"1.7976931348623157e308", 1.7976931348623157e308, id="largest double"),
        pytest.param(b"5e-324", 5e-324, id="smallest double"),
        pytest.param(b"1e-400", 0.0, id="underflow"),
        pytest.param(b"9007199254740993", 9007199254740992.0, id="rounded to a double"),
        pytest.param(b"1" + b"0" * 200, 1e200, id="many digits"),
    ],
)
def test_a_decimal_number_is_read(raw: bytes, expected: float) -> None:
    assert values.number(raw) == expected
    assert values.scalar(raw) == (expected, None)


WRONG_NUMBERS = [
    pytest.param(b"", Reason.VALUE_EMPTY, id="empty"),
    pytest.param(b" \t\r\n", Reason.VALUE_EMPTY, id="white space"),
    pytest.param(b"undefined", Reason.VALUE_UNDEFINED, id="undefined"),
    pytest.param(b"null", Reason.VALUE_NULL, id="null"),
    pytest.param(b"NULL", Reason.VALUE_NULL, id="NULL"),
    pytest.param(b"None", Reason.VALUE_NULL, id="None"),
    pytest.param(b"nil", Reason.VALUE_NULL, id="nil"),
    pytest.param(b"NaN", Reason.VALUE_NAN, id="NaN"),
    pytest.param(b"nan", Reason.VALUE_NAN, id="nan"),
    pytest.param(b"-nan", Reason.VALUE_NAN, id="-nan"),
    pytest.param(b"inf", Reason.VALUE_INFINITE, id="inf"),
    pytest.param(b"-Infinity", Reason.VALUE_INFINITE, id="-Infinity"),
    pytest.param(b"+INF", Reason.VALUE_INFINITE, id="+INF"),
    pytest.param(b"0x1F", Reason.VALUE_HEXADECIMAL, id="hexadecimal"),
    pytest.param(b"-0Xff", Reason.VALUE_HEXADECIMAL, id="negative hexadecimal"),
    pytest.param(b"1_000", Reason.VALUE_UNDERSCORE, id="underscore"),
    pytest.param(b"1_0.5e3", Reason.VALUE_UNDERSCORE, id="underscore in a float"),
    pytest.param(b"1,000", Reason.VALUE_SEPARATOR, id="thousands comma"),
    pytest.param(b"-1,000,000.5", Reason.VALUE_SEPARATOR, id="thousands commas and a point"),
    pytest.param(b"1.000,5", Reason.VALUE_SEPARATOR, id="thousands point and decimal comma"),
    pytest.param(b"21,5", Reason.VALUE_SEPARATOR, id="decimal comma"),
    pytest.param(b"1'000", Reason.VALUE_SEPARATOR, id="thousands apostrophe"),
    pytest.param(b"1 000", Reason.VALUE_SEPARATOR, id="thousands space"),
    pytest.param(f"1{NBSP}000".encode(), Reason.VALUE_SEPARATOR, id="thousands no-break space"),
    pytest.param(f"1{NARROW_NBSP}000".encode(), Reason.VALUE_SEPARATOR, id="thousands narrow space"),
    pytest.param(b"1e309", Reason.VALUE_OUT_OF_RANGE, id="beyond a double"),
    pytest.param(b"-1e999999", Reason.VALUE_OUT_OF_RANGE, id="far beyond a double"),
    pytest.param(b"1" + b"0" * 309, Reason.VALUE_OUT_OF_RANGE, id="integer beyond a double"),
    pytest.param(b"1" * 10_000, Reason.VALUE_OUT_OF_RANGE, id="10,000 digits"),
    pytest.param(b"\xff\xfe", Reason.INVALID_UTF8, id="invalid UTF-8"),
    pytest.param(b"21.5\x80", Reason.INVALID_UTF8, id="number and invalid UTF-8"),
    pytest.param(b"\xed\xa0\x80", Reason.INVALID_UTF8, id="encoded surrogate"),
    pytest.param(b"21\x00", Reason.NUL_CHARACTER, id="NUL"),
    pytest.param(b"\x00", Reason.NUL_CHARACTER, id="NUL alone"),
    pytest.param(b"21.5C", Reason.VALUE_NOT_A_NUMBER, id="unit"),
    pytest.param(b"N/A", Reason.VALUE_NOT_A_NUMBER, id="N/A"),
    pytest.param(b"0x", Reason.VALUE_NOT_A_NUMBER, id="hexadecimal without digits"),
    pytest.param(b"0b101", Reason.VALUE_NOT_A_NUMBER, id="binary"),
    pytest.param(b"0o17", Reason.VALUE_NOT_A_NUMBER, id="octal"),
    pytest.param(b"1e", Reason.VALUE_NOT_A_NUMBER, id="exponent without digits"),
    pytest.param(b"--1", Reason.VALUE_NOT_A_NUMBER, id="two signs"),
    pytest.param(b"1.2.3", Reason.VALUE_NOT_A_NUMBER, id="two points"),
    pytest.param(b".", Reason.VALUE_NOT_A_NUMBER, id="point alone"),
    pytest.param("٢١".encode(), Reason.VALUE_NOT_A_NUMBER, id="Arabic digits"),
    pytest.param("２１".encode(), Reason.VALUE_NOT_A_NUMBER, id="full-width digits"),
    pytest.param("−5".encode(), Reason.VALUE_NOT_A_NUMBER, id="typographic minus"),
]


@pytest.mark.parametrize(("raw", "reason"), WRONG_NUMBERS)
def test_what_is_not_a_decimal_number_is_refused_by_its_own_reason(raw: bytes, reason: Reason) -> None:
    assert reason_of(values.number, raw) is reason
    assert reason_of(values.scalar, raw) is reason


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(b"%sx", id="then a letter"),
        pytest.param(b"1%s1x", id="between digits"),
        pytest.param(b"x%s", id="after a letter"),
    ],
)
@pytest.mark.parametrize(
    "filling",
    [
        pytest.param(sign, id=repr(sign))
        for sign in (b"_", b",", b" ", b"1", b".", b"0_", b"1,", b"+", b"e")
    ],
)
def test_refusing_a_long_value_takes_no_time(pattern: bytes, filling: bytes) -> None:
    """The time is measured on this thread's CPU: quadratic backtracking would take 2 s and more."""
    raw = pattern % (filling * 30_000)
    began = time.thread_time()
    reason_of(values.number, raw)
    assert time.thread_time() - began < 0.25


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b"true", (1.0, None), id="true"),
        pytest.param(b" false ", (0.0, None), id="false"),
        pytest.param(b'"on"', (None, "on"), id="string"),
        pytest.param(b' "a b" ', (None, "a b"), id="string in white space"),
        pytest.param('"zu öffnen"'.encode(), (None, "zu öffnen"), id="not ASCII"),
        pytest.param(b'"\\ud83d\\ude00"', (None, "\U0001f600"), id="surrogate pair"),
        pytest.param(b'"21.5"', (None, "21.5"), id="number in quotes"),
        pytest.param(b'"none"', (None, "none"), id="none in quotes"),
    ],
)
def test_a_bare_value_may_be_a_boolean_or_a_json_string(
    raw: bytes, expected: tuple[float | None, str | None]
) -> None:
    assert values.scalar(raw) == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b'""', Reason.VALUE_EMPTY, id="empty string"),
        pytest.param(b'"undefined"', Reason.VALUE_UNDEFINED, id="undefined in quotes"),
        pytest.param(b'"NaN"', Reason.VALUE_NAN, id="NaN in quotes"),
        pytest.param(b'"null"', Reason.VALUE_NULL, id="null in quotes"),
        pytest.param(b'"a\\u0000b"', Reason.NUL_CHARACTER, id="NUL escape"),
        pytest.param(b'"open', Reason.VALUE_NOT_A_NUMBER, id="no closing quote"),
        pytest.param(b'"a" "b"', Reason.VALUE_NOT_A_NUMBER, id="two strings"),
        pytest.param(b'"\\ud800"', Reason.VALUE_NOT_A_NUMBER, id="lone surrogate escape"),
        pytest.param(b"TRUE", Reason.VALUE_NOT_A_NUMBER, id="TRUE is no JSON"),
    ],
)
def test_a_bare_value_that_is_no_state_is_refused(raw: bytes, reason: Reason) -> None:
    assert reason_of(values.scalar, raw) is reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(21.5, (21.5, None), id="float"),
        pytest.param(7, (7.0, None), id="integer"),
        pytest.param(10**300, (1e300, None), id="large integer"),
        pytest.param(True, (1.0, None), id="true"),
        pytest.param(False, (0.0, None), id="false"),
        pytest.param("open", (None, "open"), id="string"),
    ],
)
def test_a_decoded_member_keeps_its_kind(value: object, expected: tuple[float | None, str | None]) -> None:
    found = values.member(value)
    assert found == expected
    assert found[0] is None or type(found[0]) is float


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, Reason.VALUE_NULL, id="null"),
        pytest.param([1], Reason.VALUE_UNSUPPORTED, id="array"),
        pytest.param({"a": 1}, Reason.VALUE_UNSUPPORTED, id="object"),
        pytest.param(float("nan"), Reason.VALUE_NAN, id="NaN"),
        pytest.param(float("inf"), Reason.VALUE_INFINITE, id="infinity"),
        pytest.param(float("-inf"), Reason.VALUE_INFINITE, id="negative infinity"),
        pytest.param(10**309, Reason.VALUE_OUT_OF_RANGE, id="integer beyond a double"),
        pytest.param("", Reason.VALUE_EMPTY, id="empty string"),
        pytest.param("a\x00", Reason.NUL_CHARACTER, id="NUL"),
        pytest.param("\ud800", Reason.INVALID_UTF8, id="lone surrogate"),
    ],
)
def test_a_decoded_member_that_is_no_value_is_refused(value: object, reason: Reason) -> None:
    assert reason_of(values.member, value) is reason


# Timestamps


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param("2015-02-04T17:51:00Z", "2015-02-04T17:51:00+00:00", id="RFC 3339"),
        pytest.param("2015-02-04t17:51:00z", "2015-02-04T17:51:00+00:00", id="lower case"),
        pytest.param("2015-02-04 17:51:00Z", "2015-02-04T17:51:00+00:00", id="space for T"),
        pytest.param("2015-02-04T17:51:00", "2015-02-04T17:51:00+00:00", id="no offset is UTC"),
        pytest.param("2015-02-04 17:51:00", "2015-02-04T17:51:00+00:00", id="space, no offset"),
        pytest.param("2015-02-04T17:51:00.5Z", "2015-02-04T17:51:00.5+00:00", id="tenths"),
        pytest.param("2015-02-04T17:51:00.123456Z", "2015-02-04T17:51:00.123456+00:00", id="microseconds"),
        pytest.param(
            "2015-02-04T17:51:00.123456999Z", "2015-02-04T17:51:00.123456+00:00", id="cut, not rounded"
        ),
        pytest.param(
            "2015-02-04T17:51:00." + "9" * 40, "2015-02-04T17:51:00.999999+00:00", id="many digits"
        ),
        pytest.param("2015-02-04T17:51:00+01:00", "2015-02-04T16:51:00+00:00", id="positive offset"),
        pytest.param("2015-02-04T17:51:00-05:30", "2015-02-04T23:21:00+00:00", id="negative offset"),
        pytest.param("2015-02-04T17:51:00+0100", "2015-02-04T16:51:00+00:00", id="offset without colon"),
        pytest.param("2015-02-04T17:51:00-00:00", "2015-02-04T17:51:00+00:00", id="unknown offset"),
        pytest.param("1970-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00", id="first moment"),
        pytest.param("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00+00:00", id="first moment by offset"),
        pytest.param("2016-02-29T00:00:00Z", "2016-02-29T00:00:00+00:00", id="leap day"),
        pytest.param("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00", id="last moment"),
    ],
)
def test_an_rfc_3339_time_is_read(raw: str, expected: str) -> None:
    assert values.timestamp(raw.encode()) == micros(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00", id="UTC"),
        pytest.param("2016-12-31T18:59:60-05:00", "2017-01-01T00:00:00+00:00", id="another offset"),
        pytest.param("2017-01-01T08:59:60+09:00", "2017-01-01T00:00:00+00:00", id="next day elsewhere"),
        pytest.param("1969-12-31T23:59:60Z", "1970-01-01T00:00:00+00:00", id="first moment"),
        pytest.param(
            "2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.25+00:00", id="fraction, as PostgreSQL"
        ),
    ],
)
def test_a_leap_second_becomes_the_second_after_it(raw: str, expected: str) -> None:
    assert values.timestamp(raw.encode()) == micros(expected)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"2016-12-31T23:58:60Z", id="not at minute 59"),
        pytest.param(b"2016-12-31T22:59:60Z", id="not at hour 23"),
        pytest.param(b"2016-12-31T23:59:60+01:00", id="not at 23:59:60 UTC"),
        pytest.param(b"2016-12-31T23:59:61Z", id="second 61"),
    ],
)
def test_a_sixtieth_second_at_another_time_is_refused(raw: bytes) -> None:
    assert reason_of(values.timestamp, raw) is Reason.TIMESTAMP_MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"yesterday", id="word"),
        pytest.param(b"2015-02-04T24:00:00Z", id="24:00"),
        pytest.param(b"2015-02-04T25:00:00Z", id="hour 25"),
        pytest.param(b"2015-W06-3", id="week date"),
        pytest.param(b"2015-W06-3T17:51:00Z", id="week date and time"),
        pytest.param(b"2015-035", id="ordinal date"),
        pytest.param(b"2015-035T17:51:00Z", id="ordinal date and time"),
        pytest.param(b"20150204T175100Z", id="basic format"),
        pytest.param(b"2015-02-04", id="date alone"),
        pytest.param(b"2015-02-04T17:51Z", id="no seconds"),
        pytest.param(b"2015-02-04T17Z", id="hour alone"),
        pytest.param(b"2015-02-29T00:00:00Z", id="no leap year"),
        pytest.param(b"2015-13-01T00:00:00Z", id="month 13"),
        pytest.param(b"2015-02-04T17:51:00+24:00", id="offset of 24 h"),
        pytest.param(b"2015-02-04T17:51:00+01:60", id="offset of 60 min"),
        pytest.param(b"2015-02-04T17:51:00+01", id="offset of hours alone"),
        pytest.param(b"2015-02-04T17:51:00 Z", id="space before the offset"),
        pytest.param(b"2015-02-04T17:51:00.Z", id="point without digits"),
        pytest.param(b"2015-02-04T17:51:00,5Z", id="decimal comma"),
        pytest.param(b"2015/02/04 17:51:00", id="slashes"),
        pytest.param(b"04.02.2015 17:51:00", id="day first"),
        pytest.param(b"15-02-04T17:51:00Z", id="two-digit year"),
        pytest.param(b"+002015-02-04T17:51:00Z", id="six-digit year"),
        pytest.param(b"2015-02-04T17:51:00Z\n", id="line end"),
        pytest.param(b"2015-02-04T17:51:00Z[Europe/Berlin]", id="named zone"),
        pytest.param("２015-02-04T17:51:00Z".encode(), id="full-width digit"),
        pytest.param(b"\xff", id="invalid UTF-8"),
        pytest.param(b"2015-02-04T17:51:00Z\x00", id="NUL"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"inf", id="infinity"),
        pytest.param(b"1e30", id="far too large"),
        pytest.param(b"1" * 65, id="too long"),
        pytest.param(b"2015-02-04T17:51:00." + b"0" * 100, id="too long a fraction"),
    ],
)
def test_a_malformed_time_is_refused(raw: bytes) -> None:
    assert reason_of(values.timestamp, raw) is Reason.TIMESTAMP_MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"1969-12-31T23:59:59.999999Z", id="last moment before"),
        pytest.param(b"1970-01-01T00:00:00+00:01", id="by offset"),
        pytest.param(b"1960-06-30T23:59:60Z", id="leap second"),
        pytest.param(b"1969-12-30T23:59:60Z", id="leap second of the day before the last"),
        pytest.param(b"0001-01-01T00:00:00+23:59", id="year 1"),
        pytest.param(b"0000-01-01T00:00:00Z", id="year 0"),
        pytest.param(b"-1", id="a second"),
        pytest.param(b"-1700000000000", id="negative milliseconds"),
        pytest.param(b"-0.000001", id="a microsecond"),
    ],
)
def test_a_time_before_1970_is_refused(raw: bytes) -> None:
    assert reason_of(values.timestamp, raw) is Reason.TIMESTAMP_BEFORE_1970


UNIX_TIMES = [
    pytest.param("0", 0, id="zero"),
    pytest.param("1700000000", 1_700_000_000_000_000, id="seconds"),
    pytest.param("99999999999", 99_999_999_999_000_000, id="last as seconds"),
    pytest.param("100000000000", 100_000_000_000_000, id="first as milliseconds"),
    pytest.param("1700000000123", 1_700_000_000_123_000, id="milliseconds"),
    pytest.param("99999999999999", 99_999_999_999_999_000, id="last as milliseconds"),
    pytest.param("100000000000000", 100_000_000_000_000, id="first as microseconds"),
    pytest.param("1700000000123456", 1_700_000_000_123_456, id="microseconds"),
    pytest.param("99999999999999999", 99_999_999_999_999_999, id="last as microseconds"),
    pytest.param("100000000000000000", 100_000_000_000_000, id="first as nanoseconds"),
    pytest.param("1700000000123456789", 1_700_000_000_123_456, id="nanoseconds"),
    pytest.param("99999999999999999999", 99_999_999_999_999_999, id="last as nanoseconds"),
    pytest.param("1700000000.5", 1_700_000_000_500_000, id="seconds with a fraction"),
    pytest.param("1700000000.123456", 1_700_000_000_123_456, id="seconds with microseconds"),
    pytest.param("1700000000123.25", 1_700_000_000_123_250, id="milliseconds with a fraction"),
    pytest.param("1.7e9", 1_700_000_000_000_000, id="exponent"),
    pytest.param("+1700000000", 1_700_000_000_000_000, id="plus sign"),
    pytest.param("-0", 0, id="negative zero"),
    pytest.param("0001700000000", 1_700_000_000_000_000, id="leading zeros"),
]


@pytest.mark.parametrize(("digits", "expected"), UNIX_TIMES)
def test_unix_time_is_told_apart_by_its_size(digits: str, expected: int) -> None:
    assert values.timestamp(digits.encode()) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(1700000000, 1_700_000_000_000_000, id="integer"),
        pytest.param(1700000000123456789, 1_700_000_000_123_456, id="nanoseconds keep their digits"),
        pytest.param(1700000000.5, 1_700_000_000_500_000, id="float"),
        pytest.param("1700000000", 1_700_000_000_000_000, id="digits in a string"),
        pytest.param("2023-11-14T22:13:20Z", 1_700_000_000_000_000, id="RFC 3339"),
    ],
)
def test_a_time_in_json_may_be_a_number_or_a_string(value: object, expected: int) -> None:
    assert values.json_time(value) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(True, Reason.TIMESTAMP_MALFORMED, id="boolean"),
        pytest.param([], Reason.TIMESTAMP_MALFORMED, id="array"),
        pytest.param(None, Reason.TIMESTAMP_MALFORMED, id="null"),
        pytest.param("\ud800", Reason.TIMESTAMP_MALFORMED, id="lone surrogate"),
        pytest.param(float("nan"), Reason.TIMESTAMP_MALFORMED, id="NaN"),
        pytest.param(float("inf"), Reason.TIMESTAMP_MALFORMED, id="infinity"),
        pytest.param(10**20, Reason.TIMESTAMP_MALFORMED, id="too large"),
        pytest.param(10**400, Reason.TIMESTAMP_MALFORMED, id="beyond a double"),
        pytest.param(-1, Reason.TIMESTAMP_BEFORE_1970, id="negative"),
        pytest.param(-0.5, Reason.TIMESTAMP_BEFORE_1970, id="negative fraction"),
    ],
)
def test_a_time_in_json_that_is_none_is_refused(value: object, reason: Reason) -> None:
    assert reason_of(values.json_time, value) is reason


def test_a_time_at_the_limit_is_taken_and_one_past_it_refused() -> None:
    assert values.check_time(1_000_000, 1_000_000) == 1_000_000
    assert reason_of(values.check_time, 1_000_001, 1_000_000) is Reason.TIMESTAMP_IN_FUTURE


# Names


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("d", id="one character"),
        pytest.param("d" * 100, id="100 characters"),
        pytest.param("\U0001f321" * 100, id="100 characters of four bytes"),
        pytest.param("a:b c/d", id="signs"),
    ],
)
def test_a_name_of_1_to_100_characters_is_taken(name: str) -> None:
    assert values.device_name(name) == name
    assert values.sensor_name(name) == name


@pytest.mark.parametrize(
    ("name", "device_reason", "sensor_reason"),
    [
        pytest.param("", Reason.DEVICE_ID_EMPTY, Reason.SENSOR_TYPE_EMPTY, id="empty"),
        pytest.param(" \t", Reason.DEVICE_ID_EMPTY, Reason.SENSOR_TYPE_EMPTY, id="white space"),
        pytest.param(NBSP, Reason.DEVICE_ID_EMPTY, Reason.SENSOR_TYPE_EMPTY, id="no-break space"),
        pytest.param(
            "d" * 101, Reason.DEVICE_ID_TOO_LONG, Reason.SENSOR_TYPE_TOO_LONG, id="101 characters"
        ),
        pytest.param("a\x00b", Reason.NUL_CHARACTER, Reason.NUL_CHARACTER, id="NUL"),
        pytest.param("a\ud800", Reason.INVALID_UTF8, Reason.INVALID_UTF8, id="lone surrogate"),
    ],
)
def test_a_name_that_cannot_be_stored_is_refused(
    name: str, device_reason: Reason, sensor_reason: Reason
) -> None:
    assert reason_of(values.device_name, name) is device_reason
    assert reason_of(values.sensor_name, name) is sensor_reason


# Metadata


def nested(depth: int) -> bytes:
    """An object that holds itself `depth` times over."""
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"{}", id="empty object"),
        pytest.param(b' {"unit": "C", "n": [1, 2.5, null, true]}\n', id="white space kept"),
        pytest.param('{"ort": "Küche"}'.encode(), id="not ASCII"),
        pytest.param(b'{"a": "\\ud83d\\ude00"}', id="surrogate pair"),
        pytest.param(b'{"a": 1, "a": 2}', id="repeated name"),
        pytest.param(nested(32), id="32 levels"),
        pytest.param(b'{"a": 123456789012345678901234567890}', id="integer beyond 64 bits"),
    ],
)
def test_metadata_is_kept_as_it_came(raw: bytes) -> None:
    assert values.metadata(raw, 8192) is raw
    assert isinstance(json.loads(raw), dict)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", Reason.METADATA_NOT_JSON, id="empty"),
        pytest.param(b"{unit: C}", Reason.METADATA_NOT_JSON, id="not JSON"),
        pytest.param(b"{'unit': 'C'}", Reason.METADATA_NOT_JSON, id="single quotes"),
        pytest.param(b'{"a": 1', Reason.METADATA_NOT_JSON, id="cut off"),
        pytest.param(b'{"a": 1} x', Reason.METADATA_NOT_JSON, id="something after it"),
        pytest.param(b'{"a": 1,}', Reason.METADATA_NOT_JSON, id="comma at the end"),
        pytest.param(b'{"a": 01}', Reason.METADATA_NOT_JSON, id="leading zero"),
        pytest.param(b'{"a": "\x01"}', Reason.METADATA_NOT_JSON, id="control character"),
        pytest.param(b"\xef\xbb\xbf{}", Reason.METADATA_NOT_JSON, id="byte order mark"),
        pytest.param(b'{"a": NaN}', Reason.METADATA_NOT_JSON, id="NaN"),
        pytest.param(b'{"a": -Infinity}', Reason.METADATA_NOT_JSON, id="Infinity"),
        pytest.param(b'{"a": 1e400}', Reason.METADATA_NOT_JSON, id="beyond a double"),
        pytest.param(b'{"a": "\\ud800"}', Reason.METADATA_NOT_JSON, id="lone surrogate"),
        pytest.param(b'{"a": "\\ud800\\u0041"}', Reason.METADATA_NOT_JSON, id="half a pair"),
        pytest.param(
            b'{"a": ' + b"1" * 5000 + b"}", Reason.METADATA_NOT_JSON, id="integer of 5,000 digits"
        ),
        pytest.param(b"[1]", Reason.METADATA_NOT_OBJECT, id="array"),
        pytest.param(b"null", Reason.METADATA_NOT_OBJECT, id="null"),
        pytest.param(b'"text"', Reason.METADATA_NOT_OBJECT, id="string"),
        pytest.param(b"1", Reason.METADATA_NOT_OBJECT, id="number"),
        pytest.param(nested(33), Reason.METADATA_TOO_DEEP, id="33 levels"),
        pytest.param(nested(10_000), Reason.METADATA_TOO_DEEP, id="10,000 levels"),
        pytest.param(
            b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", Reason.METADATA_TOO_DEEP, id="10,000 arrays"
        ),
        pytest.param(b"\xff", Reason.INVALID_UTF8, id="invalid UTF-8"),
        pytest.param(b'{"a": "\xff"}', Reason.INVALID_UTF8, id="invalid UTF-8 in a string"),
        pytest.param(b'{"a": "\x00"}', Reason.NUL_CHARACTER, id="NUL"),
        pytest.param(b'{"a": "\\u0000"}', Reason.NUL_CHARACTER, id="NUL escape"),
        pytest.param(b'{"\\u0000": 1}', Reason.NUL_CHARACTER, id="NUL escape in a name"),
        pytest.param(b'{"a": [["\\u0000"]]}', Reason.NUL_CHARACTER, id="NUL escape far in"),
    ],
)
def test_metadata_that_jsonb_would_not_take_is_refused(raw: bytes, reason: Reason) -> None:
    assert reason_of(values.metadata, raw, 100_000) is reason


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(b"1e-20000", id="small"),
        pytest.param(b"1e-16384", id="just too small"),
        pytest.param(b"0e-99999", id="zero"),
        pytest.param(b"0." + b"1" * 7000 + b"e-9999", id="many digits and a small exponent"),
    ],
)
def test_a_number_that_jsonb_cannot_hold_is_refused(number: bytes) -> None:
    """PostgreSQL's numeric has 16,383 digits after the point; more is an error, 22003, in jsonb too."""
    assert reason_of(values.metadata, b'{"a": ' + number + b"}", 8192) is Reason.METADATA_NOT_JSON


def test_the_smallest_number_of_jsonb_is_taken() -> None:
    assert values.metadata(b'{"a": 1e-9999}', 8192) == b'{"a": 1e-9999}'


def test_what_looks_like_a_huge_number_in_a_string_is_fine() -> None:
    raw = b'{"serial": "3e123456", "unit": 1.5e3}'
    assert values.metadata(raw, 8192) == raw


def test_metadata_is_measured_in_bytes() -> None:
    raw = '{"a": "äää"}'.encode()
    assert values.metadata(raw, len(raw)) == raw
    assert reason_of(values.metadata, raw, len(raw) - 1) is Reason.METADATA_TOO_LARGE


# Message ids and entry ids


@pytest.mark.parametrize(
    "mid",
    [
        pytest.param(b"0005F8C1A3E04EF6F44500000B4A0000", id="EMQX"),
        pytest.param(b"0005f8c1a3e04ef6f44500000b4a0000", id="lower case"),
        pytest.param(b"0005f8c1-a3e0-4ef6-f445-00000b4a0000", id="UUID"),
    ],
)
def test_32_hexadecimal_digits_are_the_message_id(mid: bytes) -> None:
    assert values.message_id(mid) == bytes.fromhex("0005f8c1a3e04ef6f44500000b4a0000")


@pytest.mark.parametrize(
    "mid",
    [
        pytest.param(b"1", id="number"),
        pytest.param(b"gateway-7/42", id="text"),
        pytest.param(b"\xff\x00", id="any bytes"),
        pytest.param(b"0005f8c1a3e0-4ef6-f445-00000b4a0000", id="one hyphen short of a UUID"),
        pytest.param(b"x" * 1_000_000, id="1 MB"),
    ],
)
def test_any_other_message_id_is_its_digest(mid: bytes) -> None:
    found = values.message_id(mid)
    assert found is not None
    assert len(found) == 16
    assert found == values.message_id(mid)
    assert found != values.message_id(mid + b"1")


@pytest.mark.parametrize(
    "mid", [pytest.param(mid, id=repr(mid)) for mid in (b"", b" ", b"undefined", b"null", b" null\n")]
)
def test_an_unset_template_variable_is_no_message_id(mid: bytes) -> None:
    assert values.message_id(mid) is None


def test_an_entry_id_has_two_halves_of_64_bits() -> None:
    assert values.entry_id_parts(b"1700000000000-3") == (1700000000000, 3)
    assert values.entry_id_parts(b"18446744073709551615-18446744073709551615") == (2**64 - 1, 2**64 - 1)


def test_an_excerpt_is_printable_whatever_the_bytes() -> None:
    assert values.excerpt(b"a\x00\xff") == "a\\x00\\xff"
    assert "\x00" not in values.excerpt(bytes(300))


@pytest.mark.parametrize("number", [b"1e-" + b"9" * 5000, b"1E+" + b"0" * 4400 + b"12345"])
def test_an_exponent_of_thousands_of_digits_is_refused_without_being_computed(number: bytes) -> None:
    assert reason_of(values.metadata, b'{"a": ' + number + b"}", 8192) is Reason.METADATA_NOT_JSON


def test_leading_zeros_of_an_exponent_do_no_harm() -> None:
    raw = b'{"a": 1e' + b"0" * 5000 + b"1}"
    assert values.metadata(raw, 8192) == raw
