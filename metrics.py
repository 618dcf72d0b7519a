"""Every count a worker keeps, its name and its meaning, once.

These live in the process and start at zero with it. What must be true across crashes is the ledger in
Redis (`redis_reader.py`), which counts at the acknowledgement and atomically with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol


class CountsErrors(Protocol):
    """Counts attempts that failed."""

    errors: int


@dataclass(slots=True)
class Stats:
    """Counts since the process started. Written by the worker's thread only; reading is safe anywhere."""

    messages_read: int = 0  # entries delivered to this worker, redeliveries included
    messages_written: int = 0  # entries acknowledged as stored
    messages_duplicate: int = 0  # entries acknowledged as duplicates of stored rows
    messages_failed: int = 0  # entries dead-lettered
    messages_skipped: int = 0  # entries acknowledged as skipped: their series is switched off
    messages_trimmed: int = 0  # pending entries whose data somebody had trimmed away
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
    errors: int = 0  # attempts that failed because a server was away or refused
    streams: int = 0  # streams known now

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class BridgeStats:
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
    errors: int = 0  # attempts that failed because Redis was away or refused

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
