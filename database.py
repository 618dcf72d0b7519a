"""The connection to PostgreSQL: bounded in time, and its errors sorted by whose fault they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from math import inf
from time import monotonic
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import IsolationLevel, sql
from psycopg.conninfo import conninfo_to_dict

T = TypeVar("T")
# SQLSTATE classes, https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROW_CLASSES = {"22", "23", "54", "P0"}
_WORLD_CLASSES = {"08", "25", "26", "28", "3D", "3F", "40", "53", "55", "57", "58", "F0", "HV", "XX"}
_SCHEMA_STATES = {"42P01", "42703", "42501", "42704", "42P10", "42804"}
# Of the row classes, but no row of ours makes them: somebody has added a column that must be filled
# (not_null_violation) or changed a type (invalid_binary_representation). Dead-lettering would take all.
_CHANGED_STATES = {"23502", "22P03"}
# Errors of a first connection have no SQLSTATE, only the server's words.
_REFUSALS = re.compile(
    r'authentication failed|(database|role) ".*" does not exist|no pg_hba\.conf entry'
    r"|no such (database|user)"
    r"|certificate verify failed|does not match host name|(root )?certificate file .* does not exist"
    r"|could not (load|read|open|get) .*certificate|private key|does not support SSL|client certificate"
    r"|unknown ca|certificate unknown|bad certificate|certificate required|unsupported certificate"
)
# How psycopg tells several attempts, one for each address of each host: the host, what it said.
_ATTEMPT = re.compile(r"^- (host: .*?, port: .*?), hostaddr: (.*)$", re.MULTILINE)
_CONNECT_SEC = 5


class Unreachable(psycopg.OperationalError):
    """The database took a connection and then did not answer in time."""


class PoolerBetween(psycopg.OperationalError):
    """What needs a session of its own would get one that a pooler shares out."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up at a deadline of its own.

    A frozen server whose kernel still acknowledges packets blocks COMMIT past every time-out that the
    server or TCP knows, so the time-out is here. `expired` is asked ten times a second while waiting.
    """

    expired: Callable[[], bool] = staticmethod(lambda: False)

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(self._bounded(gen), interval, timeout)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self.expired():
                    raise Unreachable("no answer from the database within DB_TIMEOUT_SEC")
                wanted = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


def connect(url: str, timeout_sec: float, overdue: Callable[[], bool] = lambda: False) -> BoundedConnection:
    """Connect, with a deadline for each transaction (`begin` starts it) and without prepared statements.

    Prepared statements and session settings would not survive a pooler in transaction mode. Transactions
    are READ COMMITTED whatever the database's default: statements after a lock must see what others have
    committed. `url` may name several hosts. `overdue` ends every wait early, at shutdown. Raises
    `psycopg.OperationalError`.
    """
    connection = BoundedConnection.connect(
        url,
        prepare_threshold=None,
        connect_timeout=_seconds_a_host(url),
        application_name="sluice",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    start_clock(connection, timeout_sec, overdue)
    return connection


def connect_directly(
    url: str,
    direct_url: str | None,
    timeout_sec: float = inf,
    overdue: Callable[[], bool] = lambda: False,
) -> BoundedConnection:
    """Connect for what lives as long as its session: LISTEN, session locks and settings.

    `direct_url`: the address past a pooler, None where there is none. Raises: `PoolerBetween` where there
    is one all the same, for what is left in its sessions would strike others.
    """
    connection = connect(direct_url or url, timeout_sec, overdue)
    try:
        if direct_url is None and is_pooled(connection):
            raise PoolerBetween(
                "DATABASE_URL leads to a pooler, and this needs a session of its own; set "
                "DATABASE_DIRECT_URL to the server's own address"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def is_pooled(connection: BoundedConnection) -> bool:
    """Whether a pooler stands between: it gives its clients keys of its own, not its server's process id.

    Raises psycopg errors; leaves no transaction open.
    """
    row = connection.execute("select pg_backend_pid()").fetchone()
    connection.rollback()
    return row is not None and row[0] != connection.info.backend_pid


def _seconds_a_host(url: str) -> int:
    """All of several hosts together may take little longer than one: a stop waits for connecting."""
    found = conninfo_to_dict(url)
    if "connect_timeout" in found:
        return int(found["connect_timeout"] or _CONNECT_SEC)
    hosts = str(found.get("host") or "").count(",") + 1
    return max(2, (_CONNECT_SEC + 1) // hosts) if hosts > 1 else _CONNECT_SEC


def start_clock(
    connection: BoundedConnection, timeout_sec: float, overdue: Callable[[], bool] = lambda: False
) -> None:
    """Give the next transaction its time, counted from now."""
    deadline = monotonic() + timeout_sec
    connection.expired = lambda: monotonic() > deadline or overdue()


_TIMEOUTS: LiteralString = """
    select set_config('statement_timeout', %(statement)s, true),
           set_config('lock_timeout', %(lock)s, true),
           set_config('idle_in_transaction_session_timeout', %(idle)s, true)
"""


def begin(
    connection: BoundedConnection,
    timeout_sec: float,
    overdue: Callable[[], bool] = lambda: False,
    lock_sec: float = 10.0,
) -> None:
    """Open a transaction that neither server nor client lets run longer than `timeout_sec`, and that waits
    no longer than `lock_sec` for a lock.
    """
    start_clock(connection, timeout_sec, overdue)
    milliseconds = max(1, int(timeout_sec * 1000))
    connection.execute(
        _TIMEOUTS,
        {
            "statement": str(milliseconds),
            "lock": str(max(1, min(int(lock_sec * 1000), milliseconds // 2))),
            # Between two statements pass microseconds, unless this process was stopped: then what it has
            # locked is soon free for the others.
            "idle": str(min(5_000, milliseconds)),
        },
    )


def is_row_fault(error: BaseException) -> bool:
    """Whether a row made this error: bad data that this version did not foresee, found by bisecting."""
    if not isinstance(error, psycopg.Error) or error.sqlstate in _CHANGED_STATES:
        return False
    return (error.sqlstate or "")[:2] in _ROW_CLASSES


def is_world(error: BaseException) -> bool:
    """Whether this is the world's fault: a server away, a lock, a disk, a schema being changed."""
    if not isinstance(error, psycopg.Error) or is_row_fault(error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate[:2] in _WORLD_CLASSES or error.sqlstate in _SCHEMA_STATES | _CHANGED_STATES


def is_refused(error: BaseException) -> bool:
    """Whether a first connection failed for good: a wrong password, a database that does not exist, a
    certificate of an unknown authority. Of several hosts, every one must have refused.
    """
    if not isinstance(error, psycopg.Error):
        return False
    if (error.sqlstate or "")[:2] in ("28", "3D"):
        return True
    hosts: dict[str, bool] = {}
    for host, said in _ATTEMPT.findall(str(error)) or [("", str(error))]:
        hosts[host] = hosts.get(host, False) or bool(_REFUSALS.search(said))
    return all(hosts.values())


def refusal(error: BaseException) -> str:
    """For whoever set the address of a server that refuses for good: one line with what it says; of several
    addresses, not what another one says.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    said = next((line for line in lines if _REFUSALS.search(line)), lines[0])
    return "DATABASE_URL: the server refused it: " + f"{type(error).__name__}: {said}"[:300]


def identifiers(names: tuple[str, ...]) -> sql.Composed:
    """Quoted names in a row, separated by commas."""
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def texts(payload: str) -> list[str] | None:
    """The payload of a notification: the texts of a JSON array, or None where it is something else."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) and "\0" not in one for one in found):
        return None
    return found
