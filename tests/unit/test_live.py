"""What is told of new readings: bounded, the newest of each series, and understood again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import live
from live import Many, Newest, News, Touched
from schema import Reading

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=100)
# Few names, so that series repeat; the longest that a name may take, and what JSON has to escape.
NAMES = st.one_of(TEXT, st.sampled_from(["a", "b", "\x01" * 100, "🌡" * 100, 'quote"\\u0000', "\u2028"]))
TIMES = st.integers(0, 4_102_444_800_000_000)
VALUES = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    told = draw(st.one_of(VALUES, st.text(st.sampled_from("aé🌡\x01\"'\\"), min_size=1, max_size=300)))
    value, text = (told, None) if isinstance(told, float) else (None, told)
    return Reading(
        draw(NAMES), draw(NAMES), draw(TIMES), draw(st.binary(min_size=16, max_size=16)), value, text
    )


def by_key(found: list[Reading]) -> list[Reading]:
    return sorted(found, key=lambda reading: reading.key)


def series(count: int, **changes: Any) -> list[Reading]:
    plain = [Reading(f"device-{n:05}", "temperature", 10**15 + n, bytes(16), n / 7) for n in range(count)]
    return [reading._replace(**changes) for reading in plain]


def newest_by_hand(found: list[Reading]) -> set[News]:
    best: dict[tuple[str, str], Reading] = {}
    oldest: dict[tuple[str, str], int] = {}
    for one in found:
        name = one.device_id, one.sensor_type
        oldest[name] = min(one.timestamp_us, oldest.get(name, one.timestamp_us))
        before = best.get(name)
        if before is None or (one.timestamp_us, one.message_id) > (before.timestamp_us, before.message_id):
            best[name] = one
    return {
        News(
            *one[:3],
            one.value,
            None if one.value_text and len(one.value_text) > 200 else one.value_text,
            one.timestamp_us - oldest[one[:2]],
        )
        for one in best.values()
    }


@given(st.lists(readings(), max_size=60, unique_by=lambda reading: reading.key))
def test_a_reader_understands_the_newest_reading_of_each_series(found: list[Reading]) -> None:
    said = live.payloads(by_key(found))
    assert len(said) <= live.MAX_PAYLOADS
    told = [live.understood(payload) for payload in said]
    heard: list[News] = []
    named: list[tuple[str, str]] = []
    for payload, one in zip(said, told, strict=True):
        assert len(payload.encode()) < 8_000
        assert json.loads(payload)["v"] == 1
        if isinstance(one, Newest):
            heard += one.readings
        elif isinstance(one, Touched):
            named += one.series
    wanted = newest_by_hand(found)
    if heard:
        assert len(heard) == len(wanted)
        assert set(heard) == wanted
    elif named:
        assert sorted(named) == sorted((one.device_id, one.sensor_type) for one in wanted)
    else:
        assert told == ([Many()] if found else [])


@given(st.integers(1, 3_000), st.integers(1, 100), st.sampled_from("a🌡\x01"))
def test_no_payload_is_too_long_whatever_the_number_and_length_of_names(
    count: int, length: int, letter: str
) -> None:
    found = series(count, sensor_type=letter * length)
    said = live.payloads(found)
    assert 1 <= len(said) <= 4
    assert all(len(payload.encode()) < 8_000 for payload in said)
    told = [live.understood(payload) for payload in said]
    counted = sum(len(one.series) if isinstance(one, Touched) else 0 for one in told)
    counted += sum(len(one.readings) if isinstance(one, Newest) else 0 for one in told)
    assert counted == count or told == [Many()]


def test_a_payload_may_be_filled_to_the_last_byte() -> None:
    """Names are lengthened byte by byte until the rows need a second payload."""
    sizes = []
    for length in range(1, 101):
        said = live.payloads([*series(113), Reading("x" * 50, "y" * length, 1, bytes(16), 1.0)])
        sizes.append((len(said), len(said[0].encode())))
    assert max(size for _, size in sizes) <= 7_999
    whole = [size for parts, size in sizes if parts == 1]
    assert max(whole) == 7_999, "one more byte goes into a second payload, and no byte sooner"
    assert sizes[-1][0] == 2


@pytest.mark.parametrize(
    ("count", "kind", "most"), [(1, Newest, 1), (400, Newest, 4), (800, Touched, 4), (3_000, Many, 1)]
)
def test_what_does_not_fit_is_said_in_fewer_words(count: int, kind: type, most: int) -> None:
    said = live.payloads(series(count))
    assert {type(live.understood(payload)) for payload in said} == {kind}
    assert len(said) == most


def test_nothing_stored_is_nothing_said() -> None:
    assert live.payloads([]) == []


def test_payloads_are_as_documented() -> None:
    found = [
        Reading("küche", "door", 5, bytes(16), None, "open"),
        Reading("küche", "temp", 6, bytes(16), 21.5),
        Reading("küche", "temp", 7, bytes(16), -0.0),
        Reading("küche", "words", 7, bytes(16), None, "x" * 201),
    ]
    (said,) = live.payloads(found)
    assert said == (
        '{"v":1,"readings":[["küche","door",5,null,"open"],["küche","temp",7,-0.0,null,1],'
        '["küche","words",7,null,null]]}'
    )
    names = {"device_id": "d" * 100, "value_text": "t" * 200, "value": None}
    many = [one._replace(sensor_type=f"{n:03}") for n, one in enumerate(series(200, **names))]
    assert live.payloads(many)[0].startswith('{"v":1,"series":[["' + "d" * 100 + '","000"],["')
    assert live.payloads(series(3_000)) == ['{"v":1,"many":true}']


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "hello",
        "{}",
        "[1]",
        '{"v":1}',
        '{"v":2,"readings":[["d","s",1,1.0,null]]}',
        '{"v":1,"readings":[["d","s",1,1.0]]}',
        '{"v":1,"readings":[["d","s",-1,1.0,null]]}',
        '{"v":1,"readings":[["d","s",1,1.0,null,-1]]}',
        '{"v":1,"readings":[["d","s",253402300800000000,1.0,null]]}',
        '{"v":1,"readings":[["d","s",1,1e999,null]]}',
        '{"v":1,"readings":[["d","s",1,NaN,null]]}',
        '{"v":1,"readings":[["d\\u0000","s",1,1.0,null]]}',
        '{"v":1,"readings":[["d\\ud800","s",1,1.0,null]]}',
        '{"v":1,"series":[["d","\\u0000"]]}',
        '{"v":1,"series":[["d"]]}',
        '{"v":1,"series":"all"}',
        '{"v":1,"readings":' + "[" * 3_000 + "]" * 3_000 + "}",
        '{"v":1,"many":true}',
    ],
)
def test_whatever_else_comes_says_that_everything_is_to_be_read(payload: str) -> None:
    assert live.understood(payload) == Many()


@given(st.text(max_size=200))
def test_any_text_is_understood_somehow(payload: str) -> None:
    assert isinstance(live.understood(payload), Many | Newest | Touched)
