"""One process for a consumer name: waiting for it, taking it over, and losing it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from lease import TTL_SEC, Lease, NameTaken
from tests.integration.readers import Clock, Workshop, deliver, flat, outcome, recover_all
from tests.support import ROOT, add, wait_until

KEY = "sluice:db_writer:worker:one"
HOLDER = """
import sys
import redis_client
from lease import Lease
client = redis_client.connect(sys.argv[1], timeout_sec=30)
lease = Lease(client, sys.argv[2], "the other process")
lease.renew()
print("held", flush=True)
for order in sys.stdin:
    lease.release() if order == "release\\n" else lease.renew()
    print("done", flush=True)
"""


class Holder:
    """A process of its own that holds the lease, and does as it is told."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, url, KEY],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "held\n"

    def tell(self, order: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        assert self._answer() == "done\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.fixture
def holder(redis_url: str) -> Iterator[Holder]:
    made = Holder(redis_url)
    yield made
    made.close()


class Waits:
    """Stands in for the pause between two attempts: counts, and lets something happen meanwhile."""

    def __init__(self, meanwhile: dict[int, Callable[[], object]]) -> None:
        self.count = 0
        self._meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        self.count += 1
        assert self.count < 50, "it waits for ever"
        self._meanwhile.get(self.count, lambda: None)()


def never() -> bool:
    return False


def held_by(client: redis.Redis) -> dict[str, object]:
    value = client.get(KEY)
    assert isinstance(value, bytes)
    found = json.loads(value)
    assert isinstance(found, dict)
    return found


def test_a_second_process_waits_saying_so_once_and_takes_over_when_the_first_lets_go(
    client: redis.Redis, holder: Holder
) -> None:
    mine = Lease(client, KEY, "mine")
    waits = Waits({4: lambda: holder.tell("release")})
    with capture_logs() as logs:
        assert mine.acquire(waits, never)
    assert waits.count == 4
    assert [log["event"] for log in logs] == ["consumer_name_in_use", "consumer_name_taken_over"]
    assert logs[0]["holder"] == f"process {holder.process.pid} on {socket.gethostname()}"
    assert held_by(client)["pid"] == os.getpid()


def test_a_live_holder_in_another_process_is_not_evicted(client: redis.Redis, holder: Holder) -> None:
    with pytest.raises(NameTaken, match=f"process {holder.process.pid} on "):
        Lease(client, KEY, "mine").renew()
    assert held_by(client)["pid"] == holder.process.pid
    holder.tell("renew")
    assert held_by(client)["token"] == "the other process"


def test_the_name_of_a_killed_process_of_this_host_is_taken_over_at_once(
    client: redis.Redis, holder: Holder
) -> None:
    holder.process.kill()
    holder.process.wait()
    assert client.pttl(KEY) > 5_000, "its lease still runs"
    waits = Waits({})
    assert Lease(client, KEY, "mine").acquire(waits, never)
    assert waits.count == 0
    assert held_by(client)["token"] == "mine"


def test_a_zombie_counts_as_gone(client: redis.Redis, holder: Holder) -> None:
    """Killed, but its parent has not asked for its exit status yet."""
    holder.process.kill()
    stat = Path(f"/proc/{holder.process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", 10)
    Lease(client, KEY, "mine").renew()
    assert held_by(client)["token"] == "mine"


def test_a_frozen_process_keeps_its_name_while_its_lease_runs(client: redis.Redis, holder: Holder) -> None:
    holder.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(NameTaken):
            Lease(client, KEY, "mine").renew()
    finally:
        holder.process.send_signal(signal.SIGCONT)


def test_a_number_that_another_process_has_been_given_since_is_not_taken_for_the_holder(
    client: redis.Redis,
) -> None:
    Lease(client, KEY, "theirs").renew()
    earlier = {**held_by(client), "started": "1"}
    client.set(KEY, json.dumps(earlier), px=15_000)
    Lease(client, KEY, "mine").renew()
    assert held_by(client)["token"] == "mine"


def test_a_holder_of_which_proc_tells_nothing_is_waited_for(
    client: redis.Redis, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is with hidepid, and under systemd's ProtectProc=invisible, where another user runs it."""
    read = Path.read_text

    def hidden(path: Path, *arguments: Any, **options: Any) -> str:
        if str(path) == f"/proc/{holder.process.pid}/stat":
            raise FileNotFoundError(path)
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", hidden)
    with pytest.raises(NameTaken):
        Lease(client, KEY, "mine").renew()


def test_a_holder_on_another_host_is_waited_for(client: redis.Redis, holder: Holder) -> None:
    elsewhere = {**held_by(client), "host": "elsewhere.invalid", "place": "another boot", "pid": 2**22 + 1}
    client.set(KEY, json.dumps(elsewhere), px=15_000)
    with pytest.raises(NameTaken, match=r"on elsewhere\.invalid"):
        Lease(client, KEY, "mine").renew()


@pytest.mark.parametrize(
    "value", ["{}", "[]", "null", "not json", json.dumps({"host": socket.gethostname()})]
)
def test_a_holder_that_nobody_understands_is_waited_for(client: redis.Redis, value: str) -> None:
    client.set(KEY, value, px=15_000)
    with pytest.raises(NameTaken, match="another process"):
        Lease(client, KEY, "mine").renew()


def test_two_workers_of_one_process_do_not_share_a_name(client: redis.Redis) -> None:
    first, second = Lease(client, KEY, "first"), Lease(client, KEY, "second")
    first.renew()
    with pytest.raises(NameTaken):
        second.renew()
    first.renew()
    first.release()
    second.renew()


def test_a_renewal_extends_the_lease(client: redis.Redis) -> None:
    mine = Lease(client, KEY, "mine")
    mine.renew()
    client.pexpire(KEY, 1_000)
    mine.renew()
    assert client.pttl(KEY) > 10_000


def test_an_expired_lease_can_be_taken(client: redis.Redis, holder: Holder) -> None:
    client.delete(KEY)
    Lease(client, KEY, "mine").renew()
    assert held_by(client)["token"] == "mine"


def test_the_first_holder_notices_at_its_renewal_that_its_lease_is_lost(client: redis.Redis) -> None:
    first, second = Lease(client, KEY, "first"), Lease(client, KEY, "second")
    first.renew()
    client.delete(KEY)
    second.renew()
    with pytest.raises(NameTaken):
        first.renew()


def test_releasing_leaves_the_lease_of_somebody_else_alone(client: redis.Redis) -> None:
    first, second = Lease(client, KEY, "first"), Lease(client, KEY, "second")
    first.renew()
    client.delete(KEY)
    second.renew()
    first.release()
    assert held_by(client)["token"] == "second"


def test_a_stop_ends_the_wait_for_a_name(client: redis.Redis, holder: Holder) -> None:
    stopped: list[bool] = []
    waits = Waits({2: lambda: stopped.append(True)})
    assert not Lease(client, KEY, "mine").acquire(waits, lambda: bool(stopped))
    assert held_by(client)["pid"] == holder.process.pid


def test_a_worker_that_lost_its_name_waits_for_it_and_looks_at_its_pending_entries_again(
    workshop: Workshop, client: redis.Redis
) -> None:
    clock = Clock()
    reader = workshop.reader("one", clock=clock)
    entry_ids = add(client, "mqtt_stream:d:t", [{"value": "1"}] * 3)
    assert reader.recover() == []
    client.delete(KEY)  # it was stopped for longer than its lease
    other = Lease(client, KEY, "somebody else")
    other.renew()
    deliver(client, "one", ["mqtt_stream:d:t"])  # what the other left behind, pending
    reader.upkeep()  # not due yet
    clock.now += TTL_SEC / 3 + 0.1
    assert reader.read() == []
    with capture_logs() as logs:
        thread = threading.Thread(target=reader.upkeep)
        thread.start()
        try:
            wait_until(lambda: [log["event"] for log in logs] == ["consumer_name_in_use"], 10)
            assert thread.is_alive()
        finally:
            other.release()
            thread.join(10)
    assert not thread.is_alive()
    assert held_by(client)["token"] == "token of one"
    assert [entry.id for entry in flat(recover_all(reader))] == entry_ids


def test_a_closed_reader_gives_its_name_back(workshop: Workshop, client: redis.Redis) -> None:
    reader = workshop.reader("one")
    assert client.exists(KEY)
    reader.close()
    assert not client.exists(KEY)


def test_a_stop_while_waiting_for_the_name_reads_nothing(
    workshop: Workshop, client: redis.Redis, holder: Holder
) -> None:
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    started: list[BaseException | None] = []

    def start() -> None:
        try:
            workshop.reader("one", token="mine")
        except AssertionError as refused:  # start() answered False
            started.append(refused)

    thread = threading.Thread(target=start)
    with capture_logs() as logs:
        thread.start()
        wait_until(lambda: logs, 10)
        workshop.stop.set()
        thread.join(10)
    assert len(started) == 1
    assert client.xinfo_groups("mqtt_stream:d:t") == []


def test_a_batch_may_take_longer_than_the_lease(workshop: Workshop, client: redis.Redis) -> None:
    """Nobody else wanted the name meanwhile."""
    clock = Clock()
    add(client, "mqtt_stream:d:t", [{"value": "1"}])
    reader = workshop.reader("one", clock=clock)
    entries = reader.read()
    client.delete(KEY)
    clock.now += 100.0
    reader.settle(outcome(entries))
    reader.upkeep()
    assert held_by(client)["token"] == "token of one"
