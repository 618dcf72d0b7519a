"""Crash points: a worker killed with SIGKILL at every message that it exchanges with its servers.

What a crash costs depends on nothing but what the servers have been told. So a run without a crash lists
the messages of a path, and then each is a point: the worker dies before the message is passed on, or after
it was done and before the worker hears of it; in the middle, where that makes a difference. A new step that
talks to a server has its crash test thereby.

Each point begins with a fresh worker that first settles what the crash before has left, so that the next
one is always the help that the last one gets.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from psycopg.conninfo import conninfo_to_dict

import redis_client
from tests.forge import Forge, Forged
from tests.mixture import GROUP, SHARD, STREAM, Mixture
from tests.scenarios import Stage
from tests.support import Database, everything_settled, is_long, wait_until, worker_environment
from tests.wire import Do, Libpq, Resp, Tap


class When(Enum):
    BEFORE = "before it is passed on"
    HALF = "after half of it"
    DONE = "when it is done and the worker has not heard"


class Point(NamedTuple):
    """The `number`th time, from 1, that a worker says this."""

    label: str
    number: int
    when: When

    def __str__(self) -> str:
        return f"{self.label} #{self.number}, {self.when.value}"


class Theatre:
    """A stage whose workers talk to their servers through taps, and can be killed at a point."""

    def __init__(self, stage: Stage, forge: Forge, folder: Path, redis_address: str) -> None:
        self.stage = stage
        self.mixture = Mixture(stage)
        self.struck = threading.Event()
        self.last: Point | None = None  # where a worker died last
        self.settings: dict[str, object] = {}  # of its workers
        self._forge = forge
        self._folder = folder
        self._lock = threading.Lock()
        self._said: list[str] = []
        self._count = 0
        self._last_passed = False  # the message of the point was, and nothing else will be
        self._point: Point | None = None
        self._doomed: Forged | None = None
        self._workers = 0
        login = conninfo_to_dict(stage.database.url)
        host, port = str(login.get("host") or "127.0.0.1"), int(login.get("port") or 5432)
        database = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self.taps = (Tap(redis_address, Resp), Tap(database, Libpq))
        for stream in (STREAM, SHARD):
            group = (stream, GROUP, "0", "MKSTREAM", "ENTRIESREAD", 0)
            redis_client.execute(stage.client, "XGROUP", "CREATE", *group)
        for tap in self.taps:
            tap.watch = self._watch
            tap.answered = self._answered
            tap.done = self._done
        password = f":{login['password']}" if login.get("password") else ""
        self._database = Database(
            f"postgresql://{login.get('user', 'postgres')}{password}@127.0.0.1:{self.taps[1].port}"
            f"/{login['dbname']}?sslmode=disable&gssencmode=disable",
            stage.database.timescale,
        )

    def worker(self) -> Forged:
        """Start the worker `one`, to be killed sooner or later, in place of the one before."""
        if self._doomed is not None:
            self._doomed.kill()
        self.struck.clear()
        self._workers += 1
        environment = worker_environment(
            self._database, f"redis://127.0.0.1:{self.taps[0].port}", consumer_name="one", **self.settings
        )
        log = self._folder / f"worker-{self._workers}.log"
        self._doomed = self._forge.start(environment, log, naive=self.stage.naive)
        return self._doomed

    def listen(self, said: list[str]) -> None:
        """Write down what workers say from now on."""
        with self._lock:
            self._said = said

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """What workers say meanwhile, by its names."""
        said: list[str] = []
        self.listen(said)
        yield said
        self.listen([])

    @property
    def doomed(self) -> Forged:
        """The worker that runs now."""
        assert self._doomed is not None
        return self._doomed

    def arm(self, point: Point) -> None:
        """Kill the worker at this point, counted from now."""
        with self._lock:
            self.struck.clear()
            self._count = 0
            self._last_passed = False
            self._point = point

    @property
    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._doomed is not None and self._doomed.process.poll() is not None

    def kill(self) -> None:
        """Kill the worker, wherever it is."""
        with self._lock:
            self._point, self._last_passed = None, False
        if self._doomed is not None:
            self._doomed.kill()

    def close(self) -> None:
        self.kill()
        for tap in self.taps:
            tap.close()

    def _watch(self, label: str) -> Do:
        with self._lock:
            self._said.append(label)
            point = self._point
            if point is None or label != point.label or _waits_for_entries(point):
                return Do.PASS
            self._count += 1
            if self._count != point.number:
                return Do.PASS
            if point.when is When.BEFORE:
                self._strike()
                return Do.DROP
            self._point, self._last_passed = None, True
            return Do.HALF if point.when is When.HALF else Do.LAST

    def _answered(self, label: str, something: bool) -> None:
        """A read is done when it brings something: most wait in vain for a while."""
        with self._lock:
            point = self._point
            if point is None or label != point.label or not (something and _waits_for_entries(point)):
                return
            self._count += 1
            if self._count == point.number:
                self._strike()

    def _done(self) -> None:
        with self._lock:
            if self._last_passed:  # else it is too late: the worker was killed otherwise
                self._strike()

    def _strike(self) -> None:
        if self._doomed is not None:
            self._doomed.child.die_now()
        self._point, self._last_passed = None, False
        self.struck.set()


def _waits_for_entries(point: Point) -> bool:
    return point.label.startswith("XREADGROUP") and point.when is When.DONE


Act = Callable[[Theatre, Callable[[], None]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A path through a worker.

    `act` sets it off, given a theatre whose worker is idle, and calls its second argument before anything
    that belongs to it is said. `named`: points that have to be among those that are found. `settings` of
    the worker. `number`: the named points are those of a message that comes the `number`th time.
    `whole`: every message of it is a point, always; else only `make faults` looks for them.
    `upkeep`: the points are what a worker says by the clock, also when there is nothing to do; else those
    are left out, and what it says at its start, unless `start`.
    """

    act: Act
    named: Sequence[tuple[str, When]]
    settings: dict[str, object] = field(default_factory=dict)
    number: int = 1
    whole: bool = False
    start: bool = False
    upkeep: bool = False


def play(theatre: Theatre, route: Route) -> None:
    """Kill a worker at every point of the route, and see that nothing is lost or doubled thereby."""
    naive = [Point("XREADGROUP new", 1, When.DONE), Point("commit: copy sensor_readings", 1, When.DONE)]
    points = [Point(label, route.number, when) for label, when in route.named]
    if theatre.stage.naive:
        points = naive
    elif route.whole or is_long():
        points = _points(theatre, route)
    struck = [point for point in points if _strikes(theatre, route, point)]
    _begin(theatre, route)
    mixture = theatre.mixture
    theatre.stage.accounted(
        mixture.produced, dead=mixture.dead, repeats=mixture.repeats, faults=len(struck)
    )
    missed = [point for point in points if point not in struck]
    print(f"{len(struck)} crashes; never came up again: {', '.join(map(str, missed)) or 'none'}")
    named = {Point(label, route.number, when) for label, when in route.named}
    assert not named & set(missed), missed


def _points(theatre: Theatre, route: Route) -> list[Point]:
    """What a worker says on this route each time, and not by the clock when there is nothing to do; or
    the other way round.
    """
    if route.upkeep:
        _begin(theatre, route)
    with theatre.listening() as idle:
        if not route.upkeep:
            _begin(theatre, route)
        threading.Event().wait(6 if route.upkeep else 1.5)  # what is due once a second comes up
    runs = [] if route.upkeep else [_listed(theatre, route) for _ in range(2)]
    said = runs[0] if runs else idle
    times = Counter(runs[0]) & Counter(runs[1]) if runs else Counter(set(idle))
    named = {label for label, _ in route.named}
    points = [
        Point(label, number, when)
        for label in dict.fromkeys(said)
        if label in named or route.start or (label in idle) is route.upkeep
        for number in range(1, 1 + min(times[label], route.number + 1))
        for when in _times(label)
    ]
    missing = set(route.named) - {(point.label, point.when) for point in points}
    assert not missing, f"not on this route: {missing}; but {list(map(str, points))}"
    return points


def _listed(theatre: Theatre, route: Route) -> list[str]:
    said: list[str] = []
    _begin(theatre, route)
    route.act(theatre, lambda: theatre.listen(said))
    _wait_for_end(theatre)
    threading.Event().wait(0.3)  # what comes behind the settlement
    theatre.kill()
    return said


def _times(label: str) -> tuple[When, ...]:
    """When a crash at this message makes a difference: within a transaction of PostgreSQL it is the same
    after one statement and before the next, if not for those who want to see it (`make faults`).
    """
    if is_long():
        return tuple(When) if label.endswith(": rows") else (When.BEFORE, When.DONE)
    if label.endswith(": rows"):
        return When.BEFORE, When.HALF
    return (
        (When.BEFORE, When.DONE) if label[0].isupper() or label.startswith("commit: ") else (When.BEFORE,)
    )


def _begin(theatre: Theatre, route: Route, after: Point | None = None) -> None:
    """Start a worker, and let it settle what the one before has left."""
    theatre.settings = route.settings
    worker, stage, mixture = theatre.worker(), theatre.stage, theatre.mixture
    worker.wait_for("worker_started")
    if stage.naive:
        return
    wait_until(lambda: everything_settled(stage.client, mixture.produced), 60, f"recovery after {after}")
    assert stage.compare(mixture.wanted) == (0, 0, 0), f"lost, doubled, strange after {after}"
    letters = redis_client.execute(stage.client, "XLEN", "mqtt_stream:failed")
    assert letters == len(mixture.dead), f"dead letters after {after}"


def _strikes(theatre: Theatre, route: Route, point: Point) -> bool:
    """Whether the worker has died at this point. What it did not say by chance it may say another time."""
    for _ in range(1 if theatre.stage.naive else 3):
        _begin(theatre, route, theatre.last)
        route.act(theatre, lambda: theatre.arm(point))
        _wait_for_end(theatre)
        struck = theatre.struck.wait(7 if route.upkeep else 0.5)
        theatre.kill()
        if struck:
            theatre.last = point
            return True
    return False


def _wait_for_end(theatre: Theatre) -> None:
    """Until the worker is dead or gone, or has settled everything."""
    stage = theatre.stage

    def ended() -> bool:
        if theatre.struck.is_set() or theatre.ended:
            return True
        return not stage.naive and everything_settled(stage.client, theatre.mixture.produced)

    with contextlib.suppress(AssertionError) if stage.naive else contextlib.nullcontext():
        wait_until(ended, 2 if stage.naive else 60, "the end of a route")
