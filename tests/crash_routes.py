"""The paths on which a worker is killed at every message, and the points that have a name."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from tests.crashing import Act, Route, Theatre, When
from tests.support import books, wait_until

NEW, OWN_PENDING = "XREADGROUP new", "XREADGROUP own"
ROWS, COMMIT = "copy sensor_readings: rows", "commit: copy sensor_readings"
STAGE, STAGED_ROWS = "create temp table sluice_staging n", "copy sluice_staging: rows"
STAGED_COMMIT = f"commit: {STAGE}"
MERGE, CONFLICTS = "with staged as materialized select", "select count coalesce array_agg s"
Ready = Callable[[], None]


def _batch(theatre: Theatre, ready: Ready) -> None:
    ready()
    theatre.mixture.add(12)


def _backlog(theatre: Theatre, ready: Ready) -> None:
    ready()
    theatre.mixture.add(80)


def _stale(theatre: Theatre, ready: Ready) -> None:
    """Entries that a consumer has read who is gone."""
    ready()
    theatre.mixture.add(12, read_by="gone")


def _left_over(entries: int, *, tried: bool = False) -> Act:
    def act(theatre: Theatre, ready: Ready) -> None:
        """The next process of a worker that died with a batch in hand."""
        theatre.kill()
        theatre.mixture.add(entries, read_by="one", tried=tried)
        ready()
        theatre.worker()

    return act


def _shutdown(theatre: Theatre, ready: Ready) -> None:
    """SIGTERM while a batch is being written and the next one is read, under a backlog."""
    stage = theatre.stage
    with psycopg.connect(stage.database.url) as blocker:
        blocker.execute("lock table sensor_readings in access exclusive mode")
        before = books(stage.client).pending
        theatre.mixture.add(80)
        wait_until(lambda: books(stage.client).pending > before, 30, "a batch in hand")
        theatre.doomed.process.terminate()
        ready()


SETTLED = (("SETTLE", When.BEFORE), ("SETTLE", When.DONE))
BATCH = Route(
    act=_batch,
    whole=True,
    named=(
        (NEW, When.DONE),  # after the read
        (ROWS, When.BEFORE),
        (ROWS, When.HALF),  # in mid-COPY
        (COMMIT, When.BEFORE),
        (COMMIT, When.DONE),  # sent, and its reply not read
        (STAGE, When.BEFORE),
        (STAGED_ROWS, When.BEFORE),
        (STAGED_ROWS, When.HALF),
        (MERGE, When.BEFORE),
        (CONFLICTS, When.BEFORE),
        (STAGED_COMMIT, When.DONE),
        ("commit: insert into series as s", When.DONE),
        *SETTLED,  # after the reply of COMMIT and before the acknowledgement
        ("XADD", When.DONE),
        ("SETTLE_WIDE", When.BEFORE),  # between a dead letter and its acknowledgement
        ("EXEC", When.DONE),
    ),
)
BACKLOG = Route(
    act=_backlog,
    settings={"batch_size": 20},
    number=2,  # of the first batch nothing was read ahead
    named=((NEW, When.BEFORE), (NEW, When.DONE), (COMMIT, When.DONE), *SETTLED),
)
CLAIM = Route(
    act=_stale,
    settings={"claim_min_idle_sec": 0.1},
    named=(
        ("CLAIM", When.BEFORE),
        ("CLAIM", When.DONE),  # in mid-claim: claimed, and the worker does not know
        ("XPENDING", When.DONE),
        (STAGED_COMMIT, When.DONE),
        ("SETTLE", When.DONE),
    ),
)
OWN = Route(
    act=_left_over(12),
    start=True,
    named=(
        ("LEASE", When.DONE),
        (OWN_PENDING, When.DONE),
        ("XPENDING", When.DONE),
        (STAGED_COMMIT, When.DONE),
        *SETTLED,
    ),
)
SUSPECTS = Route(
    act=_left_over(6, tried=True),
    settings={"max_deliveries": 1},
    named=(("TRY_ALONE", When.DONE), ("HDEL", When.BEFORE), ("HDEL", When.DONE), *SETTLED),
)
SHUTDOWN = Route(
    act=_shutdown,
    settings={"batch_size": 20},
    named=(
        (COMMIT, When.DONE),
        *SETTLED,
        ("HDEL", When.DONE),
        ("RELEASE", When.BEFORE),
        ("RELEASE", When.DONE),
    ),
)
UPKEEP = Route(
    act=_batch,
    named=(("BEAT", When.DONE), ("commit: with page as select device_id", When.DONE)),
    upkeep=True,
)
ROUTES = (BATCH, BACKLOG, CLAIM, OWN, SUSPECTS, SHUTDOWN, UPKEEP)
