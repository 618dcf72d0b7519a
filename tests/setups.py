"""The set-ups of Redis that people run beside one server, of real servers on ports of loopback."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import redis

import redis_client
from redis_cluster import SLOTS
from redis_servers import RedisMode, RedisServers
from standalone.ports import free_port
from standalone.servers import Valkey, _valkey_program
from tests.support import ROOT, wait_until

MASTER = "sluice"
_PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
# The rights that the page says each program needs, by its user; and what they need more in a cluster.
USERS: dict[str, str] = dict(re.findall(r"^user (sluice-[a-z]+) on >PASSWORD (.+)$", _PAGE, re.M))
IN_CLUSTER, OF_WORKERS_IN_CLUSTER = re.findall(r"^(\+(?:cluster\||role ).+)$", _PAGE, re.M)
T = TypeVar("T", bound="Node")


def settings_of(servers: RedisServers) -> dict[str, object]:
    """What a worker is told of them, beside REDIS_URL."""
    nodes = ",".join(f"{host}:{port}" for host, port in servers.nodes)
    if servers.mode is RedisMode.SENTINEL:
        named = {"redis_sentinels": nodes, "redis_sentinel_master": servers.master}
    else:
        named = {"redis_cluster_nodes": nodes}
    return {"redis_mode": servers.mode, **named}


@dataclass(frozen=True, slots=True)
class TlsRedis:
    """A server that can do TLS, for `Node`: on its port there is nothing else. `certificates`: a folder of
    `tests/tls.py`, for localhost.
    """

    program: Path
    certificates: Path

    @property
    def options(self) -> list[str]:
        files = {"ca-cert-file": "ca.pem", "cert-file": "own.pem", "key-file": "own.key"}
        named = [(f"--tls-{option}", str(self.certificates / file)) for option, file in files.items()]
        switches = [("--tls-auth-clients", "no"), ("--tls-replication", "yes"), ("--tls-cluster", "yes")]
        # nodes are known by address, a certificate by name
        switches += [("--cluster-announce-hostname", "localhost")]
        switches += [("--cluster-preferred-endpoint-type", "hostname")]
        return [word for pair in (*named, *switches) for word in pair]


class Node(Valkey):
    """A Valkey on a port, which keeps nothing on disk: its replica has it."""

    def __init__(
        self, folder: Path, name: str, options: Sequence[str] = (), tls: TlsRedis | None = None
    ) -> None:
        self.name = name
        self.port = free_port()
        listening = ["--tls-port" if tls else "--port", str(self.port), "--bind", "127.0.0.1"]
        secured = tls.options if tls else []
        program = tls.program if tls else None
        super().__init__(folder / name, [*listening, "--appendonly", "no", *secured, *options], program)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def lose(self, master: Node) -> None:
        """Hear nothing more of `master`, which goes on: the login there is not accepted from now on."""
        with self.client() as client:
            client.config_set("masteruser", "nobody")
            client.config_set("masterauth", "wrong")
            with master.client() as other:
                redis_client.execute(other, "CLIENT", "KILL", "TYPE", "replica")
            wait_until(
                lambda: client.info("replication").get("master_link_status") == "down", 30, "no link"
            )

    def find_again(self) -> None:
        """Undo `lose`."""
        with self.client() as client:
            client.config_set("masteruser", "")
            client.config_set("masterauth", "")

    def client(self) -> redis.Redis:
        """Straight to it."""
        return redis_client.connect(self.url, timeout_sec=10)


class Sentinel(Node):
    """One sentinel. It calls a master down after three seconds without an answer."""

    def start(self) -> None:
        file = self.data / "sentinel.conf"  # which it rewrites itself
        if not file.exists():
            lines = f"port {self.port}", "bind 127.0.0.1", f"unixsocket {self.socket}", f"dir {self.data}"
            file.write_text("".join(f"{line}\n" for line in lines))
        self._spawn([_valkey_program(), file, "--sentinel"])
        self._wait_until(self._answers)

    def watch(self, master: Node, quorum: int) -> None:
        with self.client() as client:
            client.execute_command("SENTINEL", "MONITOR", MASTER, *master.address, quorum)
            for option, value in (("down-after-milliseconds", 3000), ("failover-timeout", 10_000)):
                client.execute_command("SENTINEL", "SET", MASTER, option, value)

    def knows(self, others: int) -> bool:
        """Whether it has found this many other sentinels, and the replica."""
        with self.client() as client:
            found = client.sentinel_master(MASTER)
            return (found["num-other-sentinels"], found["num-slaves"]) == (others, 1)


@dataclass(frozen=True, slots=True)
class Watched:
    """A master, its replica, and three sentinels."""

    nodes: tuple[Node, Node]
    sentinels: tuple[Sentinel, ...]

    @property
    def servers(self) -> RedisServers:
        return RedisServers(
            url="redis://",
            mode=RedisMode.SENTINEL,
            nodes=tuple(sentinel.address for sentinel in self.sentinels),
            master=MASTER,
        )

    @property
    def master(self) -> Node:
        """Who is, by the sentinels."""
        with self.sentinels[0].client() as client:
            port = client.sentinel_master(MASTER)["port"]
        return next(node for node in self.nodes if node.port == port)

    def replica_of(self, master: Node) -> Node:
        (other,) = (node for node in self.nodes if node is not master)
        return other

    def has_replica(self) -> bool:
        """Whether the other one follows."""
        with self.replica_of(self.master).client() as client:
            found = client.info("replication")
        return (found["role"], found.get("master_link_status")) == ("slave", "up")

    def follow(self, node: Node) -> None:
        """Have `node`, which has just been started, be the replica. The sentinels would see to it after
        eight seconds.
        """
        with node.client() as client:
            redis_client.execute(client, "REPLICAOF", *self.master.address)
        wait_until(self.has_replica, 60, "the old master as a replica")

    def switch(self) -> None:
        """Have the replica become master, with the master alive, as an operator does. Coordinated: else the
        old one goes on for some ten seconds, and what it is given is lost.
        """
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", MASTER, "COORDINATED")


@contextlib.contextmanager
def watched(folder: Path, users: Mapping[str, str]) -> Iterator[Watched]:
    """`users`: the rights of each, with the password `secret`; the sentinels' is `sluice-sentinel`."""
    theirs = {name: ["--user", name, "on", ">secret", *rights.split()] for name, rights in users.items()}
    ours = [word for name, words in theirs.items() if name != "sluice-sentinel" for word in words]
    with contextlib.ExitStack() as started:

        def start(node: T) -> T:
            node.start()
            started.callback(node.stop)
            return node

        master, replica = (start(Node(folder, name, ours)) for name in ("node-0", "node-1"))
        with replica.client() as client:
            client.execute_command("REPLICAOF", *master.address)
        sentinels = tuple(start(Sentinel(folder, f"sentinel-{number}")) for number in range(3))
        for sentinel in sentinels:
            sentinel.watch(master, quorum=2)
            with sentinel.client() as client:
                client.execute_command("ACL", "SETUSER", *theirs["sluice-sentinel"][1:])
        found = Watched((master, replica), sentinels)
        wait_until(found.has_replica, 30, "a replica that follows")
        wait_until(lambda: all(one.knows(2) for one in sentinels), 60, "sentinels that know each other")
        yield found


class Member(Node):
    """One node of a cluster, which calls another one down after `patience_ms` without an answer."""

    def __init__(self, folder: Path, name: str, patience_ms: int, tls: TlsRedis | None) -> None:
        self.bus_port = free_port()
        options = ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
        options += ["--cluster-node-timeout", str(patience_ms), "--cluster-replica-validity-factor", "0"]
        super().__init__(folder, name, [*options, "--repl-diskless-sync-delay", "0"], tls)

    def ask(self, *command: str | int) -> Any:
        with self.client() as client:
            return redis_client.execute(client, *command)

    @cached_property
    def id(self) -> str:
        found: bytes = self.ask("CLUSTER", "MYID")
        return found.decode()

    def knows(self, members: int) -> bool:
        said: bytes = self.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in said and b"cluster_known_nodes:%d\r" % members in said

    @property
    def follows(self) -> bool:
        """Whether it is a replica, and has what its master has."""
        role = self.ask("ROLE")
        return bool(role[0] == b"slave" and role[3] == b"connected")

    @property
    def follows_whom(self) -> int:
        """The port of its master; 0 where it is one."""
        role = self.ask("ROLE")
        return int(role[2]) if role[0] == b"slave" else 0

    @property
    def leads(self) -> bool:
        return bool(self.ask("ROLE")[0] == b"master")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Three masters at first; with replicas, the one of the same number is each one's."""

    masters: tuple[Member, ...]
    replicas: tuple[Member, ...]

    @property
    def servers(self) -> RedisServers:
        nodes = tuple(member.address for member in self.masters)
        return RedisServers(url="redis://", mode=RedisMode.CLUSTER, nodes=nodes)

    @property
    def members(self) -> tuple[Member, ...]:
        return self.masters + self.replicas

    def owner(self, slot: int) -> Member:
        """Which master has `slot`, by a member that is there."""
        asked = next(member for member in reversed(self.members) if member.process)
        for first, last, (_, _, known, *_), *_ in asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(member for member in self.members if member.id == known.decode())
        raise LookupError(slot)

    def replica_of(self, master: Member) -> Member:
        return next(one for one in self.members if one.follows_whom == master.port)

    def move(
        self,
        slot: int,
        pause: Callable[[], object] = lambda: None,
        meanwhile: Callable[[Member], object] = lambda _: None,
    ) -> None:
        """Move `slot` to the next master, key by key, as redis-cli does; `pause` between two keys;
        `meanwhile` is given the next master when it has all keys, and nobody knows yet.
        """
        source = self.owner(slot)
        masters = [member for member in self.members if member.leads]
        target = masters[(masters.index(source) + 1) % len(masters)]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", *target.address, keys[0], 0, 5000)
            pause()
        meanwhile(target)
        for member in (target, source, *(one for one in masters if one not in (source, target))):
            member.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)


@contextlib.contextmanager
def clustered(folder: Path, *, replicas: bool, tls: TlsRedis | None = None) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))  # nodes remember each other
    patience_ms = 5000 if replicas else 20_000  # on a busy machine; without replicas nobody takes over
    with contextlib.ExitStack() as started:

        def start(name: str) -> Member:
            member = Member(folder, name, patience_ms, tls)
            member.start()
            started.callback(member.stop)
            return member

        masters = tuple(start(f"master-{number}") for number in range(3))
        others = tuple(start(f"replica-{number}") for number in range(3)) if replicas else ()
        for number, member in enumerate(masters + others):
            assert member.id  # known from now on, also while it is down
            member.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
                member.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            if number:
                masters[0].ask("CLUSTER", "MEET", *member.address, member.bus_port)
        found = Cluster(masters, others)
        count = len(found.members)
        wait_until(lambda: all(one.knows(count) for one in found.members), 60, "members that all know all")
        for member, master in zip(others, masters, strict=False):
            member.ask("CLUSTER", "REPLICATE", master.id)
        wait_until(lambda: all(one.follows for one in others), 60, "replicas that follow")
        wait_until(lambda: all(one.knows(count) for one in found.members), 60, "members that all know all")
        yield found
