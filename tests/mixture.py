"""Entries for crashes: good ones, bad ones and repeated ones, in one batch."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import redis_client
from tests.scenarios import Stage
from tests.source import BEGIN

STREAM, SHARD = "mqtt_stream:flat:t", "mqtt_stream:shard:0"
GROUP = "db_writer"
WIDE = 2001  # fields of an entry that makes a dead letter too wide for a script


@dataclass(slots=True)
class Mixture:
    """Numbered entries, good, bad and repeated, added in one step so that one batch has them.

    To the naive worker only good ones: the others would be its end without any crash.
    """

    stage: Stage
    produced: int = 0
    dead: set[int] = field(default_factory=set)
    repeats: set[int] = field(default_factory=set)

    @property
    def wanted(self) -> set[int]:
        """What has to be in the table."""
        return set(range(self.produced)) - self.dead - self.repeats

    def add(self, entries: int, *, read_by: str = "", tried: bool = False) -> None:
        """Add this many entries, at least 6. `read_by`: have this consumer read them in the same step.
        `tried`: the first bad one has been tried alone too often.
        """
        kinds = [self._good] * entries
        if not self.stage.naive:
            for start in range(0, entries - 5, 20):
                kinds[start : start + 5] = self._bad, self._wide, self._first, self._again, self._new_series
        with self.stage.client.pipeline(transaction=True) as pipe:
            for kind in kinds:
                stream, fields = kind()
                entry = f"{self.produced + 1}-1"
                redis_client.execute(pipe, "XADD", stream, entry, *fields)
                if tried and kind == self._bad:
                    name = f"{stream}|{entry}"
                    redis_client.execute(pipe, "HSET", f"sluice:{GROUP}:alone", name, 2)
                self.produced += 1
            if read_by:
                read = ("XREADGROUP", "GROUP", GROUP, read_by, "STREAMS", STREAM, SHARD, ">", ">")
                redis_client.execute(pipe, *read)
            pipe.execute()

    def _flat(self, value: str, *more: str, n: int | None = None) -> tuple[str, tuple[str, ...]]:
        second = BEGIN + (self.produced if n is None else n)
        return STREAM, ("value", value, "timestamp", str(second), *more)

    def _good(self) -> tuple[str, tuple[str, ...]]:
        return self._flat(str(self.produced))

    def _bad(self) -> tuple[str, tuple[str, ...]]:
        self.dead.add(self.produced)
        return self._flat("21.5C")

    def _wide(self) -> tuple[str, tuple[str, ...]]:
        self.dead.add(self.produced)
        return STREAM, tuple(f"f{n}" for n in range(2 * WIDE))

    def _first(self) -> tuple[str, tuple[str, ...]]:
        return self._flat(str(self.produced), "mid", str(uuid.UUID(int=self.produced)))

    def _again(self) -> tuple[str, tuple[str, ...]]:
        self.repeats.add(self.produced)
        n = self.produced - 1
        return self._flat(str(n), "mid", str(uuid.UUID(int=n)), n=n)

    def _new_series(self) -> tuple[str, tuple[str, ...]]:
        n = self.produced
        payload = f'{{"ts": {BEGIN + n}, "values": {{"t": {n}}}}}'
        return SHARD, ("topic", f"devices/new-{n}/telemetry", "payload", payload)
