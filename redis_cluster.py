"""A Redis Cluster as one client: each command goes to the master that holds its key.

redis-py's own RedisCluster tries again by itself, which makes entries twice, and asks the server for the
keys of each XREADGROUP. This one sends once, and goes elsewhere only where a node has refused the command
and named another.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import redis
from hiredis import pack_command
from redis.client import Pipeline
from redis.connection import Connection, ConnectionPool
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from redis_node import pool_of, set_raw
from redis_servers import Node

SLOTS = 16_384
REDIRECTIONS = 5  # in a row, before it is left to whoever waits out outages
_KEYLESS = ("PING", "DBSIZE", "INFO", "SCRIPT LOAD", "TIME", "WAIT", "FLUSHALL")
_WITH_SUBCOMMAND = ("XGROUP", "XINFO")

Argument = bytes | str | int
Command = tuple[Argument, ...]


def slot_of(key: bytes | str) -> int:
    """The slot of a key: of what stands in its first braces, where it has any."""
    name = key if isinstance(key, bytes) else key.encode()
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    if 0 <= start < end - 1:
        name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


class Unit(NamedTuple):
    """Commands for one connection, one after the other: to whoever holds the slot of `key`."""

    key: bytes | str
    commands: Sequence[Command]


class ClusterClient(redis.Redis):
    """What Sluice uses of a client, for a cluster. Belongs to one thread.

    `options` are those of `redis_node.options_of`; `nodes` are asked for the others. A command without a
    key goes to every master. A script, a MULTI or a read of several streams needs keys of one slot.
    Raises redis errors as they come. `ClusterDownError` also stands for slots that nobody serves.
    """

    def __init__(self, options: dict[str, Any], nodes: Sequence[Node]) -> None:
        super().__init__(connection_pool=pool_of(options))  # which connects to nobody
        set_raw(self)
        self._options = options
        self._first = tuple(nodes)
        self._pools: dict[Node, ConnectionPool] = {}
        self._masters: list[Node | None] = []  # by slot
        self._stale = True

    def exchange(self, units: Sequence[Unit]) -> list[list[Any]]:
        """The replies to each unit's commands; what a reply says is an exception among them.

        All nodes work at the same time. When a connection breaks nobody knows what was done.
        """
        places = [(self._master(slot_of(unit.key)), False) for unit in units]
        replies: list[list[Any]] = [[] for _ in units]
        left = list(range(len(units)))
        for _ in range(REDIRECTIONS):
            self._send([(units[number], *places[number], replies[number]) for number in left])
            left = [number for number in left if self._redirected(replies[number], number, places)]
            if not left:
                return replies
        raise ClusterDownError("a slot is on its way from node to node")

    def _redirected(self, replies: list[Any], number: int, places: list[tuple[Node, bool]]) -> bool:
        """Whether a node has refused this because another one has, or is getting, the slot."""
        if any(isinstance(reply, ClusterDownError) for reply in replies):
            self._stale = True
        found = next((reply for reply in replies if isinstance(reply, AskError)), None)
        if found is None:
            return False
        moved = isinstance(found, MovedError)
        self._stale = self._stale or moved
        places[number] = (found.host or places[number][0][0], found.port), not moved
        return True

    def _send(self, sendings: Sequence[tuple[Unit, Node, bool, list[Any]]]) -> None:
        """Send each to its node, then take all replies. ASKING has a node answer for a slot that it is
        only getting.
        """
        by_node: dict[Node, list[tuple[Unit, bool, list[Any]]]] = {}
        for unit, node, asking, replies in sendings:
            by_node.setdefault(node, []).append((unit, asking, replies))
        open_: list[tuple[ConnectionPool, Connection]] = []
        try:
            for node in by_node:  # all of them before anything is sent: a node that is down costs nothing
                pool = self._pool(node)
                open_.append((pool, pool.get_connection()))
            for (_, connection), some in zip(open_, by_node.values(), strict=True):
                message = b"".join(_packed(unit, asking) for unit, asking, _ in some)
                connection.send_packed_command([message])  # type: ignore[no-untyped-call]
            for (_, connection), some in zip(open_, by_node.values(), strict=True):
                for unit, asking, replies in some:
                    got = [_reply(connection) for _ in range(len(unit.commands) + asking)]
                    replies[:] = got[asking:]
        except BaseException:
            self._stale = True
            for _, connection in open_:  # whose other replies would be taken for those to something else
                connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            for pool, connection in open_:
                pool.release(connection)

    def _pool(self, node: Node) -> ConnectionPool:
        if node not in self._pools:
            host, port = node
            self._pools[node] = pool_of({**self._options, "host": host, "port": port}, in_cluster=True)
        return self._pools[node]

    def _master(self, slot: int) -> Node:
        if self._stale:
            self._look()
        found = self._masters[slot]
        if found is None:
            raise ClusterDownError(f"no node has the slot {slot}")
        return found

    @property
    def masters(self) -> list[Node]:
        """All that hold slots."""
        if self._stale:
            self._look()
        return list(dict.fromkeys(node for node in self._masters if node))

    def _look(self) -> None:
        """Find out who holds which slot, from the first node that says so. Another one than the last time:
        that may be cut off from the others, and not know.
        """
        failed: redis.RedisError | None = None
        for node in dict.fromkeys((*self._first, *self._pools)):
            replies: list[Any] = []
            try:
                self._send([(Unit("", [("CLUSTER", "SLOTS")]), node, False, replies)])
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failed = error
                continue
            if isinstance(replies[0], ResponseError):
                raise replies[0]
            self._first = (*(one for one in self._first if one != node), node)
            self._take_map(replies[0], node)
            return
        raise redis.ConnectionError(f"no node of the cluster answers: {failed}") from failed

    def _take_map(self, ranges: Sequence[Any], asked: Node) -> None:
        masters: list[Node | None] = [None] * SLOTS
        for first, last, (host, port, *_), *_ in ranges:
            node: Node = (host.decode() if host else asked[0], int(port))
            masters[first : last + 1] = [node] * (last + 1 - first)
        self._masters, self._stale = masters, False
        holding = {node for node in masters if node}
        for node in [node for node in self._pools if node not in holding]:
            self._pools.pop(node).disconnect()
        for node in holding:
            self._pool(node)  # so that it is asked when others do not answer

    # What redis.Redis offers, as far as Sluice uses it

    def execute_command(self, *args: Any, **options: Any) -> Any:
        name = _name(args)
        if name in _KEYLESS:
            return self._everywhere(name, args, options)
        ((reply,),) = self.exchange([Unit(_key_of(args), [args])])
        return self.finished(reply, args, options)

    def _everywhere(self, name: str, args: Command, options: dict[str, Any]) -> Any:
        """From every master; of INFO's answers the one that evicts, if any does: that is what matters."""
        replies: list[list[Any]] = [[] for _ in self.masters]
        self._send(
            [
                (Unit("", [args]), node, False, into)
                for node, into in zip(self.masters, replies, strict=True)
            ]
        )
        found = [self.finished(reply, args, options) for (reply,) in replies]
        if name == "DBSIZE":
            return sum(found)
        if name == "WAIT":
            return min(found)
        evicting = (one for one in found if name == "INFO" and "allkeys" in one.get("maxmemory_policy", ""))
        return next(evicting, found[0])

    def finished(self, reply: Any, args: Command, options: dict[str, Any]) -> Any:
        """A reply in the form that redis-py gives it; raises what it says."""
        if isinstance(reply, Exception):
            raise reply
        shape: Callable[..., Any] | None = self.response_callbacks.get(_name(args))  # type: ignore[no-untyped-call]
        wanted = {name: value for name, value in options.items() if name != "keys"}
        return shape(reply, **wanted) if shape else reply

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Of every master in turn. A slot that moves meanwhile may be missed, or come twice."""
        for node in self.masters:
            yield from redis.Redis(connection_pool=self._pool(node)).scan_iter(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> ClusterPipeline:  # noqa: ARG002
        return ClusterPipeline(self, transaction=transaction)

    def close(self) -> None:
        for pool in getattr(self, "_pools", {}).values():
            pool.disconnect()


class ClusterPipeline(Pipeline):
    """Commands for the nodes that their keys are on; with `transaction`, all for one slot."""

    def __init__(self, client: ClusterClient, *, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client
        self._together = transaction

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, self.command_stack = self.command_stack, []
        calls: list[tuple[Command, dict[str, Any]]] = list(stack)
        if not calls:
            return []
        if self._together:
            replies = self._transaction([args for args, _ in calls])
        else:
            units = [Unit(_key_of(args), [args]) for args, _ in calls]
            replies = [reply for (reply,) in self._client.exchange(units)]
        found: list[Any] = []
        for reply, (args, options) in zip(replies, calls, strict=True):
            if isinstance(reply, Exception) and not raise_on_error:
                found.append(reply)
            else:
                found.append(self._client.finished(reply, args, options))
        return found

    def _transaction(self, commands: Sequence[Command]) -> list[Any]:
        unit = Unit(_key_of(commands[0]), [("MULTI",), *commands, ("EXEC",)])
        ((*queued, done),) = self._client.exchange([unit])
        for reply in (*queued, done):
            if isinstance(reply, Exception):
                raise reply
        replies: list[Any] = done
        return replies


def _key_of(command: Command) -> bytes | str:
    """The key by which to find the node of a command. All its keys are in one slot. One that has none is
    for whichever node.
    """
    name = _name(command)
    place = 1
    if name in ("EVALSHA", "EVAL"):
        place = 3
    elif name == "XREADGROUP":
        place = command.index("STREAMS", 4) + 1
    elif name in _WITH_SUBCOMMAND:
        place = 2
    key = command[place] if place < len(command) else ""
    return key if isinstance(key, bytes | str) else str(key)


def _name(command: Command) -> str:
    first = command[0]
    return (first.decode() if isinstance(first, bytes) else str(first)).upper()


def _packed(unit: Unit, asking: bool) -> bytes:
    commands = [("ASKING",), *unit.commands] if asking else unit.commands
    # a name such as XINFO STREAM is one word for redis-py and two for the server
    words: list[tuple[Argument, ...]] = [(*_name(one).split(), *one[1:]) for one in commands]
    return b"".join(pack_command(one) for one in words)  # type: ignore[arg-type]


def _reply(connection: Connection) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
