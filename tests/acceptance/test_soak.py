"""Shown by: three workers under all faults at random, and in the end every entry exactly once."""

from __future__ import annotations

import os
import random

import pytest

from standalone.servers import Postgres, Valkey
from tests.scenarios import StageOf, fault
from tests.soak import LONGEST_SEC, QUIET_SEC, WORKERS, Kind, Soak, schedule
from tests.support import Database

MINUTES = "SLUICE_SOAK_MINUTES"  # `make soak` sets both
SEED = "SLUICE_SOAK_SEED"

pytestmark = pytest.mark.timeout(60 * float(os.environ.get(MINUTES) or 0) + 300)


@fault(
    "all of these at random, three workers",
    how="kills, stops, cuts, deafness, locks, restarts, from a seed",
    promise="accounts for every entry, whatever comes together",
)
def test_whatever_befalls_three_workers_and_their_servers_every_entry_is_accounted_for(
    stage_of: StageOf, own_valkey: Valkey, own_postgres: Postgres, own_database: Database
) -> None:
    minutes = os.environ.get(MINUTES)
    seconds = float(minutes) * 60 if minutes else 10.0
    seed = int(os.environ.get(SEED) or (random.randrange(1_000_000) if minutes else 7))
    again = f"make soak SEED={seed} MINUTES={minutes}" if minutes else f"{SEED}={seed}"
    faults = schedule(seed, seconds)
    print(f"seed {seed}: {len(faults)} faults in {seconds:g} s; to play it again: {again}", flush=True)
    soak = Soak(stage_of(own_database, own_valkey.url), own_valkey, own_postgres)
    try:
        soak.play(faults, seconds)
    except BaseException:
        print(f"failed; to play it again: {again}", flush=True)
        raise
    print(f"seed {seed}: {soak.entries} entries, all accounted for; {soak.checks} looks at the books")


@pytest.mark.parametrize("seconds", [10.0, 120.0])
def test_a_schedule_of_faults_is_a_pure_function_of_its_seed(seconds: float) -> None:
    assert schedule(7, seconds) == schedule(7, seconds)
    assert schedule(7, seconds) != schedule(8, seconds)
    for one in schedule(7, seconds):
        assert 0 <= one.at < one.at + one.seconds <= seconds + LONGEST_SEC
        assert 0 <= one.worker < WORKERS
    assert all(one.at < seconds - QUIET_SEC for one in schedule(7, seconds))


def test_a_soak_of_a_minute_holds_every_kind_of_fault() -> None:
    assert {one.kind for one in schedule(7, 60)} == set(Kind)
