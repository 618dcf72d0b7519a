"""Shown by: a Redis that loses, refuses, hangs up and forgets, and what becomes of the entries."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import redis

import redis_client
import redis_scripts
from metrics import BridgeStats
from ops import verify
from redis_client import execute
from retry import StopFlag
from scripting import Script
from standalone.servers import Valkey
from stream_writer import StreamWriter
from tests.faults import Proxy, proxy_to
from tests.integration.readers import deliver
from tests.scenarios import Stage, StageOf, fault
from tests.source import BEGIN
from tests.support import Database, books, settings_for, wait_until

STREAMS = tuple(f"mqtt_stream:dev-{n}:t" for n in range(5))
WAITS = "waits, says so, and goes on by itself"
GOES_ON = "goes on by itself, and doubles nothing"


def produce(client: redis.Redis, numbers: Iterable[int], value: str = "") -> None:
    """Add numbered readings, always under the same entry ID. `value`: instead of the number."""
    with client.pipeline(transaction=False) as pipe:
        for n in numbers:
            fields = ("value", value or str(n), "timestamp", str(BEGIN + n))
            execute(pipe, "XADD", STREAMS[n % len(STREAMS)], f"{n + 1}-1", *fields)
        pipe.execute()


def numbers_in(client: redis.Redis) -> set[int]:
    """The numbers of the readings that Redis has."""
    streams = client.scan_iter("mqtt_stream:dev-*", 1000, _type="stream")
    return {int(fields[1]) for key in streams for _, fields in execute(client, "XRANGE", key, "-", "+")}


def settled(stage: Stage, produced: int) -> Callable[[], bool]:
    """Whether all that was produced is stored, and acknowledged where it is Sluice that stores."""

    def holds() -> bool:
        done = stage.naive or books(stage.client).settled >= produced
        return done and stage.database.count() >= produced

    return holds


@pytest.fixture
def make_valkey(server_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Makes servers over one data folder; the one before has to have ended."""
    made: list[Valkey] = []

    def make(*options: str) -> Valkey:
        made.append(Valkey(server_folder / f"redis-{tmp_path.name[-20:]}", options))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    with proxy_to(str(valkey.socket)) as found:
        yield found


def by_way_of(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"


def every(nth: int, wanted: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """A watch that says yes to each `nth` piece that is wanted."""
    seen = itertools.count(1)
    return lambda piece: wanted(piece) and next(seen) % nth == 0


def passes_all(_piece: bytes) -> bool:
    return False


# What Redis loses


@fault(
    "Redis loses its last second",
    how="appendfsync everysec; killed, and its append-only file put back to what it was a while before",
)
def test_what_redis_lost_with_its_last_second_is_all_that_is_lost(
    stage_of: StageOf, database: Database, make_valkey: Callable[..., Valkey], tmp_path: Path
) -> None:
    server = make_valkey("--appendfsync", "everysec")
    stage = stage_of(database, server.url)
    worker = stage.worker("one")
    with stage.source() as source:
        wait_until(lambda: database.count() > 500, 30, "some progress")
        worker.freeze()
        began = source.acknowledged
        wait_until(lambda: source.acknowledged > began + 500, 30, "entries that nobody has read")
        shutil.copytree(server.data / "appendonlydir", tmp_path / "kept")
        kept = source.acknowledged
        worker.thaw()
        wait_until(lambda: database.count() > kept + 200, 30, "progress beyond what is kept")
    server.kill()
    shutil.rmtree(server.data / "appendonlydir")
    shutil.copytree(tmp_path / "kept", server.data / "appendonlydir")
    server.start()
    stage.lost_elsewhere = set(range(source.acknowledged)) - numbers_in(stage.client)
    assert stage.lost_elsewhere
    stage.accounted(source.acknowledged, ledger=False)
    assert books(stage.client).missing == 0


@fault("Redis comes back from an old snapshot", how="killed after everything was stored; SAVE was before")
def test_everything_delivered_again_from_an_old_snapshot_makes_no_second_row(
    stage_of: StageOf, database: Database, make_valkey: Callable[..., Valkey]
) -> None:
    server = make_valkey("--appendonly", "no")
    stage = stage_of(database, server.url)
    produce(stage.client, range(3000))
    stage.client.save()
    stage.worker("one")
    wait_until(settled(stage, 3000), 30, "all of it stored")
    server.kill()
    server.start()
    stage.accounted(3000)
    total = books(stage.client)
    assert (total.stored, total.duplicate) == (0, 3000), "delivered for the first time, and there already"


@fault("FLUSHALL under load", how="FLUSHALL by another client", promise=GOES_ON)
def test_a_flushed_redis_loses_what_was_not_read_and_work_goes_on(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    stage.worker("one")
    with stage.source() as source:
        wait_until(lambda: database.count() > 500, 30, "some progress")
        stage.client.flushall()
        after = source.acknowledged + 1
        wait_until(lambda: source.acknowledged > after + 500, 30)
    stage.lost_elsewhere = set(range(after))
    stage.accounted(source.acknowledged, ledger=False)
    assert books(stage.client).missing == 0


@fault("group destroyed under load", how="XGROUP DESTROY on every stream")
def test_a_destroyed_group_delivers_everything_again_and_nothing_is_stored_twice(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    stage.worker("one")
    with stage.source() as source:
        wait_until(lambda: database.count() > 500, 30, "some progress")
        for stream in stage.client.scan_iter("mqtt_stream:dev-*", 1000):
            stage.client.xgroup_destroy(stream, "db_writer")
        at = source.acknowledged
        wait_until(lambda: source.acknowledged > at + 500, 30)
    stage.accounted(source.acknowledged)


@fault("streams deleted and made again", how="DEL; the producer sends all of it again, and more")
def test_a_stream_made_again_with_the_same_entries_stores_none_twice(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    produce(stage.client, range(1000))
    stage.worker("one")
    wait_until(settled(stage, 1000), 30, "all of it stored")
    stage.client.delete(*STREAMS)
    produce(stage.client, range(1500))
    stage.accounted(1500)


@fault(
    "stream trimmed under pending and unread entries",
    how="XTRIM MINID by another client",
    promise="counted, logged, and told by verify as trimmed",
)
def test_entries_trimmed_under_the_group_are_told_not_hidden(
    stage_of: StageOf, database: Database, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = stage_of(database, redis_url)
    produce(stage.client, range(0, 1500, 5))  # 300, all to the first stream
    deliver(stage.client, "dead", STREAMS[:1], 100)
    execute(stage.client, "XTRIM", STREAMS[0], "MINID", f"{150 * 5 + 1}-1")
    code, out = verified(stage, capsys)
    assert (code, "0 pending and 50 unread entries were deleted" in out) == (1, True), out
    worker = stage.worker("one", claim_min_idle_sec=0.1)
    worker.wait_for("pending_entries_trimmed")
    wait_until(lambda: database.count() == 150, 30, "the rest stored")
    wait_until(lambda: books(stage.client).pending == 0)
    total = books(stage.client)
    assert (total.read, total.stored, total.trimmed) == (250, 150, 100)
    assert (total.trimmed_unread, total.passed, total.missing) == (50, 50, 0)
    code, out = verified(stage, capsys)
    assert (code, "100 pending and 50 unread entries were deleted" in out) == (1, True), out
    assert "50 of the unread ones the group has passed" in out, "Redis counts those as read"
    assert "ok    ledger     all 250 entries read are accounted for" in out
    worker.wait_for("unread_entries_trimmed")
    line = next(line for line in worker.text().splitlines() if "unread_entries_trimmed" in line)
    assert json.loads(line)["entries"] == 50


def verified(stage: Stage, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = verify.main(settings_for(stage.database, stage.redis_url), as_json=False)
    return code, capsys.readouterr().out


# What Redis refuses


@fault(
    "Redis out of memory",
    how="maxmemory 1, with a backlog and 50 bad readings in it",
    promise="acknowledgements and dead letters get through",
)
def test_a_full_redis_is_drained_dead_letters_included(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    produce(stage.client, range(1000))
    produce(stage.client, range(1000, 1050), value="NaN")
    stage.client.config_set("maxmemory", 1)
    try:
        stage.worker("one")
        wait_until(lambda: books(stage.client).settled == 1050, 30, "the backlog settled")
        with pytest.raises(redis.ResponseError, match="used memory > 'maxmemory'"):
            produce(stage.client, [1050])
    finally:
        stage.client.config_set("maxmemory", 0)
    produce(stage.client, range(1050, 1100))
    stage.accounted(1100, dead=range(1000, 1050))


@contextlib.contextmanager
def replica(client: redis.Redis) -> Iterator[None]:
    """As a master that was demoted, for whoever is still connected to it."""
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextlib.contextmanager
def busy_script(client: redis.Redis) -> Iterator[None]:
    client.config_set("busy-reply-threshold", 50)

    def loop() -> None:
        with contextlib.suppress(redis.ResponseError):  # it is killed
            client.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive():
            with contextlib.suppress(redis.ResponseError):  # not running yet, or no longer
                client.script_kill()
            thread.join(0.05)
        client.config_set("busy-reply-threshold", 5000)


@fault("READONLY after a failover", how="REPLICAOF a server that is not there, then back", promise=WAITS)
def test_a_master_that_became_a_replica_is_waited_for(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    waits_out(stage_of(database, redis_url), replica, "read only replica")


@fault(
    "BUSY script", how="a Lua script of another client that does not end, until SCRIPT KILL", promise=WAITS
)
def test_a_script_of_others_that_does_not_end_is_waited_for(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    waits_out(stage_of(database, redis_url), busy_script, "BUSY")


def waits_out(
    stage: Stage, trouble: Callable[[redis.Redis], contextlib.AbstractContextManager[None]], said: str
) -> None:
    worker = stage.worker("one")
    with stage.source() as source:
        wait_until(lambda: database_has(stage, 300), 30, "some progress")
        with trouble(stage.client):
            worker.wait_for("outage_began")
        at = source.acknowledged
        wait_until(lambda: source.acknowledged > at + 300, 30)
    stage.accounted(source.acknowledged)
    began = next(line for line in worker.text().splitlines() if "outage_began" in line)
    assert said in began
    assert worker.text().count("outage_ended") == worker.text().count("outage_began")


def database_has(stage: Stage, rows: int) -> bool:
    return stage.database.count() > rows


@fault(
    "LOADING", how="killed and restarted; loading its file takes it seconds (key-load-delay)", promise=WAITS
)
def test_a_redis_that_loads_its_file_is_waited_for(
    stage_of: StageOf, database: Database, make_valkey: Callable[..., Valkey]
) -> None:
    server = make_valkey("--appendfsync", "always")
    stage = stage_of(database, server.url)
    produce(stage.client, range(4000))
    worker = stage.worker("one")
    wait_until(settled(stage, 4000), 30, "all of it stored")
    server.kill()
    make_valkey("--appendfsync", "always", "--key-load-delay", "400")
    produce(stage.client, range(4000, 4100))
    stage.accounted(4100)
    assert "outage_ended" in worker.text()
    with contextlib.suppress(StopIteration):  # a slow machine may have waited for it without asking
        began = next(line for line in worker.text().splitlines() if "BusyLoading" in line)
        assert "outage" in began


@fault(
    "keys of another type match the pattern",
    how="SET and HSET before the start; a stream deleted and SET under load",
    promise="leaves them alone, and goes on with the rest",
)
def test_keys_that_are_no_streams_are_left_alone(
    stage_of: StageOf, database: Database, redis_url: str
) -> None:
    stage = stage_of(database, redis_url)
    stage.client.set("mqtt_stream:dev-98:t", "x")
    stage.client.hset("mqtt_stream:dev-99:t", "x", "y")
    produce(stage.client, range(500))
    worker = stage.worker("one")
    wait_until(settled(stage, 500), 30, "all of it stored")
    stage.client.delete(STREAMS[0])
    stage.client.set(STREAMS[0], "x")
    produce(stage.client, (n for n in range(500, 1000) if n % 5))
    wait_until(lambda: database.count() == 900, 30, "the others stored")
    stage.client.delete(STREAMS[0])
    produce(stage.client, range(0, 1000, 5))
    stage.accounted(1000, ledger=False)
    assert books(stage.client).missing == 0
    assert worker.terminate() == 0


# What is lost on the way


@fault("replies of XREADGROUP lost", how="the proxy cuts at every tenth reply that brings entries")
def test_lost_replies_of_reads_strand_nothing(
    stage_of: StageOf, database: Database, redis_url: str, proxy: Proxy
) -> None:
    stage = stage_of(database, redis_url)
    proxy.cut_reply_when = every(10, lambda piece: b"\r\nvalue\r\n" in piece)
    stage.worker("one", redis_url=by_way_of(proxy))
    with stage.source() as source:
        wait_until(lambda: proxy.cuts >= 5, 60, "five cuts")
        proxy.cut_reply_when = passes_all
    stage.accounted(source.acknowledged)


@fault(
    "replies of acknowledgements lost",
    how="the proxy cuts at every tenth reply to the script that settles",
    promise="each entry is counted once",
)
def test_lost_replies_of_acknowledgements_count_nothing_twice(
    stage_of: StageOf, database: Database, redis_url: str, proxy: Proxy
) -> None:
    stage = stage_of(database, redis_url)
    script = Script(stage.client, redis_scripts.SETTLE).sha.encode()
    asked = every(10, lambda piece: script in piece)
    due = threading.Event()

    def look(piece: bytes) -> bool:
        if asked(piece):
            due.set()
        return False

    def answer(_piece: bytes) -> bool:
        if not due.is_set():
            return False
        due.clear()
        return True

    proxy.cut_when, proxy.cut_reply_when = look, answer
    stage.worker("one", redis_url=by_way_of(proxy))
    with stage.source() as source:
        wait_until(lambda: proxy.cuts >= 5, 60, "five cuts")
        proxy.cut_when = proxy.cut_reply_when = passes_all
    stage.accounted(source.acknowledged)


@fault("replies to a bridge's XADD lost", how="the proxy cuts at every third reply that has entry IDs")
def test_lost_replies_to_a_bridge_make_entries_that_are_known_again(
    stage_of: StageOf, database: Database, redis_url: str, proxy: Proxy
) -> None:
    stage = stage_of(database, redis_url)
    proxy.cut_reply_when = every(3, lambda piece: piece.startswith(b"$"))
    client = redis_client.connect(by_way_of(proxy), timeout_sec=10)
    writer = StreamWriter(client, StopFlag(30), BridgeStats())
    for first in range(0, 1000, 100):
        writer.add([bridged(n) for n in range(first, first + 100)])
    client.close()
    assert proxy.cuts >= 3
    stage.worker("one")
    stage.accounted(1000, ledger=False)
    total = books(stage.client)
    assert (total.missing, total.duplicate >= 100) == (0, True), total


def bridged(n: int) -> tuple[bytes, list[bytes]]:
    """An entry as a bridge adds it: with the identity of its message."""
    fields = ("value", str(n), "timestamp", str(BEGIN + n), "mid", str(uuid.UUID(int=n)))
    return STREAMS[n % len(STREAMS)].encode(), [field.encode() for field in fields]


@fault(
    "connection to Redis cut, then deaf",
    how="the proxy cuts all connections, five times, and then passes nothing until given up",
    promise=WAITS,
)
def test_a_connection_that_is_cut_or_deaf_is_given_up_and_made_again(
    stage_of: StageOf, database: Database, redis_url: str, proxy: Proxy
) -> None:
    stage = stage_of(database, redis_url)
    worker = stage.worker("one", redis_url=by_way_of(proxy))
    with stage.source() as source:
        for _ in range(5):
            before = database.count()
            wait_until(lambda: database.count() > before + 50, 30, "some progress")  # noqa: B023
            proxy.cut()
        proxy.deaf = True
        wait_until(lambda: "TimeoutError" in worker.text(), 40, "giving up")
        proxy.deaf = False
    stage.accounted(source.acknowledged)
