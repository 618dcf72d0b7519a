"""Every step of a worker's path has its crash test: the code against a table, the table against the routes.

A step that is added, moved or taken away fails here until the table says where a worker is killed at it: by
the words that `tests/wire.py` has for the message, which one of `tests/crash_routes.py` has to name.
"""

from __future__ import annotations

import ast
import builtins
from functools import cache
from pathlib import Path

import pytest

from tests.crash_routes import (
    COMMIT,
    CONFLICTS,
    MERGE,
    NEW,
    OWN_PENDING,
    ROUTES,
    ROWS,
    STAGE,
    STAGED_COMMIT,
    STAGED_ROWS,
)
from tests.crashing import When

ROOT = Path(__file__).resolve().parent.parent.parent
BEFORE, HALF, DONE = When.BEFORE, When.HALF, When.DONE

# Say nothing to a server, wherever they stand.
LOCAL = frozenset(
    [
        "parse_batch",
        "decide",
        "describe",
        "plan",
        "days_of",
        "islice",
        "repeat",
        "chunks",
        "is_gone",
        "conflict",
        "execute",
        "Entries",
        "Entry",
        "Portions",
        "Rejection",
        "RowsMissing",
        "Settled",
        "_CONFLICTS.format",
        "_fill",
        "_those",
        "_within",
        "database.is_world",
        "partitions.is_missing_partition",
        "psycopg.OperationalError",
        "rows.encode",
        "rows.encode_numbered",
        "sql.Identifier",
        "sql.SQL",
        "time.monotonic",
        "time.time_ns",
        "worker_log.batch",
        "commands.append",
        "deliveries.get",
        "entries.append",
        "trimmed.append",
        "connection.cursor",
        "line.drop",
        "self._line.drop",
        "self._ahead.close",
        "self._client.close",
        "self._client.pipeline",
        "self._adapt",
        "self._clock",
        "self._count",
        "self._log_trimmed",
        "self._next_due",
        "self._note",
        "self._alerting.committed",
        "self._housekeeping.forget_partitions",
        "self._on_due",
        "self._own.items",
        "self._patience.call",
        "self._refused",
        "self._registry.note",
        "self._session.call",
        "self._settler.count",
        "self.count",
        "self._stats.as_dict",
        "self._stop.is_set",
        "self._stop.pause",
        "self._streams.command",
        "self._suspects.pop",
        "self._sweep.append",
        "self._sweep.extend",
        "self._sweep.popleft",
        "self._telling.committed",
        "self._telling.to_blame",
        "self._unasked.extend",
        "self._unasked.popleft",
        "self._wall_ms",
        "self._without_suspects",
        "self.publisher.raise_failure",
        "laps.done",
        "self._flood.over",
        "self._goes_on",
        "self._keys.ledger_of",
        "self._note_ages",
        "self._reader.recall",
        "self._settler.note_batch",
        "self._settler.note_letters",
        "self._stats.commit_sec.observe",
        "structlog.get_logger",
        "structlog.get_logger().error",
        "structlog.get_logger().info",
        "structlog.get_logger().warning",
    ]
)

BELOW = "this function's own row"
UPKEEP = ("BEAT", DONE)  # one of what is said by the clock; `make faults` goes through all of it
START = ("LEASE", DONE)  # of what is said at the start; `make faults` goes through all of it
NO_PATH = "only after an error, or for other entries than readings; then nothing is acknowledged either"

# Step by step, in the order of the source: where a worker is killed at it.
STEPS: dict[str, list[tuple[str, object]]] = {
    "main.DatabaseWriterService.run": [
        ("self._open", START),
        ("self._next", BELOW),
        ("self._reader.read_ahead", BELOW),
        ("self._writer.write", BELOW),
        ("self._flood.sift", NO_PATH),  # only in a flood of dead letters does it ask anybody
        ("self._reader.settle", BELOW),
        ("self._writer.upkeep", UPKEEP),
        ("self._reader.upkeep", UPKEEP),
        ("self._reader.finish", BELOW),
        ("self._close", BELOW),
    ],
    "main.DatabaseWriterService._next": [
        ("self._reader.finish", BELOW),
        ("self._reader.recover", BELOW),
        ("self._reader.read", BELOW),
    ],
    "main.DatabaseWriterService._close": [
        ("self.publisher.stop", NO_PATH),
        ("self._writer.close", ("HDEL", BEFORE)),
        ("self._reader.close", BELOW),
    ],
    "redis_reader.RedisReader.recover": [
        ("self._ahead.confirm", BELOW),
        ("self._recovery.next", BELOW),
    ],
    "redis_reader.RedisReader.read": [("self._read", BELOW)],
    "redis_reader.RedisReader._read": [
        ("self._streams.discover", UPKEEP),
        ("self._rounds.take", BELOW),
        ("self._rounds.read", (NEW, DONE)),
    ],
    "redis_reader.RedisReader.read_ahead": [("self._rounds.ask_ahead", (NEW, BEFORE))],
    "redis_reader.RedisReader.settle": [("self._ahead.settle", BELOW), ("self._recovery.excuse", BELOW)],
    "redis_reader.RedisReader.finish": [("self._ahead.confirm", BELOW)],
    "redis_reader.RedisReader.close": [
        ("self._sharing.leave", ("HDEL", DONE)),
        ("self._lease.release", ("RELEASE", DONE)),
    ],
    "ahead.Ahead.read": [("self._line.send", (NEW, BEFORE))],
    "ahead.Ahead.take": [("self._reply", BELOW)],
    "ahead.Ahead._reply": [("self._line.take", (NEW, DONE)), ("self._streams.mend", NO_PATH)],
    "ahead.Ahead.settle": [
        ("self.confirm", BELOW),
        ("self._settler.settle", BELOW),
        ("self._settler.send", BELOW),
    ],
    "ahead.Ahead.confirm": [
        ("self._line.take", ("SETTLE", DONE)),
        ("self._settler.settle", NO_PATH),
        ("self._settler.settle", NO_PATH),
    ],
    "settlement.Settler.settle": [("self._settle_wide", BELOW), ("self._script", ("SETTLE", BEFORE))],
    "settlement.Settler.send": [("self._settle_wide", BELOW), ("line.send", ("SETTLE", BEFORE))],
    "settlement.Settler._settle_wide": [
        ("self._wide.load", ("SETTLE_WIDE", BEFORE)),
        ("pipe.execute", ("SETTLE_WIDE", BEFORE)),
    ],
    "recovery.Recovery.next": [
        ("self.excuse", BELOW),
        ("self._read_own", BELOW),
        ("self._plan_sweep", UPKEEP),
        ("self._claim_next", BELOW),
        ("self._next_suspect", BELOW),
    ],
    "recovery.Recovery.excuse": [("execute(self._client)", ("HDEL", BEFORE))],
    "recovery.Recovery._read_own": [
        ("self._streams.read", (OWN_PENDING, DONE)),
        ("self._with_deliveries", BELOW),
    ],
    "recovery.Recovery._claim_next": [
        ("self._claim", ("CLAIM", DONE)),
        ("self._streams.heal", NO_PATH),
        ("self._with_deliveries", BELOW),
    ],
    "recovery.Recovery._with_deliveries": [
        ("pipe.execute", ("XPENDING", DONE)),
        ("self._settler.settle", NO_PATH),
    ],
    "recovery.Recovery._next_suspect": [
        ("self._try_alone", ("TRY_ALONE", DONE)),
        ("self._settler.settle", ("SETTLE", DONE)),
        ("execute(self._client)", ("HDEL", DONE)),
    ],
    "db_writer.DatabaseWriter.write": [
        ("self._apply_events", NO_PATH),
        ("self._learn", (NEW, DONE)),  # reads only
        ("portions.run", BELOW),
        ("self._housekeeping.write_registry", ("commit: insert into series as s", DONE)),
    ],
    "db_writer.DatabaseWriter.commit": [("self._attempt", BELOW)],
    "db_writer.DatabaseWriter._attempt": [
        ("stuck.end_copies", NO_PATH),
        ("self._housekeeping.ensure_partitions", START),
        ("self._session.begin", (ROWS, BEFORE)),
        ("merge_rows", BELOW),
        ("copy_rows", BELOW),
        ("self._late.note", (COMMIT, BEFORE)),
        ("self._telling.tell", (COMMIT, BEFORE)),
        ("self._judge", (COMMIT, BEFORE)),
        ("connection.commit", (COMMIT, DONE)),
        ("connection.rollback", NO_PATH),
    ],
    "staging.copy_rows": [("cursor.copy", (ROWS, BEFORE)), ("copy.write", (ROWS, HALF))],
    "staging.merge_rows": [
        ("cursor.execute", (STAGE, BEFORE)),
        ("cursor.copy", (STAGED_ROWS, BEFORE)),
        ("copy.write", (STAGED_ROWS, HALF)),
        ("cursor.execute", (MERGE, BEFORE)),
        ("cursor.execute", (CONFLICTS, BEFORE)),
    ],
}


@cache
def _functions(module: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for room in tree.body:
        if isinstance(room, ast.ClassDef):
            found |= {
                f"{room.name}.{node.name}": node for node in room.body if isinstance(node, ast.FunctionDef)
            }
    return found


def steps(name: str) -> list[str]:
    """What a function calls, in the order of the source, but for what says nothing to a server."""
    module, _, function = name.partition(".")
    calls = [node for node in ast.walk(_functions(module)[function]) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.end_lineno, call.end_col_offset))
    return [
        name
        for name in map(_name, calls)
        if name not in LOCAL
        and not name.endswith(".fetchall")
        and not hasattr(builtins, name.partition(".")[0])
    ]


def _name(call: ast.Call) -> str:
    """What is called; of `patience.call` and `session.call` what they are given to call, by name."""
    name = ast.unparse(call.func)
    if name.endswith(".call") and isinstance(call.args[0], ast.Attribute):
        return ast.unparse(call.args[0])
    if name == "execute" and ast.unparse(call.args[0]) == "self._client":
        return "execute(self._client)"
    return name


@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_the_path_is_in_the_table_of_crash_points(name: str) -> None:
    assert steps(name) == [step for step, _ in STEPS[name]], (
        "say in STEPS where a worker is killed at the new step, and name the point in tests/crash_routes.py"
    )


def test_every_point_of_the_table_is_one_at_which_a_worker_is_killed() -> None:
    killed = {point for route in ROUTES for point in route.named}
    points = {where for rows in STEPS.values() for _, where in rows if isinstance(where, tuple)}
    assert points - killed == set()


def test_every_point_that_the_promise_speaks_of_is_named() -> None:
    killed = {point for route in ROUTES for point in route.named}
    assert killed >= {
        (NEW, DONE),  # after the read
        (ROWS, HALF),  # in mid-COPY
        (COMMIT, BEFORE),
        (COMMIT, DONE),  # COMMIT was done and its reply not read
        ("SETTLE", BEFORE),  # after that reply, before the acknowledgement
        ("SETTLE_WIDE", BEFORE),  # between a dead letter and its acknowledgement
        ("CLAIM", DONE),  # in mid-claim
        ("RELEASE", BEFORE),  # during shutdown
        (STAGED_ROWS, HALF),
        (STAGED_COMMIT, DONE),
    }
