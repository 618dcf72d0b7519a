"""The worker killed at every message that it exchanges with its servers, one after the other.

What the routes say is found by a run without a crash; what they have to come by at least is named here, and
`tests/unit/test_crash_table.py` holds the steps of the code to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from standalone.servers import Valkey
from tests.crash_routes import BACKLOG, BATCH, CLAIM, OWN, SHUTDOWN, SUSPECTS, UPKEEP
from tests.crashing import Theatre, play
from tests.forge import Forge
from tests.scenarios import StageOf, fault
from tests.support import Database


@pytest.fixture
def theatre(
    stage_of: StageOf, database: Database, valkey: Valkey, redis_url: str, forge: Forge, tmp_path: Path
) -> Iterator[Theatre]:
    found = Theatre(stage_of(database, redis_url), forge, tmp_path, str(valkey.socket))
    yield found
    found.close()


@fault("worker killed at every step of a batch", how="SIGKILL before and after each message to a server")
def test_a_crash_at_any_message_of_a_batch_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, BATCH)


@fault("worker killed at every step under a backlog", how="as above, with the next batch read ahead")
def test_a_crash_at_any_message_under_a_backlog_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, BACKLOG)


@fault("worker killed at every step of a claim", how="as above, with entries that another had read")
def test_a_crash_at_any_message_of_a_claim_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, CLAIM)


@fault("worker killed again while it recovers", how="as above, of a worker that starts after a crash")
def test_a_crash_at_any_message_of_a_recovery_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, OWN)


@fault("worker killed while entries are tried alone", how="as above, after too many deliveries")
def test_a_crash_at_any_message_of_a_lone_try_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, SUSPECTS)


@fault("worker killed while it shuts down", how="SIGTERM with a batch in hand, then SIGKILL as above")
def test_a_crash_at_any_message_of_a_shutdown_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, SHUTDOWN)


@fault("worker killed at its upkeep", how="as above, at what a worker says by the clock")
@pytest.mark.timeout(1200)  # at length: what comes by the clock is waited for, point by point
def test_a_crash_at_upkeep_loses_and_doubles_nothing(theatre: Theatre) -> None:
    play(theatre, UPKEEP)
