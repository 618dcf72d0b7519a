"""Buckets as protobuf: put together by hand, and the same as protobuf would make of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from query import answers
from query import collector_pb2 as pb
from query.queries import Bucket

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUMBERS = st.floats(allow_nan=False)
# To the end of the year 9999, and around where the length of the encoded number changes.
SECONDS = st.one_of(
    st.integers(0, 253_402_300_799),
    st.sampled_from([n for power in range(7, 38, 7) for n in (2**power - 1, 2**power)]),
)


@st.composite
def buckets(draw: st.DrawFn) -> Bucket:
    time = EPOCH + timedelta(seconds=draw(SECONDS))
    if draw(st.booleans()):
        return Bucket(time, None, None, None)
    return Bucket(time, draw(NUMBERS), draw(NUMBERS), draw(NUMBERS))


@given(st.dictionaries(st.text(max_size=100), st.lists(buckets(), max_size=20), max_size=5))
def test_buckets_are_what_protobuf_makes_of_them(found: dict[str, list[Bucket]]) -> None:
    expected = pb.GetReadingsResponse(
        series=[
            pb.KeyReadings(
                key=key,
                points=[
                    pb.AggregatedReading(
                        time=answers.timestamp(one.time), avg=one.avg, min=one.min, max=one.max
                    )
                    for one in series
                ],
            )
            for key, series in found.items()
        ]
    )
    assert answers.buckets(found) == expected
