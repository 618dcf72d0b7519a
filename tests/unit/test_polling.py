"""Which of many streams to ask next: nobody is forgotten, and asking the quiet ones stays cheap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from polling import HOT_SEC, PARTS_AT_ONCE, QUIET_SHARE, Polling


class Asking:
    """A worker in time of its own: asks what is due, each part for `cost` seconds, and sleeps."""

    def __init__(self, count: int, *, cost: float = 0.0005, longest: float = 2.0) -> None:
        self.now = 100.0
        self.cost = cost
        self.spent = 0.0
        self.asked_at: dict[bytes, float] = {}
        self.longest_gap = 0.0
        self.polling = Polling(lambda streams: b"|".join(streams), longest, lambda: self.now)
        self.streams = [b"%08d" % number for number in range(count)]
        self.polling.follow(self.streams)

    def turn(self, budget: int = 1_000_000) -> int:
        """Ask what is due now, at most `budget` streams. How many were asked."""
        asked = 0
        while asked < budget:
            streams, command = self.polling.due()
            if not streams:
                break
            assert command is None or command.split(b"|") == list(streams)
            part = streams[: budget - asked]
            began = self.now
            self.now += self.cost
            self.spent += self.cost
            for stream in part:
                self.longest_gap = max(self.longest_gap, began - self.asked_at.get(stream, began))
                self.asked_at[stream] = began
            self.polling.asked(len(part), began)
            asked += len(part)
        return asked

    def live(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.turn()
            self.now = max(self.now, min(until, self.polling.wake_at))


@pytest.mark.parametrize("count", [501, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.004])
def test_every_stream_has_its_turn_within_the_longest_time(count: int, cost: float) -> None:
    asking = Asking(count, cost=cost)
    asking.live(20)
    assert len(asking.asked_at) == count
    assert asking.longest_gap <= 2.0 + PARTS_AT_ONCE * cost
    assert asking.now - min(asking.asked_at.values()) <= 2.0 + PARTS_AT_ONCE * cost


def test_quiet_streams_take_a_hundredth_of_the_time_where_that_is_often_enough() -> None:
    asking = Asking(10_000, cost=0.0005)
    asking.live(5)
    asking.spent, began = 0.0, asking.now
    asking.live(50)
    assert asking.spent <= 1.1 * QUIET_SHARE * (asking.now - began)
    assert asking.longest_gap < 1.5, "and are asked as often as that allows"


def test_all_streams_are_asked_at_once_at_the_start_and_after_many_have_come() -> None:
    asking = Asking(10_000)
    assert asking.polling.asked_since == float("-inf")
    assert asking.turn() == 10_000
    asking.now += 0.001
    assert asking.turn() == 0
    assert asking.polling.asked_since == 100.0
    asking.polling.follow([b"%08d" % number for number in range(12_000)])
    assert asking.polling.asked_since == float("-inf")
    assert asking.turn() == 12_000


def test_a_few_new_streams_are_asked_with_the_hot_ones_and_the_others_keep_their_turn() -> None:
    asking = Asking(10_000)
    asking.live(5)
    for number in range(400):  # new ones all the time, all before the others
        streams = [*(b"%08d" % -n for n in range(number, 0, -1)), *asking.streams]
        asking.polling.follow(streams)
        assert set(asking.polling.hot) >= {b"%08d" % -number} - {b"%08d" % 0}
        asking.live(0.05)
    assert asking.longest_gap <= 2.5


def test_a_part_that_was_cut_short_is_gone_on_with() -> None:
    asking = Asking(1_200)
    sizes = [asking.turn(budget=300) for _ in range(5)]
    assert sizes == [300, 300, 300, 300, 0]
    assert len(asking.asked_at) == 1_200


def test_a_stream_is_hot_for_a_while_after_its_last_entry() -> None:
    asking = Asking(1_000)
    polling = asking.polling
    asking.turn()
    polling.heard([b"00000007", b"00000003"])
    assert polling.hot == [b"00000007", b"00000003"]
    asking.now += HOT_SEC - 0.1
    polling.heard([b"00000003"])
    polling.emptied(0.0)
    assert len(polling.hot) == 2
    asking.now += 2.0
    polling.emptied(0.0)
    assert polling.hot == [b"00000003"]


def test_hot_streams_that_are_gone_or_go_to_another_worker_are_let_go() -> None:
    asking = Asking(1_000)
    asking.polling.heard(asking.streams[:2])
    asking.polling.follow(asking.streams[1:])
    assert asking.polling.hot == asking.streams[1:2]
    asking.polling.follow([])
    assert asking.polling.hot == []
    assert asking.turn() == 0


def test_asking_many_hot_streams_is_followed_by_a_pause_three_times_as_long() -> None:
    asking = Asking(1_000)
    asking.polling.emptied(0.02)
    assert asking.polling.hot_at == pytest.approx(asking.now + 0.06)
    asking.polling.emptied(60.0)
    assert asking.polling.hot_at == pytest.approx(asking.now + 2.0), "not longer than quiet ones wait"


@pytest.mark.parametrize("sizes", [[10_000, 0, 600], [600, 10_000, 501, 30_000]])
def test_streams_may_come_and_go_in_any_number(sizes: Sequence[int]) -> None:
    asking = Asking(1_000)
    for size in sizes:
        asking.asked_at.clear()
        asking.polling.follow([b"%08d" % number for number in range(size)])
        asking.live(2.5)
        assert len(asking.asked_at) == size


def test_what_is_asked_ahead_is_all_that_is_due_and_says_nothing_of_its_cost() -> None:
    asking = Asking(10_000)
    asking.live(5)
    polling, interval = asking.polling, 1.5 / 20
    asking.now = polling.wake_at + 3.5 * interval
    parts = polling.all_due(2_600)
    assert [len(part) for part in parts] == [500] * 5
    assert parts[0] == polling.due()[0]
    before = polling.wake_at
    began = asking.now
    asking.now += 10  # a batch was written meanwhile
    for part in parts:
        polling.asked(len(part), began, timed=False)
    assert polling.wake_at - before < 15, "the ten seconds are no cost of asking"
    following = (asking.streams.index(parts[-1][-1]) + 1) % len(asking.streams)
    assert polling.due()[0][0] == asking.streams[following]


def test_nothing_is_asked_ahead_that_is_not_due() -> None:
    asking = Asking(10_000)
    asking.live(5)
    assert asking.now < asking.polling.wake_at
    assert asking.polling.all_due(0) == []
    assert Polling(lambda streams: b"", 2.0, lambda: 1.0).all_due(100) == []
