"""What nobody needs any more in Redis: consumers of workers that left, books of streams that are gone.

A worker that is started anew under another name, as a container is, leaves a consumer behind in every
stream that it has read, and a stream that somebody deletes leaves its counts in the ledger. One worker at
a time looks, at a few streams between batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

import redis
import structlog

from lease import Lease, NameTaken
from redis_client import execute, is_denied
from redis_scripts import CLOSE_BOOKS, FLAGS, PAIRS, Keys
from schema import Fate
from scripting import Script

FIRST_SEC = 60.0  # after a start: a worker that is started anew every hour looks too
ROUND_SEC = 3600.0  # from one look to the next
LEFT_SEC = 86_400.0  # a consumer that has asked for nothing for so long has left
AT_ONCE = 20  # streams in one script, for which Redis does nothing else
SHARE_OF_TIME = 0.01  # of this worker, and of Redis, at most
_PAGE = 500  # fields of a ledger in one reply, about

# KEYS: ledger, streams. ARGV: group, milliseconds after which a consumer has left. Removes those that have
# nothing pending: with it pending entries would go. A worker that was only stopped for long is a consumer
# again with its next read. Returns how many went.
_REMOVE_CONSUMERS = (
    FLAGS
    + PAIRS
    + """
local function gone(reply)
    return string.find(reply.err, 'no such key') or string.find(reply.err, 'NOGROUP')
        or string.find(reply.err, 'WRONGTYPE')
end
local removed = 0
for i = 2, #KEYS do
    local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], ARGV[1])
    if consumers.err and not gone(consumers) then return consumers end
    for _, flat in ipairs(consumers) do  -- of an error, none
        local one = pairs_of(flat)
        if one.pending == 0 and one.idle > tonumber(ARGV[2]) then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], one.name)
            removed = removed + 1
        end
    end
end
return removed
"""
)

# KEYS: ledger, streams. ARGV: group, counts…  Closes the books of those streams that are gone. Returns how
# many those are.
_CLOSE = (
    FLAGS
    + CLOSE_BOOKS
    + """
local closed = 0
for i = 2, #KEYS do
    if redis.call('TYPE', KEYS[i]).ok == 'none' then
        close_books(KEYS[1], KEYS[i])
        closed = closed + 1
    end
end
return closed
"""
)


class Leftovers:
    """Belongs to the reader's thread. Raises redis errors as they come; the reader retries."""

    def __init__(
        self, client: redis.Redis, keys: Keys, lease: Lease, group: str, clock: Callable[[], float]
    ) -> None:
        """`lease`: of whoever does what one worker does for all."""
        self._client = client
        self._remove = Script(client, _REMOVE_CONSUMERS)
        self._close = Script(client, _CLOSE)
        self._keys = keys
        self._lease = lease
        self._group = group
        self._clock = clock
        self._steps: Iterator[bool] | None = None
        self._round_ends = self.due_at = clock() + FIRST_SEC
        self._consumers = self._books = 0

    def step(self, streams: Sequence[bytes]) -> None:
        """Look at some of `streams`, or at a page of a ledger. What fails is done in the next round."""
        began = self._clock()
        if self._steps is None:
            self._round_ends = self.due_at = began + ROUND_SEC
            try:
                self._lease.renew()
            except NameTaken:
                return
            self._steps = self._round(streams)
        try:
            more = next(self._steps, False)
        except redis.ResponseError as error:
            if not is_denied(error):
                raise
            more, self._round_ends = False, inf
            remedy = "grant the rights that docs/operations.md lists for a worker, and restart it"
            structlog.get_logger().warning("leftovers_stay", remedy=remedy)
        now = self._clock()
        self.due_at = now + (now - began) / SHARE_OF_TIME if more else self._round_ends
        if not more:
            self._steps = None

    def _round(self, streams: Sequence[bytes]) -> Iterator[bool]:
        """True after each step."""
        self._consumers = self._books = 0
        for ledger, some in self._keys.together(streams, AT_ONCE):
            left_ms = int(LEFT_SEC * 1000)
            self._consumers += int(self._remove([ledger, *some], [self._group, left_ms]))
            yield True
        known = frozenset(streams)
        for ledger in self._keys.ledgers(self._client):
            yield from self._close_books(ledger, known)
        if self._consumers or self._books:
            structlog.get_logger().info("leftovers_removed", consumers=self._consumers, books=self._books)

    def _close_books(self, ledger: str, known: frozenset[bytes]) -> Iterator[bool]:
        """Of the streams that nobody reads any more, and of which `ledger` has counts."""
        counts = [*(fate.value for fate in Fate), "trimmed_unread"]
        cursor: bytes | int = 0
        while True:
            cursor, page = execute(self._client, "HSCAN", ledger, cursor, "COUNT", _PAGE)
            counted = {field.partition(b":")[2] for field in page if not field.startswith(b"closed:")}
            gone = sorted(counted - known)
            if gone:
                self._books += int(self._close([ledger, *gone], [self._group, *counts]))
            if int(cursor) == 0:
                return
            yield True
