"""What a worker logs of its course: events with fixed names and keys, and never what is in an entry."""

from __future__ import annotations

import structlog

from config import Settings
from redis_server import RedisServer
from schema import Outcome
from schema_check import Found


def redis_found(server: RedisServer) -> None:
    """Which Redis it is, and what Sluice does without there."""
    structlog.get_logger().info(
        "redis_found",
        server=server.name,
        version=server.version,
        redis_version=f"{server.speaks[0]}.{server.speaks[1]}",
        script_flags=server.script_flags,
        reads_counted=server.counts_reads,
    )


def started(settings: Settings, found: Found) -> None:
    """The servers are found fit, and the group is about to be read."""
    structlog.get_logger().info(
        "worker_started",
        group=settings.consumer_group_name,
        pattern=settings.stream_pattern,
        table=settings.table_name,
        kind=found.kind.value,
        revision=found.revisions[-1],
        postgresql=found.server_version,
        timescaledb=found.timescale_version,
    )


def batch(outcome: Outcome, redelivered: bool, seconds: float) -> None:
    """A batch is settled, after `seconds` in all."""
    structlog.get_logger().info(
        "batch",
        entries=len(outcome.settled),
        stored=outcome.readings_stored,
        duplicate=outcome.readings_duplicate,
        rejected=outcome.readings_rejected,
        skipped=outcome.readings_skipped,
        redelivered=redelivered,
        ms=round(seconds * 1000, 1),
    )
