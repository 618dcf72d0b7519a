"""`./run-standalone.sh`: everything on this machine, started in order and stopped in order.

Embedded Valkey and PostgreSQL (or the servers that are named), migrations, a worker as its own process,
a replay of real readings, and a live table. Data stays under `.standalone/`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

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
from standalone import screen
from standalone.servers import Postgres, Server, ServerFailed, ServerMissing, Valkey, die_with_parent

ROOT = Path(__file__).resolve().parent.parent
_RULES = Path(__file__).parent / "data" / "rules.csv"
DRAIN_SEC = 10.0
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


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run-standalone.sh", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--redis-url", help="use this Redis or Valkey: redis://…, rediss://… or unix://…")
    parser.add_argument("--database-url", help="use this database: postgresql://…; it gets the migrations")
    parser.add_argument("--no-demo", action="store_true", help="leave out the replay of office readings")
    parser.add_argument("--for", dest="seconds", type=_seconds, help="end by itself after SECONDS")
    parser.add_argument(
        "--data", type=Path, default=ROOT / ".standalone", help="folder of the data (default .standalone)"
    )
    return parser.parse_args(given)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


class Standalone:
    """One run. Everything started is stopped by `run`, in reverse order, however it ends."""

    def __init__(self, chosen: argparse.Namespace, out: Console) -> None:
        self._chosen = chosen
        self._out = out
        self._home: Path = chosen.data.absolute()
        self._stop = StopFlag(timeout_sec=60)
        self._rate = screen.Rate()

    def run(self) -> int:
        self._home.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._only_one())
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)
            settings = self._settings(stack)
            self._migrate(settings)
            if not self._chosen.no_demo:
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
        if redis_url or database_url:  # refuse a wrong address before anything is started
            config.load(database_url=database_url or "postgresql://", redis_url=redis_url)
        if not redis_url:
            redis_url = self._start(stack, Valkey(self._home / "valkey"))
        if not database_url:
            database_url = self._start(stack, Postgres(self._home / "postgres"))
        addresses = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
        self._environment = {
            **os.environ,
            **addresses,
            "CONSUMER_NAME": os.environ.get("CONSUMER_NAME", "standalone-1"),
        }
        lines = [
            f"export {name}={shlex.quote(self._environment[name])}"
            for name in ("REDIS_URL", "DATABASE_URL")
        ]
        env = self._home / "env"
        env.touch(mode=0o600)
        env.write_text("\n".join(lines) + "\n")
        with redis_client.connect(redis_url, timeout_sec=10) as client:
            client.ping()
        return config.load(database_url=database_url, redis_url=redis_url)

    def _start(self, stack: contextlib.ExitStack, server: Valkey | Postgres) -> str:
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
                rules = rule_files.read(_RULES.read_bytes(), as_json=False)
                rule_store.put(connection, rules)
                self._out.print(
                    f"✓ {len(rules)} rules for the demo made; see them: main.py thresholds list"
                )

    def _work(self, settings: Settings) -> None:
        worker = self._child("worker", "main.py")
        replay = None if self._chosen.no_demo else self._child("replay", "-m", "standalone.replay")
        self._out.print("✓ worker started" + ("" if replay is None else ", replaying an office's readings"))
        self._out.print(
            f"  its log: {self._home / 'worker.log'}\n"
            f"  settings for other commands: . {shlex.quote(str(self._home / 'env'))}",
            soft_wrap=True,
        )
        client = redis_client.connect(settings.redis_address(), timeout_sec=10)
        try:
            self._watch(settings, client, worker)
        finally:
            if replay:
                _end(replay)
                with contextlib.suppress(redis.RedisError):  # it is away: nothing can be drained
                    self._drain(settings, client, worker)
            status = _end(worker)
            mark = "✓" if status in (0, -signal.SIGTERM) else "✗"
            self._out.print(f"{mark} worker stopped, status {status}")
        books = self._books(settings, client)
        alerts, newest = self._look(settings)
        self._out.print(screen.table(books, 0, alerts, newest, ""))
        self._out.print(screen.accounted(books), soft_wrap=True)
        # -SIGTERM: it was stopped before Python had loaded it, so it had read nothing
        if status not in (0, -signal.SIGTERM) or books.missing:
            raise Trouble(f"the worker ended with status {status}; {screen.accounted(books)}")

    def _watch(self, settings: Settings, client: redis.Redis, worker: subprocess.Popen[bytes]) -> None:
        """Show the table until a signal, the end of --for, or the worker's end."""
        ends = time.monotonic() + self._chosen.seconds if self._chosen.seconds else float("inf")
        live = (
            Live(console=self._out, auto_refresh=False, transient=True) if self._out.is_terminal else None
        )
        with live or contextlib.nullcontext():
            while not self._stop.is_set() and time.monotonic() < ends:
                if worker.poll() is not None:
                    raise Trouble(self._how_it_ended(worker))
                if live:
                    try:
                        books = self._books(settings, client)
                        rate = self._rate.see(time.monotonic(), books.settled)
                        state = f"{screen.accounted(books)}   Ctrl-C stops everything"
                        live.update(screen.table(books, rate, *self._look(settings), state), refresh=True)
                    except (redis.RedisError, psycopg.Error) as error:
                        live.update(f"a server is away: {type(error).__name__}", refresh=True)
                self._stop.pause(min(1.0, ends - time.monotonic()))

    def _how_it_ended(self, worker: subprocess.Popen[bytes]) -> str:
        """One sentence, and what its log says that is worse than information."""
        status = worker.returncode
        how = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )
        lines = (self._home / "worker.log").read_text(errors="replace").splitlines()[-20:]
        bad = [line for line in lines if '"level": "info"' not in line]
        return "\n".join([f"the worker {how}; see {self._home / 'worker.log'}", *bad[-5:]])

    def _drain(self, settings: Settings, client: redis.Redis, worker: subprocess.Popen[bytes]) -> None:
        """Let the worker finish what the replay has sent."""
        deadline = time.monotonic() + DRAIN_SEC
        while worker.poll() is None and time.monotonic() < deadline:
            books = self._books(settings, client)
            if not books.unread and not books.pending:
                return
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

    def _child(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )


def _end(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, and after a while SIGKILL. Returns its status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def main(given: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode loses some signs, no more
    chosen = arguments(given)
    try:
        return Standalone(chosen, screen.console()).run()
    except ConfigError as error:
        print(f"run-standalone: {error}", file=sys.stderr)
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
