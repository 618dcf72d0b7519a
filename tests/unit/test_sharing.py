"""Whose a stream is: fair, the same on every worker, and with few moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from sharing import SLOTS, slot_of, slots_of

STREAMS = [f"mqtt_stream:dev-{number}:temperature".encode() for number in range(100_000)]


def owners(workers: Sequence[bytes]) -> list[bytes]:
    """Whose each slot is, as the workers find out each by itself; a slot that two claim fails the test."""
    found: dict[int, bytes] = {}
    for worker in workers:
        for slot, mine in enumerate(slots_of(worker, workers)):
            if mine:
                assert slot not in found
                found[slot] = worker
    return [found[slot] for slot in range(SLOTS)]


@pytest.mark.parametrize(
    ("workers", "most"),
    [([b"worker-1", b"worker-2", b"worker-3"], 0.05), ([b"%d" % n for n in range(10)], 0.12)],
)
def test_streams_are_shared_out_evenly(workers: list[bytes], most: float) -> None:
    whose = owners(workers)
    shares = Counter(whose[slot_of(stream)] for stream in STREAMS)
    fair = len(STREAMS) / len(workers)
    assert len(shares) == len(workers)
    assert all(abs(share - fair) < most * fair for share in shares.values()), shares


def test_every_worker_comes_to_the_same_answer_in_whatever_order_it_hears_of_the_others() -> None:
    workers = [b"host-a-1", b"host-a-2", b"host-b-1", b"w"]
    for worker in workers:
        assert (
            slots_of(worker, workers) == slots_of(worker, workers[::-1]) == slots_of(worker, set(workers))
        )


def test_who_comes_takes_its_part_of_each_and_nothing_moves_between_the_others() -> None:
    workers = [b"one", b"two", b"three"]
    before, after = owners(workers), owners([*workers, b"four"])
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {b"four"}
    assert abs(len(moved) - SLOTS / 4) < 0.1 * SLOTS / 4
    assert set(Counter(old for old, _ in moved)) == set(workers)


def test_who_goes_leaves_its_part_to_all_the_others() -> None:
    workers = [b"one", b"two", b"three", b"four"]
    before, after = owners(workers), owners(workers[:3])
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {b"four"}
    heirs = Counter(new for _, new in moved)
    assert min(heirs.values()) > 0.25 * len(moved)


def test_a_worker_alone_has_everything() -> None:
    assert all(slots_of(b"one", [b"one"]))
