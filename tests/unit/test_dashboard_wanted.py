"""What a browser may ask for, and the sentence it gets for anything else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dashboard.units import unit_of
from dashboard.wanted import (
    MOST_SERIES,
    Parameters,
    Range,
    View,
    Wanted,
    Wrong,
    chart_range,
    chart_series,
    wanted,
)


def test_nothing_asked_for_is_the_first_page() -> None:
    assert wanted(Parameters("")) == Wanted(view=View())


def test_a_view_and_a_gap_are_understood() -> None:
    found = wanted(Parameters("q=room+1%20co2&page=3&devices=2&after=2026-01-02T03:04:05.5Z"))
    assert found.view == View(words=("room", "1", "co2"), page=3, devices_page=2)
    assert found.after == datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "series"),
    [
        ("series=kitchen/temperature", ("kitchen", "temperature")),
        ("series=kitchen%2Ftemperature", ("kitchen", "temperature")),
        ("series=a%2Fb/c%2Fd", ("a/b", "c/d")),
        ("series=k%C3%BCche/T+1", ("küche", "T+1")),
        ("series=50%25/x%26y", ("50%", "x&y")),
    ],
)
def test_series_are_named_percent_encoded(query: str, series: tuple[str, str]) -> None:
    assert wanted(Parameters(query)).view.named == (series,)
    assert chart_series(Parameters(query)) == series


def test_a_series_that_is_named_twice_is_shown_once() -> None:
    assert wanted(Parameters("series=a/b&series=c/d&series=a/b")).view.named == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("series=kitchen", "series is 'kitchen'; it takes device/sensor"),
        ("series=/x", "series is '/x'; it takes device/sensor"),
        ("series=", "series is ''; it takes device/sensor"),
        (f"series={'x' * 101}/y", "a name has at most 100 characters"),
        ("series=a%00/b", "and no NUL"),
        ("page=0", "page is '0'; it takes the number of a page"),
        ("page=-1", "page is '-1'; it takes"),
        ("page=1.5", "page is '1.5'; it takes"),
        ("page=%D9%A1", "it takes the number of a page"),
        ("page=99999999999999999999", "it takes the number of a page"),
        ("devices=x", "devices is 'x'; it takes"),
        ("page=1&page=2", "page is given 2 times; it may be given once"),
        (f"q={'x' * 101}", "q has 101 characters; it takes at most 100"),
        ("q=%00", "and no NUL"),
        ("after=yesterday", "after is 'yesterday'; it takes a time"),
        ("after=2026-01-02T03:04:05", "after is '2026-01-02T03:04:05'; it takes a time"),
        ("after=0001-01-01T00:00:00%2B01:00", "it takes a time"),
        ("&".join(f"series=d/{n}" for n in range(MOST_SERIES + 1)), "series is given 101 times"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(query: str, sentence: str) -> None:
    with pytest.raises(Wrong) as caught:
        wanted(Parameters(query))
    assert sentence in str(caught.value)


def test_a_chart_has_one_series_and_a_range() -> None:
    assert chart_range(Parameters("series=a/b")) is Range.LIVE
    assert chart_range(Parameters("range=30d")) is Range.MONTH
    for query in ("range=1y", "range=x"):
        with pytest.raises(Wrong, match="it takes live, 1h, 24h, 30d"):
            chart_range(Parameters(query))
    for query in ("", "series=a/b&series=c/d"):
        with pytest.raises(Wrong, match="it takes one device/sensor"):
            chart_series(Parameters(query))


@pytest.mark.parametrize("span", Range)
def test_a_chart_has_no_more_buckets_than_a_screen_shows(span: Range) -> None:
    if span.bucket_sec:
        assert 200 <= span.seconds / span.bucket_sec <= 400


@pytest.mark.parametrize(
    ("sensor", "unit"),
    [
        ("temperature", "°C"),
        ("Temperature", "°C"),
        ("environment.temperature", "°C"),
        ("temperature_2", "°C"),
        ("pm2_5", "µg/m³"),
        ("windSpeed", "m/s"),
        ("wind-speed", "m/s"),
        ("co2", "ppm"),
        ("count", ""),
        ("energy", ""),
        ("temperature_unit", ""),
        ("", ""),
    ],
)
def test_usual_names_have_their_unit_and_others_none(sensor: str, unit: str) -> None:
    assert unit_of(sensor) == unit
