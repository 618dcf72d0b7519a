"""Text to numbers, times, names and metadata: the rules of what is accepted. Pure.

Everything raises `schema.Bad` with its reason, and nothing else, whatever bytes arrive.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from schema import Bad, Reason

MAX_NAME = 100
MAX_NUMBER = 400
MAX_DEPTH = 32
BEYOND = object()  # stands in a decoded document for a number that no double holds
REPEATED = object()  # for the values of a name that occurs twice

_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEXADECIMAL = re.compile(r"[+-]?0[xX][0-9a-fA-F]+")
_SEPARATORS = frozenset(",' \u00a0\u202f")
_SEPARATED = _SEPARATORS | frozenset("0123456789.+-")
_UNDERSCORED = frozenset("0123456789._+-eE")
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?"
    r"(?:([Zz])|([+-])(\d\d):?(\d\d))?",
    re.ASCII,
)
# Unix time below the bound is in s, ms, µs, ns: what makes microseconds of it
UNITS = ((10**11, 1_000_000, 1), (10**14, 1000, 1), (10**17, 1, 1), (10**20, 1, 1000))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LONG_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]{4}")
_UUID = re.compile(rb"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_WORDS = {
    "undefined": (Reason.VALUE_UNDEFINED, "the value is the word 'undefined': a variable was not set"),
    "null": (Reason.VALUE_NULL, "the value is null"),
    "none": (Reason.VALUE_NULL, "the value is None"),
    "nil": (Reason.VALUE_NULL, "the value is nil"),
    "nan": (Reason.VALUE_NAN, "the value is NaN, with which no average could be computed"),
    "inf": (Reason.VALUE_INFINITE, "the value is infinite"),
    "infinity": (Reason.VALUE_INFINITE, "the value is infinite"),
}


class Instant(NamedTuple):
    """A time that a format has worked out itself: microseconds since 1970 UTC, perhaps before."""

    micros: int


def excerpt(raw: bytes) -> str:
    """The beginning of arbitrary bytes as printable text, for a dead letter's header."""
    return raw[:200].decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def text(raw: bytes, what: str) -> str:
    """UTF-8 without NUL, as PostgreSQL can hold it."""
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Bad(
            Reason.INVALID_UTF8, f"the {what} is not UTF-8 at byte {error.start}", excerpt(raw)
        ) from None
    if "\x00" in decoded:
        raise Bad(Reason.NUL_CHARACTER, f"the {what} holds a NUL character", excerpt(raw))
    return decoded


def device_name(name: str) -> str:
    """A device id: 1 to 100 characters without NUL."""
    if not name or name.isspace():
        raise Bad(Reason.DEVICE_ID_EMPTY, "the device id is empty")
    return _name(name, Reason.DEVICE_ID_TOO_LONG, "device id")


def sensor_name(name: str) -> str:
    """A sensor type: 1 to 100 characters without NUL."""
    if not name or name.isspace():
        raise Bad(Reason.SENSOR_TYPE_EMPTY, "the sensor type is empty")
    return _name(name, Reason.SENSOR_TYPE_TOO_LONG, "sensor type")


def _name(name: str, too_long: Reason, what: str) -> str:
    if len(name) > MAX_NAME:
        raise Bad(too_long, f"the {what} has {len(name)} characters, at most {MAX_NAME} are stored")
    return _storable(name, what)


def _storable(decoded: str, what: str) -> str:
    """Text that PostgreSQL can hold: no NUL, and no lone surrogate, which a JSON escape may bring."""
    if "\x00" in decoded:
        raise Bad(Reason.NUL_CHARACTER, f"the {what} holds a NUL character")
    if not decoded.isascii():
        try:
            decoded.encode("utf-8")
        except UnicodeEncodeError:
            raise Bad(Reason.INVALID_UTF8, f"the {what} holds half a surrogate pair") from None
    return decoded


def number(raw: bytes) -> float:
    """An ASCII decimal number, surrounding white space allowed.

    Refused, each by its own reason: words, hexadecimal, underscores, commas (neither thousands
    separators nor decimal commas are guessed at), and what a double cannot hold.
    """
    if _NUMBER.fullmatch(raw):
        if len(raw) > MAX_NUMBER:
            raise Bad(Reason.VALUE_OUT_OF_RANGE, f"the number has {len(raw)} characters", excerpt(raw))
        return finite(float(raw), raw)
    stripped = raw.strip(b" \t\r\n")
    if stripped != raw:
        return number(stripped)
    raise _not_a_number(raw)


def finite(value: float, raw: bytes = b"") -> float:
    """A float that PostgreSQL can average: neither NaN nor infinite."""
    if math.isfinite(value):
        return value
    if raw:
        raise Bad(Reason.VALUE_OUT_OF_RANGE, "the number is beyond the range of a double", excerpt(raw))
    reason = Reason.VALUE_NAN if math.isnan(value) else Reason.VALUE_INFINITE
    raise Bad(reason, f"the value is {value}", str(value))


def _not_a_number(raw: bytes) -> Bad:
    shown = excerpt(raw)
    if not raw:
        return Bad(Reason.VALUE_EMPTY, "the value is empty")
    word = text(raw, "value")
    known = _WORDS.get(word.lower().lstrip("+-"))
    if known:
        return Bad(known[0], known[1], shown)
    if _HEXADECIMAL.fullmatch(word):
        return Bad(Reason.VALUE_HEXADECIMAL, "the value is hexadecimal; decimal is read", shown)
    # Sets, not patterns: a pattern with two stars takes quadratic time on what a device may send.
    letters = set(word)
    if "_" in letters and letters <= _UNDERSCORED:
        return Bad(Reason.VALUE_UNDERSCORE, "the number holds an underscore", shown)
    if letters & _SEPARATORS and letters <= _SEPARATED:
        return Bad(
            Reason.VALUE_SEPARATOR,
            "the number holds a thousands separator or a decimal comma; only a point is read",
            shown,
        )
    return Bad(Reason.VALUE_NOT_A_NUMBER, "the value is not a number", shown)


def scalar(raw: bytes) -> tuple[float | None, str | None]:
    """A value as devices send it bare: a number, `true`/`false`, or a JSON string in quotes.

    Returns (value, None) or (None, value_text).
    """
    if _NUMBER.fullmatch(raw) and len(raw) <= MAX_NUMBER:
        return finite(float(raw), raw), None
    stripped = raw.strip(b" \t\r\n")
    if stripped == b"true":
        return 1.0, None
    if stripped == b"false":
        return 0.0, None
    if stripped[:1] == b'"':
        try:
            return None, state(msgspec.json.decode(stripped, type=str))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Bad(
                Reason.VALUE_NOT_A_NUMBER, "the value is neither a number nor a JSON string", excerpt(raw)
            ) from None
    return number(stripped), None


def state(value: str) -> str:
    """A textual state: not empty, no NUL, encodable."""
    if not value:
        raise Bad(Reason.VALUE_EMPTY, "the value is an empty string")
    word = value.lower()
    known = _WORDS.get(word.lstrip("+-"))
    if known and word != "none":  # a state of many devices: no action, no motion
        raise Bad(known[0], known[1], value)
    return _storable(value, "value")


def member(value: object) -> tuple[float | None, str | None]:
    """A decoded member as (value, value_text): numbers, booleans and strings keep their kind."""
    if isinstance(value, bool):
        return (1.0 if value else 0.0), None
    if isinstance(value, float):
        return finite(value), None
    if isinstance(value, int):
        try:
            return float(value), None
        except OverflowError:
            raise Bad(Reason.VALUE_OUT_OF_RANGE, "the number is beyond the range of a double") from None
    if isinstance(value, str):
        return None, state(value)
    if value is None:
        raise Bad(Reason.VALUE_NULL, "the value is null")
    if value is BEYOND:
        raise Bad(Reason.VALUE_OUT_OF_RANGE, "the number is beyond the range of a double")
    if value is REPEATED:
        raise Bad(Reason.DUPLICATE_FIELD, "the name occurs twice in the payload")
    if isinstance(value, Bad):
        raise value
    raise Bad(Reason.VALUE_UNSUPPORTED, "the value is neither a number nor a boolean nor a string")


def timestamp(raw: bytes) -> int:
    """RFC 3339 or Unix time as text, in microseconds since 1970 UTC.

    Unix time is told apart by size: below 1e11 seconds, below 1e14 ms, below 1e17 µs, else ns; a
    fraction is allowed. RFC 3339 without an offset means UTC; `T` may be a space; digits past the
    microsecond are cut off. The leap second 23:59:60 UTC becomes the second after it, as PostgreSQL
    does. Refused: 24:00, week and ordinal dates, and the basic format without separators.
    """
    if len(raw) > 64:
        raise _malformed(raw)
    if _NUMBER.fullmatch(raw):
        return unix_time(raw.decode("ascii"))
    try:
        match = _RFC3339.fullmatch(raw.decode("ascii"))
    except UnicodeDecodeError:
        raise _malformed(raw) from None
    if not match:
        raise _malformed(raw)
    return _calendar(match, raw)


def _calendar(match: re.Match[str], raw: bytes) -> int:
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, _, sign, off_hours, off_minutes = match.groups()[6:]
    offset = 0
    if sign:
        if int(off_hours) > 23 or int(off_minutes) > 59:
            raise _malformed(raw)
        offset = (int(off_hours) * 60 + int(off_minutes)) * (-1 if sign == "-" else 1)
    if year == 0:
        raise _before_1970(raw)
    leap = second == 60
    try:
        moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    except ValueError:
        raise _malformed(raw) from None
    micros = (moment - _EPOCH) // _MICROSECOND - offset * 60_000_000
    if leap:
        if micros % 86_400_000_000 != 86_399_000_000:
            raise _malformed(raw)
        micros += 1_000_000
    micros += int((fraction or "").ljust(6, "0")[:6])
    if micros < 0:
        raise _before_1970(raw)
    return micros


def unix_time(digits: str | float) -> int:
    """Unix time in s, ms, µs or ns (told apart by size) in microseconds since 1970 UTC."""
    shown = str(digits).encode()
    try:
        whole = int(digits) if isinstance(digits, str) and digits.isdigit() else None
        value = float(digits)
    except (OverflowError, ValueError):
        raise _malformed(shown) from None
    if not math.isfinite(value):
        raise _malformed(shown)
    if value < 0:
        raise _before_1970(shown)
    size = value if whole is None else whole  # a double would round 99999999999999999 up into the next unit
    for bound, multiplier, divisor in UNITS:
        if size < bound:
            if whole is not None:
                return whole * multiplier // divisor
            return round(value * multiplier / divisor)
    raise _malformed(shown)


def json_time(value: object) -> int:
    """A time member of a decoded payload: a number, text as in `timestamp`, or an `Instant`."""
    if isinstance(value, str):
        return timestamp(value.encode("utf-8", "replace"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, Instant):
            if value.micros < 0:
                raise _before_1970(str(value.micros).encode())
            return value.micros
        raise Bad(Reason.TIMESTAMP_MALFORMED, "the timestamp is neither a number nor a string")
    return unix_time(str(value) if isinstance(value, int) and value < 10**20 else value)


def check_time(micros: int, latest_us: int) -> int:
    """Refuse a time later than `latest_us`, so that a wrong clock does not make chunks of the future."""
    if micros > latest_us:
        raise Bad(
            Reason.TIMESTAMP_IN_FUTURE,
            f"the timestamp lies {(micros - latest_us) // 1_000_000} s beyond MAX_FUTURE_SEC",
            str(micros),
        )
    return micros


def _malformed(raw: bytes) -> Bad:
    return Bad(Reason.TIMESTAMP_MALFORMED, "the timestamp is neither RFC 3339 nor Unix time", excerpt(raw))


def _before_1970(raw: bytes) -> Bad:
    return Bad(Reason.TIMESTAMP_BEFORE_1970, "the timestamp lies before 1970", excerpt(raw))


def metadata(raw: bytes, max_bytes: int) -> bytes:
    """A JSON object that `jsonb` takes, unchanged. At most `max_bytes` long and 32 levels deep."""
    if len(raw) > max_bytes:
        raise Bad(
            Reason.METADATA_TOO_LARGE, f"the metadata has {len(raw)} bytes, at most {max_bytes} are stored"
        )
    text(raw, "metadata")
    try:
        decoded = msgspec.json.decode(raw)
    except RecursionError:
        raise Bad(Reason.METADATA_TOO_DEEP, "the metadata is nested too deep", excerpt(raw)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Bad(Reason.METADATA_NOT_JSON, "the metadata is not JSON", excerpt(raw)) from None
    if not isinstance(decoded, dict):
        raise Bad(Reason.METADATA_NOT_OBJECT, "the metadata is not a JSON object", excerpt(raw))
    _check_tree(decoded, raw)
    if _LONG_EXPONENT.search(raw):  # perhaps in a string, such as a serial number: look properly
        json.loads(raw, parse_float=_check_exponent)
    return raw


def _check_exponent(digits: str) -> float:
    mantissa, _, exponent = digits.lower().partition("e")
    magnitude = exponent.lstrip("+-").lstrip("0") or "0"
    # jsonb's numeric ends at 131,072 digits before the point and 16,383 after it, and counts those written.
    if len(magnitude) > 5 or len(mantissa) + int(magnitude) > 16_383:
        raise Bad(Reason.METADATA_NOT_JSON, "the metadata holds a number that jsonb cannot hold", digits)
    return 0.0


def _check_tree(root: object, raw: bytes) -> None:
    """Walk with a list, not by recursion: depth comes from outside."""
    level: list[object] = [root]
    for depth in range(MAX_DEPTH + 1):
        below: list[object] = []
        for node in level:
            if isinstance(node, dict):
                below += node.keys()
                below += node.values()
            elif isinstance(node, list):
                below += node
            elif isinstance(node, str) and "\x00" in node:
                raise Bad(Reason.NUL_CHARACTER, "the metadata holds a NUL character", excerpt(raw))
        if depth == MAX_DEPTH and any(isinstance(node, dict | list) for node in level):
            raise Bad(
                Reason.METADATA_TOO_DEEP, f"the metadata is nested deeper than {MAX_DEPTH}", excerpt(raw)
            )
        level = below


def message_id(mid: bytes) -> bytes | None:
    """16 bytes that identify an MQTT message, or None where `mid` names none.

    A UUID or 32 hexadecimal digits (EMQX's message id) are taken as they are, anything else by its
    BLAKE2b digest. An unset template variable must not make all messages one: those are no id.
    """
    if mid.strip() in (b"", b"undefined", b"null"):
        return None
    if _UUID.fullmatch(mid):
        return bytes.fromhex(mid.replace(b"-", b"").decode("ascii"))
    return blake2b(mid, digest_size=16).digest()


def entry_id_parts(entry_id: bytes) -> tuple[int, int]:
    """`1700000000000-3` as (1700000000000, 3): the two 64-bit halves of an entry ID."""
    millis, _, sequence = entry_id.partition(b"-")
    return int(millis), int(sequence)
