"""Sluice: sensor readings from Redis Streams into TimescaleDB or PostgreSQL, every entry accounted for.

`python main.py` runs a worker, `bridge` what feeds it from an MQTT broker, `query` what answers over gRPC,
`dashboard` the live page; `verify` proves the ledger, `lag` shows what is still to be read, `dead-letters`
what could not be stored; `thresholds` and `series` edit what workers heed, `retention` how long all is
kept; `config` and `check` show the settings and try them; `simulate` publishes what devices would; `health`
asks how a process does.
Exit status: 0 finished or in order, 1 something is wrong, 2 wrong usage or configuration.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:2] == ["health"]:
    from health import probe  # before anything that takes long to load

    raise SystemExit(probe.main(sys.argv[2:]))

import argparse
import gc
import os
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

try:
    import psycopg
    import redis
    import structlog
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"sluice: the package {missing.name} is missing for {sys.executable}; "
        'see "With your own servers" in README.md'
    ) from None

import config
import database
import log
import redis_client
import wiring
from batches import parse_batch
from config import ConfigError, Settings
from counting import Stage
from db_writer import DatabaseWriter
from flood import Flood
from health import probe
from metrics import Stats
from mqtt.bridge import Bridge
from parse import Parser
from readiness import Readiness
from redis_reader import RedisReader
from refusals import refusal, refused_connection
from retry import StopFlag, Stopping, describe
from schema import Entry, Outcome
from schema_check import SchemaMismatch
from serving import serve
from signs import OK, Signs
from worker_signs import WorkerSigns

FLOOD_LOOK_SEC = 0.5  # how often somebody's answer to a flood of dead letters is looked for


class DatabaseWriterService:
    """A worker: one consumer of the group.

    `run` returns after `stop`, which any thread or signal handler may call. `health_check` and `stats`
    may be asked from any thread. Raises, from `run`: `ConfigError` and `SchemaMismatch` before the first
    entry is read.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or config.load()
        self._stats = Stats()
        self._stop = StopFlag(self._settings.shutdown_timeout_sec)
        self._running = False
        self._parser = Parser(wiring.limits(self._settings))
        self._client = redis_client.connect(
            self._settings.redis_servers(),
            timeout_sec=self._settings.batch_timeout_sec + 10,
            name=self._settings.consumer_name,
        )
        self._reader = RedisReader(
            self._client,
            wiring.reader_options(self._settings, sample=self._is_asked()),
            self._stop,
            self._stats,
            token=str(uuid.uuid4()),
            wall_ms=lambda: time.time_ns() // 1_000_000,
        )
        # `publisher.wake` is for whoever commits an alert. None: nothing is to be published.
        self.publisher = wiring.publisher_of(self._settings)
        self._writer = DatabaseWriter(
            wiring.writer_options(self._settings),
            self._stop,
            self._stats,
            now=lambda: datetime.now(UTC),
            on_outage=self._reader.during_outage,
            on_due=self.publisher.wake if self.publisher else lambda: None,
            caught_up_at=lambda: self._reader.caught_up_at,
        )
        self._readiness = Readiness(wiring.checks(self._settings))
        self._reload_asked = False

        self._flood = Flood(
            wiring.flood_options(self._settings),
            self._stats,
            devices=lambda: self._writer.devices_heard() * self._reader.part,
            accepted=self._reader.flood_accepted,
        )

    def run(self) -> None:
        """The promise, in order: nothing is acknowledged before its COMMIT, nothing read past a stop."""
        laps = self._stats.laps
        try:
            self._open()
            while self._goes_on():
                entries, redelivered = self._next()
                if entries:
                    laps.done(Stage.READ)
                    if not self._flood.on:
                        self._reader.read_ahead()  # the next ones come while these are written
                    batch = parse_batch(self._parser, entries, time.time_ns() // 1000, redelivered)
                    laps.done(Stage.PARSE)
                    outcome = self._writer.write(batch)  # returns after COMMIT
                    laps.done(Stage.WRITE)
                    outcome = self._flood.sift(outcome)  # in a flood, dead letters wait
                    self._reader.settle(outcome)  # dead-letter, acknowledge, count: one step
                    self._log_batch(outcome, redelivered, laps.done(Stage.SETTLE))
                    self._stop.pause(self._settings.processing_interval_sec)
                if not self._stop.is_set():
                    self._writer.upkeep()
                    self._reader.upkeep()
            self._reader.finish()
        except Stopping as stopping:
            left = "pending" if stopping.in_hand or self._reader.has_pending else "nothing"
            structlog.get_logger().warning("stopped_in_outage", left=left, error=describe(stopping))
        finally:
            self._close()

    def _next(self) -> tuple[Sequence[Entry], bool]:
        """What to store next, and whether it may have been delivered before. In a flood of dead letters
        nothing but what is on its way already.
        """
        if self._flood.on and not self._reader.has_more:
            self._reader.finish()  # what was settled behind the last read
            self._stop.pause(FLOOD_LOOK_SEC)
            if self._flood.over():
                self._reader.recall()
            return (), False
        entries = self._reader.recover()
        if entries:
            return entries, True
        return self._reader.read(until=self._writer.due_at), False

    def stop(self) -> None:
        """Finish the batch in hand and end `run`. Returns at once; takes no lock and logs nothing, since a
        signal handler calls it, which may interrupt whoever holds one.
        """
        self._stop.set()

    @property
    def stats(self) -> Stats:
        """Counts since this worker started."""
        return self._stats

    def health_check(self) -> dict[str, object]:
        """Whether the worker runs and reaches its servers, and its counts. Never raises.

        Keys: `running`, `redis`, `database`, `schema`, `live` (the loop gets on), `ready` (all of them),
        `paused` (a flood of dead letters holds it, and waits for somebody), and `stats`: what `/readyz` and
        `/livez` say. Takes up to about 10 s when a server does not answer.
        """
        found = {name: said == OK for name, said in self._readiness.look(fresh=True).items()}
        live = not self.signs().stuck
        ready = live and self._running and all(found.values())
        return {
            "running": self._running,
            **found,
            "live": live,
            "ready": ready,
            "paused": self._flood.on,
            "stats": self._stats.as_dict(),
        }

    def signs(self) -> Signs:
        """What it shows of itself while it runs."""
        publisher, settings = self.publisher, self._settings
        # A question to Redis may take BATCH_TIMEOUT_SEC and 10 s more.
        longest_sec = max(settings.db_timeout_sec, settings.batch_timeout_sec)
        shown = WorkerSigns(
            self._stats,
            started=lambda: self._running,
            backlog=lambda: self._reader.backlog,
            connected=lambda: self._writer.connected,
            publishing=lambda: publisher.connected if publisher else None,
        )
        return Signs(
            progress=self._stop.progress,
            stuck_after_sec=settings.health_stuck_sec + longest_sec,
            started=lambda: self._running,
            stopping=self._stop.is_set,
            checks=self._readiness.look,
            samples=shown.samples,
            status=shown.status,
            reload=self._ask_reload,
        )

    def _is_asked(self) -> bool:
        """Whether anybody may want to know how far behind the group is, which takes looks at Redis."""
        return bool(self._settings.health_port or "NOTIFY_SOCKET" in os.environ)

    def _ask_reload(self) -> None:
        self._reload_asked = True

    def _goes_on(self) -> bool:
        """Whether there is another round; what is to be done at its beginning is done."""
        if self._stop.is_set() and not self._reader.has_more:
            return False
        self._stop.progress.made()
        if self._reload_asked:
            self._reload_asked = False
            self._writer.reload()
        if self.publisher:
            self.publisher.raise_failure()
        self._stats.laps.begin()
        return True

    def _open(self) -> None:
        structlog.contextvars.bind_contextvars(consumer=self._settings.consumer_name)
        try:
            found = self._writer.start()
            self._check_redis()
        except psycopg.OperationalError as error:
            raise ConfigError(f"DATABASE_URL: the server refused it: {database.refusal(error)}") from None
        self._writer.upkeep()  # partitions ahead, so that the first batches need not make them
        # Rules and registry stay: the collector need not look at a hundred thousand of them again. Nor
        # often at batches: they are many small objects without cycles, which go by themselves.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)
        self._running = True
        if self.publisher:
            self.publisher.start()
        structlog.get_logger().info(
            "worker_started",
            group=self._settings.consumer_group_name,
            pattern=self._settings.stream_pattern,
            table=self._settings.table_name,
            kind=found.kind.value,
            revision=found.revisions[-1],
            postgresql=found.server_version,
            timescaledb=found.timescale_version,
        )
        try:
            self._reader.start()
        except redis.RedisError as error:
            if sentence := refusal(error):
                raise ConfigError(sentence) from None
            raise

    def _check_redis(self) -> None:
        """Too old a Redis lacks commands, and an evicting one deletes unread streams without a word: better
        not to start.
        """
        try:
            server = self._reader.server()
        except redis.RedisError as error:
            raise ConfigError(refusal(error) or refused_connection(error)) from None
        if server.too_old:
            raise ConfigError(f"{server.name} {server.version} is too old; Sluice needs Redis 6.2 or newer")
        policy = server.eviction_policy
        if policy.startswith("allkeys-") and not self._settings.redis_allow_eviction:
            raise ConfigError(
                f"Redis runs with maxmemory-policy {policy}, which deletes unread streams when memory is "
                "short; set it to noeviction, or set REDIS_ALLOW_EVICTION=true to accept the loss"
            )
        structlog.get_logger().info(
            "redis_found",
            server=server.name,
            version=server.version,
            redis_version=f"{server.speaks[0]}.{server.speaks[1]}",
            script_flags=server.script_flags,
            reads_counted=server.counts_reads,
        )

    def _close(self) -> None:
        if self.publisher:
            # After the last batch, so that its alerts are published; in the part of the time that a stop
            # leaves for closing.
            self.publisher.stop(min(5.0, 0.15 * self._settings.shutdown_timeout_sec))
        self._writer.close()
        self._reader.close()
        if self._running:
            structlog.get_logger().info("worker_stopped", **self._stats.as_dict())
        self._running = False

    def _log_batch(self, outcome: Outcome, redelivered: bool, seconds: float) -> None:
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


def worker(settings: Settings) -> int:
    """Run a worker."""
    service = DatabaseWriterService(settings)
    vitals = wiring.vitals(settings, "worker", service.signs(), os.environ, config.load)
    return serve(service, "worker", left="pending", vitals=vitals)


def bridge() -> int:
    """Run a bridge, which needs neither a database nor a worker's settings."""
    settings = config.load_edge()
    log.configure(settings.log_level, settings.log_format)
    stop = StopFlag(settings.shutdown_timeout_sec)
    service = Bridge(wiring.bridge_options(settings), stop)
    vitals = wiring.vitals(settings, "bridge", service.signs(), os.environ, config.load_edge)
    return serve(service, "bridge", left="unacknowledged", vitals=vitals)


def query(settings: Settings) -> int:
    """Run the query service, whose packages not everybody has installed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read at the import; what goes wrong is told here
    try:
        from query.server import QueryServer
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"the package {missing.name} is missing for {sys.executable}; the query service needs "
            "pip install --require-hashes -r requirements/query.txt"
        ) from None
    stop = StopFlag(settings.shutdown_timeout_sec)
    service = QueryServer(wiring.query_options(settings), stop)
    vitals = wiring.vitals(settings, "query", service.signs(), os.environ, config.load)
    return serve(service, "query", left="nothing", vitals=vitals)


def dashboard(settings: Settings) -> int:
    """Run the dashboard, whose packages not everybody has installed."""
    # Read at the import. The address of a WebSocket names up to a hundred series.
    os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", "65536")
    try:
        from dashboard.server import DashboardServer
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"the package {missing.name} is missing for {sys.executable}; the dashboard needs "
            "pip install --require-hashes -r requirements/dashboard.txt"
        ) from None
    stop = StopFlag(settings.shutdown_timeout_sec)
    service = DashboardServer(wiring.dashboard_options(settings), stop)
    vitals = wiring.vitals(settings, "dashboard", service.signs(), os.environ, config.load)
    return serve(service, "dashboard", left="nothing", vitals=vitals)


def main(arguments: Sequence[str]) -> int:
    from mqtt import simulate
    from ops import checks, configuration, dead_letters, lag, retention, series, thresholds, verify

    parser = argparse.ArgumentParser(prog="main.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("worker", help="run a worker (the default)")
    commands.add_parser("bridge", help="carry what an MQTT broker sends into the streams")
    commands.add_parser("query", help="answer over gRPC what is stored")
    commands.add_parser("dashboard", help="serve the live page")
    commands.add_parser("health", help="ask whether the process at HEALTH_PORT gets on", add_help=False)
    verifying = commands.add_parser("verify", help="prove that every entry is accounted for")
    verifying.add_argument("--json", action="store_true", help="print one JSON object")
    thresholds.add_arguments(commands)
    series.add_arguments(commands)
    retention.add_arguments(commands)
    lag.add_arguments(commands)
    configuration.add_arguments(commands)
    parts = {"query": wiring.query_options, "dashboard": wiring.dashboard_options}
    checks.add_arguments(commands, wiring.mqtt_options, parts)
    dead_letters.add_arguments(commands, wiring.limits)
    simulate.add_arguments(commands)
    if [*arguments[:1]] == ["health"]:
        return probe.main(arguments[1:])
    chosen = parser.parse_args(arguments)
    if "action" in chosen and not chosen.action:
        chosen.show_help()
        return 2
    try:
        if chosen.command == "bridge":
            return bridge()
        if chosen.command == "simulate":
            edge = config.load_edge()
            log.configure(edge.log_level, edge.log_format)
            mqtt = wiring.mqtt_options(edge, simulate.client_id())
            return simulate.main(mqtt, chosen, wiring.limits(edge).payload_formats)
        settings = config.load()
        log.configure(settings.log_level, settings.log_format)
        if chosen.command == "query":
            return query(settings)
        if chosen.command == "dashboard":
            return dashboard(settings)
        if chosen.command == "verify":
            return verify.main(settings, as_json=chosen.json)
        if "action" in chosen:
            return int(chosen.run(settings, chosen))
        return worker(settings)
    except ConfigError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2
    except SchemaMismatch as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
