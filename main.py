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
import programs
import redis_client
import wiring
import worker_log
from batches import parse_batch
from config import ConfigError, Settings
from counting import Stage
from db_writer import DatabaseWriter
from flood import Flood
from health import probe
from metrics import Stats
from parse import Parser
from readiness import Readiness
from redis_reader import RedisReader
from refusals import refusal, refused_connection
from retry import StopFlag, Stopping, describe
from schema import Entry
from schema_check import SchemaMismatch
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
                    worker_log.batch(outcome, redelivered, laps.done(Stage.SETTLE))
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
            raise ConfigError(database.refusal(error)) from None
        self._writer.upkeep()  # partitions ahead, so that the first batches need not make them
        # Rules and registry stay: the collector need not look at a hundred thousand of them again. Nor
        # often at batches: they are many small objects without cycles, which go by themselves.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)
        self._running = True
        if self.publisher:
            self.publisher.start()
        worker_log.started(self._settings, found)
        try:
            self._reader.start()
        except redis.RedisError as error:
            if sentence := refusal(error):
                raise ConfigError(sentence) from None
            raise

    def _check_redis(self) -> None:
        """Better not to start than with a Redis that cannot keep the promise."""
        try:
            server = self._reader.server()
        except redis.RedisError as error:
            raise ConfigError(refusal(error) or refused_connection(error)) from None
        if sentence := server.unfit(allow_eviction=self._settings.redis_allow_eviction):
            raise ConfigError(sentence)
        worker_log.redis_found(server)

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


def worker(settings: Settings) -> int:
    """Run a worker."""
    service = DatabaseWriterService(settings)
    return programs.run(service, "worker", settings, config.load, left="pending")


def command_line() -> argparse.ArgumentParser:
    """What the program can be told to do. An action of `ops/` comes with what runs it."""
    from mqtt import simulate
    from ops import checks, configuration, dead_letters, lag, retention, series, thresholds

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
    return parser


def carry_out(chosen: argparse.Namespace) -> int:
    """Do what was chosen. Raises: `ConfigError` and `SchemaMismatch`."""
    if chosen.command == "bridge":
        return programs.bridge()
    if chosen.command == "simulate":
        return programs.simulate(chosen)
    only_redis = chosen.command in ("lag", "dead-letters")
    settings = config.load_without_database() if only_redis else config.load()
    log.configure(settings.log_level, settings.log_format)
    if chosen.command == "query":
        return programs.query(settings)
    if chosen.command == "dashboard":
        return programs.dashboard(settings)
    if chosen.command == "verify":
        from ops import verify

        return verify.main(settings, as_json=chosen.json)
    if "action" in chosen:
        return int(chosen.run(settings, chosen))
    return worker(settings)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit status."""
    if [*arguments[:1]] == ["health"]:
        return probe.main(arguments[1:])
    chosen = command_line().parse_args(arguments)
    if "action" in chosen and not chosen.action:
        chosen.show_help()
        return 2
    try:
        return carry_out(chosen)
    except ConfigError as error:
        print(error.told("sluice"), file=sys.stderr)
        return 2
    except SchemaMismatch as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
