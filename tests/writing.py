"""What the tests of writing share: readings, batches, and writers that react quickly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Generic, TypeVar

from db_writer import DatabaseWriter, WriterOptions
from metrics import Stats
from retry import StopFlag
from schema import DAY_US, Batch, Entry, Parsed, Reading
from tests.support import Database

T = TypeVar("T")
# Yesterday at midnight: on TimescaleDB no policy of the schema touches its chunk, and its partition exists
# on no plain database before it is asked for.
YESTERDAY_US = (int(datetime.now(UTC).timestamp()) // 86_400 - 1) * DAY_US


def reading(number: int, value: float | None = None, **changes: Any) -> Reading:
    """The `number`-th of readings that differ in time and message, all of yesterday."""
    plain = Reading(
        device_id=f"device-{number % 7}",
        sensor_type=f"sensor-{number % 3}",
        timestamp_us=YESTERDAY_US + number * 1_000,
        message_id=number.to_bytes(16, "big"),
        value=float(number) if value is None and "value_text" not in changes else value,
    )
    return plain._replace(**changes)


def batch_of(readings: Sequence[Reading], *, redelivered: bool = False, own_id: bool = False) -> Batch:
    """One entry a reading. `own_id` False: as with a message id, so that a row there is a duplicate."""
    entries = [Entry(b"mqtt_stream:d:t", b"%d-0" % number, ()) for number in range(len(readings))]
    return Batch.of(entries, [Parsed([one], (), own_id) for one in readings], redelivered)


class CountingWriter(DatabaseWriter):
    """Remembers what each transaction was asked to write."""

    transactions: list[list[Reading]]

    def commit(self, readings: Sequence[Reading], staged: bool) -> Any:
        self.transactions.append(list(readings))
        return super().commit(readings, staged)


class Rig:
    """A writer with its stop flag and counts."""

    def __init__(
        self,
        database: Database,
        url: str = "",
        stop_sec: float = 10.0,
        caught_up_at: Callable[[], float] | None = None,
        **options: Any,
    ) -> None:
        self.database = database
        self._ahead_sec = 0.0
        self.stats = Stats()
        self.stop = StopFlag(stop_sec)
        self.now = datetime.now(UTC)
        wanted = {"timeout_sec": 20.0, "enable_timescale": database.timescale} | options
        self.writer = CountingWriter(
            WriterOptions(url=url or database.url, **wanted),
            self.stop,
            self.stats,
            now=lambda: self.now,
            caught_up_at=caught_up_at,
            clock=lambda: monotonic() + self._ahead_sec,
        )
        self.writer.transactions = []

    def hurry(self, seconds: float = 1.0) -> None:
        """Let so much time pass, by the writer's clock."""
        self._ahead_sec += seconds


@contextmanager
def rig(database: Database, url: str = "", **options: Any) -> Iterator[Rig]:
    made = Rig(database, url, **options)
    try:
        yield made
    finally:
        made.writer.close()


class InBackground(Generic[T]):
    """A call in a thread of its own; `result` waits for it and raises what it raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answers: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answers.append(self._call())
        except BaseException as error:  # noqa: BLE001  handed to `result`
            self._errors.append(error)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float = 30.0) -> T:
        self._thread.join(seconds)
        assert self.done, f"the call did not end within {seconds} s"
        if self._errors:
            raise self._errors[0]
        return self._answers[0]


def together(calls: Sequence[Callable[[], T]], seconds: float = 60.0) -> list[T]:
    """All calls at the same time, each in a thread; their answers in order."""
    start = threading.Barrier(len(calls))

    def waiting(call: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            start.wait(10)
            return call()

        return run

    running = [InBackground(waiting(call)) for call in calls]
    return [one.result(seconds) for one in running]
