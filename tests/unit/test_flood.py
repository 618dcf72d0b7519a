"""When dead letters are so many that a worker waits for somebody."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import structlog
from structlog.testing import capture_logs

from flood import Flood, FloodOptions
from metrics import Stats
from schema import Entry, Fate, Outcome, Reason, Rejection, Settled

STREAM = b"mqtt_stream:shard:1"


class Scene:
    """A flood's surroundings: a clock, a number of devices, somebody who accepts."""

    def __init__(self, count: int = 100, share: float = 0.5, devices: float = 0) -> None:
        self.now = 1000.0
        self.accepted = False
        self.devices = devices
        self.asked = 0
        self.stats = Stats()
        self.flood = Flood(
            FloodOptions(count=count, share=share, remedy="do something"),
            self.stats,
            devices=self._count,
            accepted=lambda: self.accepted,
            clock=lambda: self.now,
        )
        self._number = 0

    def _count(self) -> float:
        self.asked += 1
        return self.devices

    def good(self, entries: int) -> list[Settled]:
        return [Settled(self._entry(), Fate.STORED) for _ in range(entries)]

    def bad(self, entries: int, devices: Sequence[str] = ("d1", "d2", "d3")) -> list[Settled]:
        return [
            Settled(
                self._entry(),
                Fate.DEAD_LETTERED,
                Rejection(Reason.PAYLOAD_NOT_JSON, "no JSON", devices[n % len(devices)]),
            )
            for n in range(entries)
        ]

    def sift(self, *settled: Settled) -> int:
        """How many of these may be settled."""
        return len(self.flood.sift(Outcome(settled)).settled)

    def _entry(self) -> Entry:
        self._number += 1
        return Entry(
            STREAM, b"%d-0" % self._number, [b"topic", b"t/%d" % (self._number % 50), b"payload", b"?"]
        )


def test_so_many_bad_entries_in_a_row_are_held_and_the_good_ones_settled() -> None:
    scene = Scene()
    good = scene.good(40)
    assert scene.sift(*good, *scene.bad(100)) == 40
    assert scene.flood.on
    assert scene.stats.messages_held == 100


def test_a_row_goes_on_from_batch_to_batch() -> None:
    scene = Scene()
    assert scene.sift(*scene.bad(60)) == 60
    assert scene.sift(*scene.bad(39)) == 39
    assert scene.sift(*scene.bad(1)) == 0
    assert scene.flood.on


def test_a_good_entry_ends_a_row() -> None:
    scene = Scene(share=0.99)
    for _ in range(5):
        assert scene.sift(*scene.bad(90)) == 90
        assert scene.sift(*scene.good(10)) == 10
    assert not scene.flood.on


def test_a_share_of_the_last_minute_is_a_flood_too() -> None:
    scene = Scene()
    written = 0
    while not scene.flood.on:
        scene.now += 1
        settled = [one for pair in zip(scene.bad(6), scene.good(6), strict=True) for one in pair]
        written += scene.sift(*settled) - 6
    assert written == 96, "up to the hundredth letter"


def test_what_is_older_than_a_minute_does_not_count() -> None:
    scene = Scene()
    for _ in range(100):
        scene.now += 2
        assert scene.sift(*scene.bad(3), *scene.good(3)) == 6
    assert not scene.flood.on


def test_a_handful_of_broken_devices_among_thousands_pauses_nobody() -> None:
    scene = Scene(devices=2000)
    for _ in range(300):
        scene.now += 1
        assert scene.sift(*scene.bad(500)) == 500
    assert not scene.flood.on
    assert scene.asked <= 61, "the database is not asked for every batch"


def test_a_firmware_that_breaks_every_device_pauses_though_thousands_were_good_before() -> None:
    scene = Scene(devices=2000)
    names = [f"d{n}" for n in range(2000)]
    written = 0
    for start in range(0, 2000, 100):
        written += scene.sift(*scene.bad(100, names[start : start + 100]))
    assert scene.flood.on
    assert written == 900, "until half of the devices have spoken"


def test_where_no_device_is_known_each_topic_counts_as_one() -> None:
    scene = Scene(devices=100)
    assert scene.sift(*scene.bad(100, [""])) == 0
    assert scene.flood.on


def test_an_entry_of_which_other_readings_are_stored_is_no_bad_one() -> None:
    scene = Scene()
    settled = scene.bad(500)
    outcome = Outcome(settled, partly=frozenset(range(500)))
    assert scene.flood.sift(outcome) is outcome
    assert not scene.flood.on


def test_while_it_is_on_nothing_bad_is_settled() -> None:
    scene = Scene()
    scene.sift(*scene.bad(100))
    assert scene.sift(*scene.good(3), *scene.bad(1)) == 3
    assert not scene.flood.over()


def test_somebody_lets_the_letters_through() -> None:
    scene = Scene()
    scene.sift(*scene.bad(100))
    scene.accepted = True
    assert scene.flood.over()
    assert not scene.flood.on
    assert scene.sift(*scene.bad(500)) == 500
    scene.accepted = False  # the key has gone
    assert scene.sift(*scene.bad(1)) == 0


def test_a_count_of_0_switches_it_off() -> None:
    scene = Scene(count=0)
    assert scene.sift(*scene.bad(5000)) == 5000
    assert not scene.flood.on


def test_it_is_told_at_growing_intervals_with_the_commonest_reason_and_the_stream() -> None:
    scene = Scene()
    with capture_logs() as logs:
        scene.sift(*scene.bad(100))
        for _ in range(800):
            scene.now += 1
            scene.flood.over()
    assert [one["seconds"] for one in logs] == [0.0, 10.0, 30.0, 70.0, 150.0, 310.0, 630.0]
    assert logs[0] == {
        "event": "dead_letter_flood",
        "log_level": "error",
        "reason": "payload_not_json",
        "stream": STREAM.decode(),
        "held": 100,
        "of_this_kind": 100,
        "sources": 3,
        "seconds": 0.0,
        "remedy": "do something",
    }


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    structlog.reset_defaults()
