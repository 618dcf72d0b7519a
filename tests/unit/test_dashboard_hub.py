"""What a browser is sent, in what order, and how little a slow one can keep waiting."""

from __future__ import annotations

import asyncio
import json

from dashboard.hub import MOST_QUEUED, Client, Hub, Outbox
from dashboard.wanted import MOST_SERIES, View
from live import Many, Newest, News, Touched

KITCHEN = ("kitchen", "temperature")
HALL = ("hall", "temperature")


def news(series: tuple[str, str] = KITCHEN, value: float | None = 1.0, text: str | None = None) -> News:
    return News(*series, 1_700_000_000_000_000, value, text)


def taken(outbox: Outbox) -> list[str]:
    async def all_of_it() -> list[str]:
        return [await outbox.take() for _ in range(len(outbox))]

    return asyncio.run(all_of_it())


def client_of(hub: Hub, *series: tuple[str, str]) -> Client:
    client = Client(View())
    hub.enter(client)
    hub.follow(client, series)
    return client


def test_what_is_taken_in_time_comes_whole_and_in_order() -> None:
    outbox = Outbox(4)
    for number in range(4):
        outbox.put("same", str(number))
    assert taken(outbox) == ["0", "1", "2", "3"]
    assert outbox.overtaken == 0


def test_who_is_behind_gets_the_newest_of_each_and_keeps_no_more() -> None:
    outbox = Outbox(10)
    for number in range(1_000):
        outbox.put(number % 3, f"{number % 3}: {number}")
        assert len(outbox) <= 10
    found = taken(outbox)
    assert [one for one in found if one.startswith("0")][-1] == "0: 999"
    assert [one for one in found if one.startswith("1")][-1] == "1: 997"
    assert outbox.overtaken == 1_000 - len(found)


def test_what_a_browser_may_be_behind_is_more_than_it_can_have_newest_ones() -> None:
    assert 2 * MOST_SERIES + 10 < MOST_QUEUED


def test_a_reading_goes_to_whoever_shows_its_series_and_to_nobody_else() -> None:
    hub = Hub(10)
    kitchen, hall, both = client_of(hub, KITCHEN), client_of(hub, HALL), client_of(hub, KITCHEN, HALL)
    hub.hear(Newest((news(KITCHEN, 21.5),)))
    (said,) = taken(kitchen.outbox)
    assert json.loads(said) == {
        "type": "reading",
        "data": {
            "device_id": "kitchen",
            "sensor_type": "temperature",
            "timestamp": "2023-11-14T22:13:20Z",
            "value": 21.5,
            "value_text": None,
        },
    }
    assert taken(hall.outbox) == []
    assert taken(both.outbox) == [said]


def test_a_browser_that_turned_the_page_hears_of_the_new_page_alone() -> None:
    hub = Hub(10)
    client = client_of(hub, KITCHEN)
    hub.follow(client, [HALL])
    hub.hear(Newest((news(KITCHEN), news(HALL, 7.0))))
    assert [json.loads(one)["data"]["value"] for one in taken(client.outbox)] == [7.0]


def test_what_was_not_said_has_to_be_read_of_shown_series_only() -> None:
    hub = Hub(10)
    client_of(hub, KITCHEN)
    hub.hear(Touched((KITCHEN, HALL)))
    assert hub.gone_stale.is_set()
    assert hub.take_stale() == [KITCHEN]
    hub.hear(Newest((news(KITCHEN, None),)))  # a text too long to be told
    assert hub.take_stale() == [KITCHEN]
    hub.hear(Many())
    assert hub.missed.is_set()
    assert hub.take_stale() == [KITCHEN]
    assert not hub.gone_stale.is_set()


def test_nothing_is_kept_of_browsers_that_left() -> None:
    hub = Hub(10)
    client = client_of(hub, KITCHEN)
    hub.hear(Many())
    assert hub.anybody.is_set()
    hub.leave(client)
    hub.hear(Touched((KITCHEN,)))
    assert hub.take_stale() == []
    assert not hub.anybody.is_set()
    assert not hub.clients


def test_a_state_is_said_when_it_changes_and_to_whoever_comes() -> None:
    hub = Hub(10)
    first = client_of(hub)
    for text in ("a", "a", "b"):
        hub.say("alerts", text)
    assert taken(first.outbox) == ["a", "b"]
    assert taken(client_of(hub).outbox) == ["b"]


def test_a_hub_says_when_it_is_full() -> None:
    hub = Hub(1)
    assert not hub.full
    client_of(hub)
    assert hub.full
