"""What was published, what the broker accepted, and what must therefore be in the table. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from mqtt.plan import Message
from mqtt.shapes import moment


class Tally:
    """Counts of one run. Each message is told once to `published`, and once, if ever, to `settled`.

    `expected_…` follow from the accepted messages alone. A copy whose payload has a time makes no second
    row; one without a time does, since nothing tells it from a second measurement.
    """

    def __init__(self) -> None:
        self._published: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()
        self._bad_accepted: Counter[str] = Counter()
        self._half: set[int] = set()  # twins of which one is accepted; most leave when the other is
        self._resent_timeless = 0
        self.refused = 0
        self.resent = 0
        self.expected_rows = 0
        self.expected_dead_letters = 0
        self._open_rows = 0  # of messages that are published and not accepted

    @property
    def published(self) -> int:
        return self._published["messages"]

    @property
    def accepted(self) -> int:
        return self._accepted["messages"]

    @property
    def not_accepted(self) -> int:
        return self.published - self.accepted

    def publish(self, message: Message) -> None:
        """It was handed to the client."""
        self._count(self._published, self._bad, message)
        self._open_rows += message.rows

    def settle(self, message: Message, *, accepted: bool) -> bool:
        """The broker has answered. True where its readings are to be rows: where it is no known copy."""
        if not accepted:
            self.refused += 1
            return False
        self._count(self._accepted, self._bad_accepted, message)
        self._open_rows -= message.rows
        self.expected_dead_letters += message.flaw is not None
        if message.twin and message.recognisable:
            if message.twin in self._half:
                self._half.discard(message.twin)
                self._accepted["entries duplicate"] += message.flaw is None and message.rows > 0
                return False
            self._half.add(message.twin)
        self.expected_rows += message.rows
        return message.rows > 0

    def resend(self, message: Message) -> None:
        """The connection was lost before the answer: the broker may have it, and gets it again."""
        self.resent += 1
        self._resent_timeless += 0 if message.recognisable else message.rows

    @staticmethod
    def _count(counts: Counter[str], bad: Counter[str], message: Message) -> None:
        counts["messages"] += 1
        if message.names:
            counts["readings"] += message.rows
        if message.flaw is not None:
            counts["bad"] += 1
            bad[message.flaw] += 1
        elif message.online is not None:
            counts["online" if message.online else "offline"] += 1
        if message.copy:
            counts["copies"] += 1
        if message.late:
            counts["late"] += 1

    def as_dict(self) -> dict[str, object]:
        """For `--json`: numbers under stable names (docs/simulator.md)."""
        accepted = self._accepted
        return {
            "published": {name: self._published[name] for name in _COUNTED} | {"bad": dict(self._bad)},
            "accepted": {name: accepted[name] for name in _COUNTED} | {"bad": dict(self._bad_accepted)},
            "not_accepted": self.not_accepted,
            "refused": self.refused,
            "resent": self.resent,
            "expected": {
                "entries": accepted["messages"],
                "rows": self.expected_rows,
                "rows_at_most": self.expected_rows + self._open_rows + self._resent_timeless,
                "dead_letters": self.expected_dead_letters,
                "duplicates": accepted["entries duplicate"],
                "statuses": accepted["online"] + accepted["offline"],
            },
        }

    def lines(self) -> Iterator[str]:
        """For people: a table, and under it what must be found downstream."""
        yield f"{'':<22}{'published':>12}{'accepted':>12}{'not accepted':>14}"
        for name, published, accepted in self._rows():
            yield f"{name:<22}{published:>12,}{accepted:>12,}{published - accepted:>14,}"
        yield ""
        at_most = self.expected_rows + self._open_rows + self._resent_timeless
        doubt = f"   at most {at_most:,}" if at_most > self.expected_rows else ""
        yield f"{'expected rows':<22}{self.expected_rows:>12,}{doubt}"
        yield f"{'expected dead letters':<22}{self.expected_dead_letters:>12,}"
        yield f"{'expected duplicates':<22}{self._accepted['entries duplicate']:>12,}"

    def _rows(self) -> Iterator[tuple[str, int, int]]:
        for name in _COUNTED:
            if name == "messages" or self._published[name]:
                yield _SHOWN.get(name, name), self._published[name], self._accepted[name]
        for flaw, count in sorted(self._bad.items()):
            yield f"  bad: {flaw}", count, self._bad_accepted[flaw]


_COUNTED = ("messages", "readings", "copies", "late", "online", "offline")
_SHOWN = {
    "readings": "good readings in them",
    "copies": "  sent twice",
    "late": "  late",
    "online": "  status online",
    "offline": "  status offline",
}


def manifest(message: Message) -> Iterator[str]:
    """A JSON line for each row that an accepted message makes: device, sensor, time or null, value."""
    time = None if message.time_us is None else moment(message.time_us)
    for index, (sensor, (_, value)) in enumerate(zip(message.names, message.row, strict=False)):
        if index != message.spoilt:
            line = {"device": message.device, "sensor": sensor, "time": time, "value": value}
            yield json.dumps(line) + "\n"
