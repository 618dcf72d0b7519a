"""What something else deleted before anybody had read it: looked for, counted once, and told.

One worker at a time looks, at a few streams between batches. It comes out also when the group has read on:
what was added to a stream is settled, pending, unread, or gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import redis
import structlog

from lease import Lease, NameTaken
from metrics import Stats
from redis_scripts import FLAGS, GROUP_OF, Keys
from schema import Fate
from scripting import Script

ROUND_SEC = 10.0  # from one look at all streams to the next
AT_ONCE = 50  # streams in one script, for which Redis does nothing else
SHARE_OF_TIME = 0.01  # of this worker, and of Redis, at most

# KEYS: ledger, streams. ARGV: group, fates… Of each stream: entries added, less those that had gone before
# the group was made, those that are settled, pending or unread. Not more than others have deleted, which is
# all that is gone, less what workers trimmed and what was pending as it went: what is missing beyond that
# was not deleted unread. Where Redis cannot tell how many are unread, the next look may. Redis 6.2 does not
# count what was added. Returns how many were not counted yet.
_LOOK = (
    FLAGS
    + GROUP_OF
    + """
local ledger, group = KEYS[1], ARGV[1]
local function unread_of(stream, group, length)
    local first = redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1]
    if not first then return 0 end
    if redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1] == first[1] then return length end
    return group.lag
end
local function counted(stream)
    local fields = { 'trimmed_unread:' .. stream, 'base:' .. stream, 'dropped:' .. stream }
    for i = 2, #ARGV do fields[#fields + 1] = ARGV[i] .. ':' .. stream end
    local settled, trimmed = 0, 0
    local found = {}  -- one by one: a worker's account need not have HMGET
    for i, field in ipairs(fields) do found[i] = tonumber(redis.call('HGET', ledger, field) or 0) end
    for i = 2, #ARGV do
        settled = settled + found[i + 2]
        if ARGV[i] == 'trimmed' then trimmed = found[i + 2] end
    end
    return found[1], found[2], found[3], settled, trimmed
end
local function look(stream)
    local info, groups = redis.pcall('XINFO', 'STREAM', stream), redis.pcall('XINFO', 'GROUPS', stream)
    if info.err or groups.err then return 0 end
    info, groups = pairs_of(info), group_of(groups, group)
    if not groups or not info['entries-added'] then return 0 end
    local unread = unread_of(stream, groups, info.length)
    if not unread then return 0 end
    local before, base, dropped, settled, trimmed = counted(stream)
    local added = info['entries-added'] - base
    local deleted = added - info.length - dropped - trimmed
    local lost = math.min(added - settled - groups.pending - unread, deleted)
    if lost <= before then return 0 end
    redis.call('HSET', ledger, 'trimmed_unread:' .. stream, string.format('%.0f', lost))
    return lost - before
end
local entries = 0
for i = 2, #KEYS do entries = entries + look(KEYS[i]) end
return entries
"""
)


class Losses:
    """Belongs to the reader's thread. Raises redis errors as they come; the reader retries."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        lease: Lease,
        group: str,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        """`lease`: of whoever does what one worker does for all."""
        self._script = Script(client, _LOOK)
        self._keys = keys
        self._lease = lease
        self._args = [group, *(fate.value for fate in Fate)]
        self._stats = stats
        self._clock = clock
        self._left: list[tuple[str, Sequence[bytes]]] = []
        self._round_ends = self.due_at = clock() + ROUND_SEC

    def step(self, streams: Sequence[bytes]) -> None:
        """Look at fifty of `streams`."""
        began = self._clock()
        if not self._left:
            self._round_ends = self.due_at = began + ROUND_SEC
            try:
                self._lease.renew()
            except NameTaken:
                return
            self._left = list(self._keys.together(streams, AT_ONCE))
        if self._left:
            ledger, some = self._left[-1]
            lost = int(self._script([ledger, *some], self._args))
            self._left.pop()  # not before: an attempt that fails is made again
            if lost:
                self._tell(lost)
        now = self._clock()
        self.due_at = now + (now - began) / SHARE_OF_TIME
        if not self._left:
            self.due_at = max(self.due_at, self._round_ends)

    def _tell(self, entries: int) -> None:
        """Once: a crash before this line costs the line, and not the count, which is in the ledger."""
        self._stats.messages_trimmed_unread += entries
        structlog.get_logger().warning(
            "unread_entries_trimmed",
            entries=entries,
            meaning="deleted from their stream by something else before anybody had read them: data loss",
        )
