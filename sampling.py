"""How far behind the group is: looked at now and then, each worker its part of the streams.

What is a worker's part is decided as in `sharing.py`, but always, also where all of them read everything.
So the parts of all workers add up to the group, and nothing counts twice for longer than a moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis

from redis_client import execute
from redis_scripts import GROUP_OF, Keys
from scripting import Script
from sharing import Sharing

ROUND_SEC = 5.0  # from one look at the whole part to the next
AT_ONCE = 50  # streams in one script, for which Redis does nothing else: 1 to 2 ms, measured
SHARE_OF_TIME = 0.01  # of this worker, and of Redis, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """A worker's part of the group, in entries. `unread` where the number is known: see `unknown`, streams
    where it is not. `oldest_sec`: age of the oldest unread entry. `dead_letters`: None where another
    worker tells. `at`: when the look ended, by the clock.
    """

    streams: int
    pending: int
    unread: int
    unknown: int
    trimmed_unread: int
    oldest_sec: float
    dead_letters: int | None
    at: float


# KEYS: streams. ARGV: group. Only looks. Of each stream's group:
#   - `entries-added` less what is there and what was read: deleted before anybody read it;
#   - unread: none behind the last one delivered; or, where the first entry is unread, all that is there;
#     else Redis's own `lag`, which is null after an unread entry was deleted: then it is unknown.
# `lag` alone will not do: after unread entries were trimmed it counts them still. A stream that may not be
# looked at, or is none any more, is unknown too, and one that is gone is nothing.
# Returns pending, unread, unknown streams, deleted unread, and the age in milliseconds of the oldest entry
# that is unread, by Redis's clock and the entry's ID.
_SAMPLE = (
    GROUP_OF
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pending, unread, unknown, deleted, oldest = 0, 0, 0, 0, now
for _, stream in ipairs(KEYS) do
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    local front = redis.pcall('XRANGE', stream, '-', '+', 'COUNT', 1)
    local length = redis.pcall('XLEN', stream)
    if groups.err or front.err or type(length) ~= 'number' then
        if not groups.err or not string.find(groups.err, 'no such key') then unknown = unknown + 1 end
    else
        local group = group_of(groups, ARGV[1]) or { ['last-delivered-id'] = '0-0', pending = 0 }
        local read, after = group['entries-read'], group['last-delivered-id']
        local first = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', 1)[1]
        pending = pending + group.pending
        if first then
            oldest = math.min(oldest, tonumber(string.match(first[1], '^%d+')))
            if front[1][1] == first[1] then unread = unread + length
            elseif group.lag then unread = unread + group.lag
            else unknown = unknown + 1 end
        end
        local info = read and redis.pcall('XINFO', 'STREAM', stream)
        if info and not info.err then
            deleted = deleted + math.max(0, pairs_of(info)['entries-added'] - length - read)
        end
    end
end
return { pending, unread, unknown, deleted, now - oldest }
"""
)


class Sampler:
    """Belongs to the reader's thread; `latest` may be read from any. Raises redis errors as they come."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        sharing: Sharing,
        *,
        group: str,
        dead_letter_stream: str,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._script = Script(client, _SAMPLE)
        self._keys = keys
        self._sharing = sharing
        self._group = group
        self._dead_letters = dead_letter_stream
        self._clock = clock
        self._left: list[Sequence[bytes]] = []
        self._part = 0
        self._found: list[Sequence[int]] = []
        self._began = 0.0
        self.due_at = 0.0
        self.latest: Backlog | None = None

    def step(self, streams: Sequence[bytes]) -> None:
        """Look at fifty streams of this worker's part; after the last there is a new `latest`."""
        began = self._clock()
        if not self._found and not self._left:
            part = self._sharing.part_of(streams)
            self._part = len(part)
            self._left = [some for _, some in self._keys.together(part, AT_ONCE)]
            self._began = began
        if self._left:
            self._found.append(self._script([*self._left[-1]], [self._group]))
            self._left.pop()  # not before: an attempt that fails is made again
        now = self._clock()
        self.due_at = now + (now - began) / SHARE_OF_TIME
        if not self._left:
            self._conclude()
            self.due_at = max(self.due_at, self._began + ROUND_SEC)

    def _conclude(self) -> None:
        letters = None
        if self._sharing.part_of([self._dead_letters.encode()]):
            with contextlib.suppress(redis.ResponseError):  # something else is there: settling tells of it
                letters = int(execute(self._client, "XLEN", self._dead_letters))
        found, self._found = self._found, []
        pending, unread, unknown, trimmed = (sum(one[n] for one in found) for n in range(4))
        self.latest = Backlog(
            streams=self._part,
            pending=pending,
            unread=unread,
            unknown=unknown,
            trimmed_unread=trimmed,
            oldest_sec=max((one[4] for one in found), default=0) / 1000,
            dead_letters=letters,
            at=self._clock(),
        )
