"""`./run-standalone.sh`: everything on this machine, started in order and stopped in order.

Embedded servers (or those that are named), migrations, then simulator → broker → bridge → streams →
worker → table, each a process of its own, and a live table. Data stays under `.standalone/`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import psycopg
import redis
import sqlalchemy
from psycopg import sql
from rich.console import Console
from rich.live import Live

import config
import database
import redis_client
from config import ConfigError, Settings
from ops import migrate, rule_files, rule_store
from ops.ledger import Books, read_ledger
from retry import StopFlag
from standalone import logs, screen
from standalone.children import Child
from standalone.mqtt_broker import MqttBroker
from standalone.options import arguments
from standalone.ports import Ports
from standalone.servers import Postgres, Server, ServerFailed, ServerMissing, Valkey
from standalone.services import start_services, with_health

_DATA = Path(__file__).parent / "data"
DRAIN_SEC = 10.0
QUIET_SEC = 0.5
# Half of the devices send whole rows, half of them one value a message.
_DEMO = ("simulate", "--devices", "16", "--rate", "32", "--prefix", "room-", "--json")
_DEMO_TOPICS = "devices/{device_id}/telemetry,pico/{sensor_type}/{device_id}"
_NEWEST = sql.SQL(
    """
    select device_id, sensor_type, coalesce(value::text, value_text),
           extract(epoch from now() - "timestamp")::float8
    from {table} where "timestamp" > now() - interval '1 minute' and "timestamp" <= now()
    order by "timestamp" desc limit 8
    """
)
_ALERTS = """
    select status, severity, device_id, sensor_type,
        threshold_type || ' ' || coalesce(threshold_value::text, threshold_text),
        coalesce(round(peak_value::numeric, 2)::text, value_text, ''),
        extract(epoch from now() - created_at)::float8
    from alerts where status <> 'pending' order by greatest(created_at, resolved_at) desc limit 8
"""


class Trouble(Exception):
    """Ends the run with exit status 1 and this sentence."""


class Standalone:
    """One run. Everything started is stopped by `run`, in reverse order, however it ends."""

    def __init__(self, chosen: argparse.Namespace, out: Console) -> None:
        self._chosen = chosen
        self._out = out
        self._home: Path = chosen.data.absolute()
        self._stop = StopFlag(timeout_sec=60)
        self._rate = screen.Rate()
        self._ports = Ports()
        # Into servers of the user's own, which may hold what matters, only on demand.
        own = any((chosen.redis_url, chosen.database_url, chosen.mqtt_url))
        self._demo = chosen.demo or not (own or chosen.no_demo)

    def run(self) -> int:
        self._home.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._only_one())
            stack.enter_context(self._ports)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)
            settings = self._settings(stack)
            self._migrate(settings)
            if self._demo:
                self._make_rules(settings)
            if not self._stop.is_set():
                self._work(settings)
        self._out.print(f"Everything is stopped. The data stays in {self._home}.", soft_wrap=True)
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        with (self._home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Trouble(f"another run works in {self._home}; stop that one first") from None
            yield

    def _settings(self, stack: contextlib.ExitStack) -> Settings:
        redis_url, database_url = self._chosen.redis_url, self._chosen.database_url
        mqtt_url, protocol = self._chosen.mqtt_url, os.environ.get("MQTT_PROTOCOL", "5")
        # Refuse a wrong address before anything is started.
        config.load(database_url=database_url or "postgresql://", redis_url=redis_url, mqtt_url=mqtt_url)
        if not redis_url:
            redis_url = self._start(stack, Valkey(self._home / "valkey"))
        if not database_url:
            database_url = self._start(stack, Postgres(self._home / "postgres"))
        if not mqtt_url:
            mqtt_url, protocol = self._start(stack, MqttBroker(self._home / "mqtt")), MqttBroker.protocol
        addresses = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "MQTT_URL": mqtt_url,
            "MQTT_PROTOCOL": protocol,
        }
        alone = {"CONSUMER_NAME": "standalone-1", "QUERY_HOST": "127.0.0.1", "DASHBOARD_HOST": "127.0.0.1"}
        self._environment = {**alone, **os.environ, **addresses}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in addresses.items()]
        env = self._home / "env"
        env.touch()
        env.chmod(0o600)  # also one that is there already: addresses have passwords
        env.write_text("\n".join(lines) + "\n")
        with redis_client.connect(redis_url, timeout_sec=10) as client:
            client.ping()
        return config.load(database_url=database_url, redis_url=redis_url)

    def _start(self, stack: contextlib.ExitStack, server: Valkey | Postgres | MqttBroker) -> str:
        began = time.monotonic()
        server.start()
        stack.callback(self._stop_server, server)
        self._out.print(f"✓ {server.name} started in {time.monotonic() - began:.1f} s")
        return server.url

    def _stop_server(self, server: Server) -> None:
        server.stop()
        self._out.print(f"✓ {server.name} stopped")

    def _migrate(self, settings: Settings) -> None:
        with contextlib.redirect_stdout(sys.stderr if self._out.is_terminal else sys.stdout):
            migrate.upgrade(settings)

    def _make_rules(self, settings: Settings) -> None:
        """The demo's rules, for its own devices, where there are none yet."""
        with database.connect(settings.database_url.get_secret_value(), timeout_sec=30) as connection:
            if connection.execute("select from thresholds limit 1").fetchone() is None:
                rules = rule_files.read((_DATA / "rules.csv").read_bytes(), as_json=False)
                rule_store.put(connection, rules)
                self._out.print(
                    f"✓ {len(rules)} rules for the demo made; see them: main.py thresholds list"
                )

    def _work(self, settings: Settings) -> None:
        client = redis_client.connect(settings.redis_servers(), timeout_sec=10)
        before = self._books(settings, client)
        with contextlib.ExitStack() as stack:
            services = start_services(self._home, self._environment, self._ports, stack)
            worker = self._child(stack, "worker")
            bridge = self._child(stack, "bridge", "bridge")
            bridge.wait_for("mqtt_subscribed", DRAIN_SEC)  # what is published before has nobody to go to
            demo = self._child(stack, "simulator", *self._simulate()) if self._demo else None
            if demo:
                demo.wait_for("mqtt_connected", DRAIN_SEC)  # --for counts from here
            self._out.print("✓ worker and bridge started" + (", and 16 simulated devices" if demo else ""))
            health = worker.environment["HEALTH_PORT"]
            self._out.print(f"  health: http://127.0.0.1:{health}/readyz and /metrics of the worker")
            for service in services:
                self._out.print(f"  the {service.name}: {service.address}", soft_wrap=True)
            self._out.print(
                f"  the broker: {without_login(self._environment['MQTT_URL'])}\n"
                f"  their logs: {self._home}/*.log\n"
                f"  settings for other commands: . {shlex.quote(str(self._home / 'env'))}",
                soft_wrap=True,
            )
            serving = [service.child for service in services]
            children = [child for child in (*serving, worker, bridge, demo) if child]
            try:
                self._watch(settings, client, children)
            finally:
                self._wind_down(settings, client, children)
        books = self._books(settings, client)
        alerts, newest = self._look(settings)
        self._out.print(screen.table(books, 0, alerts, newest, ""))
        self._tell(before, books, demo)
        failed = [child for child in children if not child.in_order and child is not demo]
        if books.missing or failed:
            ended = failed[0] if failed else worker
            raise Trouble(f"{ended.how_it_ended()}\n{screen.accounted(books)}")

    def _simulate(self) -> tuple[str, ...]:
        host = urlsplit(self._environment["MQTT_URL"]).hostname or ""
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise Trouble(
                f"the demo publishes readings that nobody measured, and the broker at {host} is not on "
                "this machine; leave out --demo"
            )
        return (*_DEMO, "--topics", _DEMO_TOPICS, "--scenario", str(_DATA / "demo.toml"))

    def _wind_down(self, settings: Settings, client: redis.Redis, children: Sequence[Child]) -> None:
        """From the sensor to the row: each ends when the one before has nothing left to give."""
        for child in reversed(children):
            if child.name in ("bridge", "worker"):
                with contextlib.suppress(redis.RedisError):  # it is away: nothing can be drained
                    self._drain(settings, client, child)
            status = child.end()
            self._out.print(f"{'✓' if child.in_order else '✗'} {child.name} stopped, status {status}")

    def _tell(self, before: Books, books: Books, demo: Child | None) -> None:
        """The books, and beside them what the broker has accepted from the demo."""
        accepted = _accepted(demo) if demo else None
        if accepted is not None:
            added = books.read + books.unread - before.read - before.unread
            self._out.print(
                f"this run: {accepted:,} messages accepted by the broker, {added:,} entries in the streams",
                soft_wrap=True,
            )
        self._out.print(screen.accounted(books), soft_wrap=True)

    def _watch(self, settings: Settings, client: redis.Redis, children: Sequence[Child]) -> None:
        """Show the table until a signal, the end of --for, or the end of a process."""
        ends = time.monotonic() + self._chosen.seconds if self._chosen.seconds else float("inf")
        live = (
            Live(console=self._out, auto_refresh=False, transient=True) if self._out.is_terminal else None
        )
        with live or contextlib.nullcontext():
            while not self._stop.is_set() and time.monotonic() < ends:
                for child in children:
                    if not child.running:
                        raise Trouble(child.how_it_ended())
                logs.cut(self._home)
                if live:
                    try:
                        books = self._books(settings, client)
                        rate = self._rate.see(time.monotonic(), books.settled)
                        state = f"{screen.accounted(books)}   Ctrl-C stops everything"
                        live.update(screen.table(books, rate, *self._look(settings), state), refresh=True)
                    except (redis.RedisError, psycopg.Error) as error:
                        live.update(f"a server is away: {type(error).__name__}", refresh=True)
                self._stop.pause(min(1.0, ends - time.monotonic()))

    def _drain(self, settings: Settings, client: redis.Redis, child: Child) -> None:
        """Let the bridge, or the worker, finish what has come: until nothing changes any more."""
        deadline = time.monotonic() + DRAIN_SEC
        seen, since = -1, time.monotonic()
        while child.running and time.monotonic() < deadline:
            books = self._books(settings, client)
            if child.name == "worker" and not books.unread and not books.pending:
                return
            if child.name == "bridge" and seen == books.read + books.unread:
                if time.monotonic() - since > QUIET_SEC:
                    return
            else:
                seen, since = books.read + books.unread, time.monotonic()
            time.sleep(0.1)

    def _books(self, settings: Settings, client: redis.Redis) -> Books:
        group, pattern = settings.consumer_group_name, settings.stream_pattern
        dead_letters, events = settings.dead_letter_stream, settings.event_streams()
        return read_ledger(client, group, pattern, dead_letters, events).total

    def _look(self, settings: Settings) -> tuple[list[screen.Alerted], list[screen.Newest]]:
        """The newest alerts, those that are active first, and the newest readings."""
        with database.connect(settings.database_url.get_secret_value(), timeout_sec=10) as connection:
            alerts = [screen.Alerted(*row) for row in connection.execute(_ALERTS)]
            query = _NEWEST.format(table=sql.Identifier(settings.table_name))
            return alerts, [screen.Newest(*row) for row in connection.execute(query)]

    def _child(self, stack: contextlib.ExitStack, name: str, *command: str) -> Child:
        child = Child(name, self._home, with_health(self._environment, name, self._ports), *command)
        stack.callback(child.end)
        return child


def without_login(url: str) -> str:
    """An address that may be shown."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _accepted(demo: Child) -> int | None:
    """How many messages of the simulator the broker has accepted, where it was there to count them."""
    for line in reversed(demo.said().splitlines()):
        if line.startswith("{") and "accepted" in line:
            return int(json.loads(line)["accepted"]["messages"])
    return None


def main(given: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode loses some signs, no more
    chosen = arguments(given)
    try:
        return Standalone(chosen, screen.console()).run()
    except ConfigError as error:
        print(error.told("run-standalone"), file=sys.stderr)
        return 2
    except (Trouble, ServerMissing, ServerFailed) as error:
        print(f"run-standalone: {error}", file=sys.stderr)
    except sqlalchemy.exc.DBAPIError as error:
        print(f"run-standalone: --database-url: {str(error.orig).strip()}", file=sys.stderr)
    except redis.RedisError as error:
        print(f"run-standalone: --redis-url: {error}", file=sys.stderr)
    except OSError as error:
        print(f"run-standalone: --data: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
