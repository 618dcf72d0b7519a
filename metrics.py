"""Every count a process keeps, and every metric's name and meaning, once.

These live in the process and start at zero with it. What must be true across crashes is the ledger in
Redis (`redis_reader.py`), which counts at the acknowledgement and atomically with it. Nothing here needs a
package: `health/exposition.py` puts it into Prometheus's words where somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from counting import AGES, SECONDS, SIZES, Counts, Histogram, Laps

VERSION = "0.1.0"  # as in pyproject.toml


@dataclass(slots=True)
class Stats(Counts):
    """Counts since the process started. Written by the worker's thread only; reading is safe anywhere."""

    messages_read: int = 0  # entries delivered to this worker, redeliveries included
    messages_written: int = 0  # entries acknowledged as stored
    messages_duplicate: int = 0  # entries acknowledged as duplicates of stored rows
    messages_failed: int = 0  # entries dead-lettered
    messages_skipped: int = 0  # entries acknowledged as skipped: their series is switched off
    messages_trimmed: int = 0  # pending entries whose data somebody had trimmed away
    messages_trimmed_unread: int = 0  # entries deleted before anybody read them, as this worker found out
    messages_held: int = 0  # entries left pending in a flood of dead letters, in place of a dead letter
    messages_claimed: int = 0  # entries taken over: own stranded ones and those of dead consumers
    readings_written: int = 0  # rows stored
    readings_duplicate: int = 0  # readings whose row was there already
    readings_failed: int = 0  # readings rejected
    readings_skipped: int = 0  # readings of series that are switched off
    alerts_opened: int = 0  # alerts that became active
    alerts_resolved: int = 0  # alerts that ended
    notifications_sent: int = 0  # what readers were told of new readings; none where nobody listens
    batches_processed: int = 0  # batches acknowledged
    batches_staged: int = 0  # transactions that went through staging
    streams: int = 0  # streams known now
    letters: dict[str, int] = field(default_factory=dict)  # dead letters by reason
    laps: Laps = field(default_factory=Laps)
    batch_entries: Histogram = field(default_factory=lambda: Histogram(SIZES))
    commit_sec: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    entry_age_sec: Histogram = field(default_factory=lambda: Histogram(AGES))
    reading_age_sec: Histogram = field(default_factory=lambda: Histogram(AGES))

    def lettered(self, reason: str) -> None:
        self.letters[reason] = self.letters.get(reason, 0) + 1


@dataclass(slots=True)
class BridgeStats(Counts):
    """Counts of a bridge since its process started. Each has one thread that writes it; reading is safe."""

    messages_received: int = 0  # messages the broker sent, repeats included
    messages_added: int = 0  # messages that Redis has confirmed
    messages_acknowledged: int = 0  # messages acknowledged to the broker (QoS 1)
    messages_recognised: int = 0  # repeats of messages that were still in hand: taken once
    messages_copied: int = 0  # copies that the broker sent because several filters match: passed over
    messages_retained: int = 0  # retained messages passed over
    messages_unmatched: int = 0  # messages whose topic no template matches
    messages_dropped: int = 0  # messages lost because the queue was full, as BRIDGE_WHEN_FULL asks
    entries_added: int = 0  # entries added to streams
    batches_processed: int = 0  # batches confirmed by Redis


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """`name` as Prometheus has it, without the `_total` of a counter, which `shown` has."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


# A metric, the values of its labels, and its own. No label holds a name that a device chose.
Sample: TypeAlias = tuple[Metric, tuple[str, ...], float | Histogram]


def _metric(kind: Kind, name: str, says: str, *labels: str) -> Metric:
    return Metric(name=f"sluice_{name}", kind=kind, help=says, labels=labels)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# Every process
BUILD = _metric(_G, "build_info", "1; what runs here", "version", "python", "role")
STARTED = _metric(_G, "started", "1 once the process has reached its servers")
PROGRESS_AGE = _metric(_G, "progress_age_seconds", "time since the loop last got on")
RETRIES = _metric(
    _C,
    "retries",
    "attempts that failed because a server was away or refused, tried again",
    "server",
    "cause",
)
OUTAGE = _metric(_G, "outage", "1 while an outage of this server is waited out", "server")
# A worker: counts
ENTRIES_READ = _metric(_C, "entries_read", "entries delivered to this worker, redeliveries included")
ENTRIES_SETTLED = _metric(
    _C,
    "entries_settled",
    "entries that this worker let go of: stored, duplicate, dead_lettered, skipped, trimmed",
    "fate",
)
LOST_UNREAD = _metric(
    _C, "entries_trimmed_unread", "entries that something deleted before anybody read them, each told once"
)
DEAD_LETTERS = _metric(
    _C,
    "dead_letters",
    "dead letters made by this worker; an entry that is settled twice at the same time may count twice",
    "reason",
)
ENTRIES_CLAIMED = _metric(
    _C, "entries_claimed", "pending entries taken over, of dead consumers or of a lost reply"
)
READINGS = _metric(
    _C, "readings", "readings by what became of them: stored, duplicate, rejected, skipped", "fate"
)
BATCHES = _metric(_C, "batches", "batches stored and acknowledged")
STAGED = _metric(
    _C,
    "staged_transactions",
    "transactions that went through staging: redelivered, after an error, or duplicates",
)
ALERTS = _metric(_C, "alerts", "alerts that this worker opened or resolved", "event")
NOTIFICATIONS = _metric(
    _C, "reader_notifications", "notifications of new readings; none where nobody listens"
)
# A worker: sizes and times
BATCH_ENTRIES = _metric(_H, "batch_entries", "entries in a batch")
STAGE_SECONDS = _metric(
    _H,
    "stage_duration_seconds",
    "time of a batch in each stage: read (with waiting for entries), parse, write, settle",
    "stage",
)
COMMIT_SECONDS = _metric(_H, "commit_duration_seconds", "time that COMMIT takes")
ENTRY_AGE = _metric(
    _H,
    "entry_age_seconds",
    "time from an entry's arrival in Redis until it is settled; the first and the last of each batch",
)
READING_AGE = _metric(
    _H,
    "reading_age_seconds",
    "time from measuring a reading until it is committed; the first and the last of each transaction",
)
# A worker: now
STREAMS = _metric(_G, "streams", "streams that this worker knows")
CONNECTIONS = _metric(
    _G, "database_connections", "connections to the database, by whether they are in_use or idle", "state"
)
PUBLISHER = _metric(
    _G, "alert_broker_connected", "1 while this worker is connected to the broker of alerts"
)
# A worker: its part of the group, looked at every few seconds; the group's is the sum over its workers
PENDING = _metric(
    _G,
    "pending_entries",
    "entries delivered to some consumer and not settled, in this worker's part of the streams",
)
LAG_ENTRIES = _metric(
    _G, "lag_entries", "entries not yet read, in this worker's part of the streams where that is known"
)
LAG_SECONDS = _metric(
    _G, "lag_seconds", "age of the oldest entry not yet read, in this worker's part; 0 where all is read"
)
LAG_UNKNOWN = _metric(
    _G,
    "lag_unknown_streams",
    "streams with unread entries whose number Redis cannot tell, since some were deleted",
)
TRIMMED_UNREAD = _metric(
    _G,
    "trimmed_unread_entries",
    "entries that something trimmed before anybody read them, until the group has read on: lost",
)
SAMPLED_STREAMS = _metric(_G, "sampled_streams", "streams in this worker's part")
SAMPLE_AGE = _metric(_G, "sample_age_seconds", "time since this worker's part was looked at")
DEAD_LETTERS_KEPT = _metric(
    _G, "dead_letters_kept", "dead letters in their stream; told by one worker of the group"
)
# A bridge
BRIDGE_MESSAGES = _metric(
    _C,
    "bridge_messages",
    "messages received, added to streams, acknowledged, dropped because the queue was full, and "
    "passed over: recognised and copied repeats, retained, unmatched",
    "event",
)
BRIDGE_ENTRIES = _metric(_C, "bridge_entries_added", "entries that Redis has confirmed")
BRIDGE_BATCHES = _metric(_C, "bridge_batches", "batches that Redis has confirmed")
BRIDGE_WAITING = _metric(_G, "bridge_queue_messages", "messages that wait for Redis in memory")
BRIDGE_BOUND = _metric(_G, "bridge_queue_limit_messages", "how many may wait: BRIDGE_QUEUE_SIZE")
BRIDGE_CONNECTED = _metric(
    _G, "bridge_connected", "1 while the broker is connected and every subscription granted"
)
# What serves readings back
ANSWERS = _metric(_G, "database_answers", "1 while the database answers and has the schema that is needed")
LISTENING = _metric(_G, "listening", "1 while new readings are heard of as they are stored")
PAGES = _metric(_G, "dashboard_pages", "pages that are open")
QUERY_STREAMS = _metric(_G, "query_streams", "streams of new readings that callers have open")

METRICS = tuple(found for found in list(globals().values()) if isinstance(found, Metric))


def of_servers(counts: Counts) -> Iterator[Sample]:
    """What a process says of its servers. Copies first: the other thread may add a cause meanwhile."""
    for cause, count in counts.retries.copy().items():
        yield RETRIES, cause, count
    for server, away in counts.away.copy().items():
        yield OUTAGE, (server,), away


def of_worker(stats: Stats) -> Iterator[Sample]:
    """All that a worker counts."""
    yield from of_servers(stats)
    yield ENTRIES_READ, (), stats.messages_read
    for fate, count in (
        ("stored", stats.messages_written),
        ("duplicate", stats.messages_duplicate),
        ("dead_lettered", stats.messages_failed),
        ("skipped", stats.messages_skipped),
        ("trimmed", stats.messages_trimmed),
    ):
        yield ENTRIES_SETTLED, (fate,), count
    yield LOST_UNREAD, (), stats.messages_trimmed_unread
    for reason, count in stats.letters.copy().items():
        yield DEAD_LETTERS, (reason,), count
    for fate, count in (
        ("stored", stats.readings_written),
        ("duplicate", stats.readings_duplicate),
        ("rejected", stats.readings_failed),
        ("skipped", stats.readings_skipped),
    ):
        yield READINGS, (fate,), count
    yield ENTRIES_CLAIMED, (), stats.messages_claimed
    yield BATCHES, (), stats.batches_processed
    yield STAGED, (), stats.batches_staged
    yield ALERTS, ("opened",), stats.alerts_opened
    yield ALERTS, ("resolved",), stats.alerts_resolved
    yield NOTIFICATIONS, (), stats.notifications_sent
    yield STREAMS, (), stats.streams
    yield BATCH_ENTRIES, (), stats.batch_entries
    for stage, seconds in stats.laps.seconds.items():
        yield STAGE_SECONDS, (stage.value,), seconds
    yield COMMIT_SECONDS, (), stats.commit_sec
    yield ENTRY_AGE, (), stats.entry_age_sec
    yield READING_AGE, (), stats.reading_age_sec


_BRIDGE_EVENTS = (
    "received",
    "added",
    "acknowledged",
    "recognised",
    "copied",
    "retained",
    "unmatched",
    "dropped",
)


def of_bridge(stats: BridgeStats) -> Iterator[Sample]:
    """All that a bridge counts."""
    yield from of_servers(stats)
    for event in _BRIDGE_EVENTS:
        yield BRIDGE_MESSAGES, (event,), getattr(stats, f"messages_{event}")
    yield BRIDGE_ENTRIES, (), stats.entries_added
    yield BRIDGE_BATCHES, (), stats.batches_processed
