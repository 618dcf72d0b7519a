"""What a reader is made of: each part wired to the others, for one server or for a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import redis

from ahead import Ahead
from cluster_keys import keys_of
from cluster_settlement import ClusterSettler
from cluster_streams import ClusterStreams
from lease import Lease
from leftovers import Leftovers
from losses import Losses
from metrics import Stats
from polling import Polling
from recovery import Recovery
from redis_cluster import ClusterClient
from redis_line import Line
from redis_scripts import Keys
from retry import StopFlag
from rounds import Rounds
from sampling import Sampler
from settlement import Settler
from sharing import Sharing
from streams import Streams
from trimming import LetterTrimmer, Trimmer


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderOptions:
    """Plain values of the settings that reading depends on. Times in seconds.

    `named_streams` are read whether they match `pattern` or not. `sample`: keep `backlog` up to date.
    """

    group: str
    consumer: str
    pattern: str = "mqtt_stream:*"
    dead_letter_stream: str = "mqtt_stream:failed"
    batch_size: int = 10_000
    block_sec: float = 1.0
    claim_min_idle_sec: float = 60.0
    discovery_interval_sec: float = 2.0
    max_deliveries: int = 5
    stream_retention_sec: int = 0
    dead_letter_retention_sec: int = 0
    quiet_poll_sec: float = 2.0
    share_above_streams: int = 64
    worker_timeout_sec: float = 5.0
    named_streams: tuple[str, ...] = ()
    sample: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """`may_read_ahead`: not in a cluster, since that is one command and one connection."""

    keys: Keys
    lease: Lease
    sharing: Sharing
    streams: Streams
    rounds: Rounds
    ahead: Ahead
    recovery: Recovery
    settler: Settler
    trimmer: Trimmer
    letter_trimmer: LetterTrimmer
    losses: Losses
    leftovers: Leftovers
    sampler: Sampler
    may_read_ahead: bool


def parts_of(
    client: redis.Redis,
    options: ReaderOptions,
    stop: StopFlag,
    stats: Stats,
    *,
    token: str,
    wall_ms: Callable[[], int],
    clock: Callable[[], float],
) -> Parts:
    """All of one consumer. `token`, `wall_ms` and `clock`: see `RedisReader`. Asks Redis nothing."""
    group, letters = options.group, options.dead_letter_stream
    keys = keys_of(client, group)
    cluster = isinstance(client, ClusterClient)
    sharing = Sharing(
        client,
        keys.alive(options.pattern),
        options.consumer,
        timeout_sec=options.worker_timeout_sec,
        least=options.share_above_streams,
        clock=clock,
    )
    streams = _streams_of(client, options, keys, sharing, stop, stats, clock)
    settler = (ClusterSettler if cluster else Settler)(client, keys, group, letters, stats, wall_ms)
    recovery = Recovery(
        client,
        streams,
        settler,
        keys=keys,
        group=group,
        consumer=options.consumer,
        min_idle_sec=options.claim_min_idle_sec,
        max_deliveries=options.max_deliveries,
        stats=stats,
        clock=clock,
    )
    ahead = Ahead(Line(client), streams, settler)
    upkeep = Lease(client, keys.upkeep, token)
    return Parts(
        keys=keys,
        lease=Lease(client, keys.worker(options.consumer), token),
        sharing=sharing,
        streams=streams,
        rounds=Rounds(streams, Polling(streams.ask, options.quiet_poll_sec, clock), ahead, stop, clock),
        ahead=ahead,
        recovery=recovery,
        settler=settler,
        trimmer=Trimmer(client, keys, upkeep, options.stream_retention_sec, wall_ms, clock),
        letter_trimmer=LetterTrimmer(client, upkeep, letters, options.dead_letter_retention_sec, wall_ms),
        losses=Losses(client, keys, upkeep, options.group, stats, clock),
        leftovers=Leftovers(client, keys, upkeep, options.group, clock),
        sampler=Sampler(client, keys, sharing, group=group, dead_letter_stream=letters, clock=clock),
        may_read_ahead=not cluster,
    )


def _streams_of(
    client: redis.Redis,
    options: ReaderOptions,
    keys: Keys,
    sharing: Sharing,
    stop: StopFlag,
    stats: Stats,
    clock: Callable[[], float],
) -> Streams:
    streams = partial(ClusterStreams, stop=stop) if isinstance(client, ClusterClient) else Streams
    return streams(
        client,
        keys=keys,
        group=options.group,
        consumer=options.consumer,
        pattern=options.pattern,
        dead_letter_stream=options.dead_letter_stream,
        interval_sec=options.discovery_interval_sec,
        stats=stats,
        clock=clock,
        named=options.named_streams,
        share_of=sharing.share_of,
    )
