"""What the terminal shows: progress lines, then a table of the books and of the newest readings."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ops.ledger import Books


class Newest(NamedTuple):
    device_id: str
    sensor_type: str
    value: str
    age_sec: float


class Alerted(NamedTuple):
    status: str
    severity: str
    device_id: str
    sensor_type: str
    rule: str
    peak: str
    since_sec: float


class Rate:
    """Entries a second, over the last few looks."""

    def __init__(self, looks: int = 5) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=looks + 1)

    def see(self, now: float, settled: int) -> float:
        self._looks.append((now, settled))
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        return max(0.0, (after - before) / (last - first)) if last > first else 0.0


def table(
    books: Books, rate: float, alerts: Sequence[Alerted], newest: Sequence[Newest], state: str
) -> RenderableType:
    """The ledger of the group and, below, the newest alerts and the newest readings."""
    ledger = Table(title="Sluice", title_style="bold", expand=False)
    columns = ("entries/s", "lag", "stored", "duplicate", "dead-lettered", "pending")
    numbers = (rate, books.unread, books.stored, books.duplicate, books.dead_lettered, books.pending)
    for column in columns:
        ledger.add_column(column, justify="right")
    ledger.add_row(*(f"{number:,.0f}" for number in numbers))
    readings = Table(title="newest readings", title_style="bold", expand=False)
    readings.add_column("device")
    readings.add_column("sensor")
    readings.add_column("value", justify="right")
    readings.add_column("age", justify="right")
    for reading in newest:
        readings.add_row(
            plain(reading.device_id),
            plain(reading.sensor_type),
            plain(reading.value),
            f"{reading.age_sec:.1f} s",
        )
    return Group(ledger, *_alerts(alerts), readings, Text(state, style="dim"))


def _alerts(alerts: Sequence[Alerted]) -> Sequence[RenderableType]:
    """A table of alerts, where there are any."""
    if not alerts:
        return ()
    shown = Table(title="newest alerts", title_style="bold", expand=False)
    for column in ("alert", "severity", "device", "sensor", "rule"):
        shown.add_column(column)
    shown.add_column("peak", justify="right")
    shown.add_column("since", justify="right")
    for alert in alerts:
        style = "" if alert.status == "resolved" else "red" if alert.severity == "critical" else "yellow"
        shown.add_row(
            alert.status,
            alert.severity,
            plain(alert.device_id),
            plain(alert.sensor_type),
            plain(alert.rule),
            plain(alert.peak),
            f"{alert.since_sec:.0f} s",
            style=style,
        )
    return (shown,)


def plain(text: str) -> Text:
    """What a device sent, as it may be shown: no markup, no control characters, not too long."""
    printable = "".join(letter if letter.isprintable() else "�" for letter in text[:80])
    return Text(printable, no_wrap=True, overflow="ellipsis")


def accounted(books: Books) -> str:
    """The promise in one line, with its sum."""
    parts = (
        f"{books.stored:,} stored + {books.duplicate:,} duplicate + {books.dead_lettered:,} dead-lettered"
        f" + {books.skipped:,} skipped + {books.pending:,} pending"
    )
    if books.trimmed:
        parts += f" + {books.trimmed:,} trimmed"
    if books.missing:
        return f"{books.read:,} entries read, {books.missing:,} NOT accounted for: {parts}"
    return f"{books.read:,} entries read = {parts}"


def console() -> Console:
    return Console(highlight=False)
