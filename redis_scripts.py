"""The steps that Redis must do as one: Lua, each with its contract, and the names of the keys they keep.

A script runs as a whole or not at all as seen by every other client, but it is not rolled back when a
command in it fails half-way. So each is ordered to be right when cut off after any of its commands:
what makes an entry safe comes before what lets go of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha1

import redis

from redis_client import chunks

# Lua: what XINFO answers, name value…, as a table.
PAIRS = """
local function pairs_of(flat)
    local found = {}
    for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
    return found
end
"""

# Lua: of what XINFO GROUPS answers the group of this name, as a table; nil where there is none.
GROUP_OF = (
    PAIRS
    + """
local function group_of(groups, name)
    for _, flat in ipairs(groups) do
        local found = pairs_of(flat)
        if found.name == name then return found end
    end
end
"""
)

# The flag lets acknowledgements and dead letters through when Redis is out of memory: they are what
# makes room again. `scripting.py` leaves it out for Redis 6.2.
FLAGS = "#!lua flags=allow-oom\n"

# KEYS: ledger, dead-letter stream, then the streams. ARGV: group, then operations in a row:
#   A fate key-index n id…         acknowledge n entries and count those that were still pending
#   D key-index id n field value…  dead-letter one entry, unless somebody else settled it already
# A stream or group that is gone has nothing left to acknowledge: if the entry comes back, it is read again.
# Returns {fate, count, …}. Counting what XACK answers makes every entry count exactly once, whoever
# acknowledges it and however often.
SETTLE = (
    FLAGS
    + """
local ledger, dead, group = KEYS[1], KEYS[2], ARGV[1]
redis.call('HLEN', ledger)  -- a ledger of another type is refused before anything is let go
local function gone(reply)
    return string.find(reply.err, 'NOGROUP') or string.find(reply.err, 'WRONGTYPE')
end
local counts, order = {}, {}
local function count(fate, stream, n)
    if n == 0 then return end
    redis.call('HINCRBY', ledger, fate .. ':' .. stream, n)
    if not counts[fate] then counts[fate] = 0; order[#order + 1] = fate end
    counts[fate] = counts[fate] + n
end
local i = 2
while i <= #ARGV do
    if ARGV[i] == 'A' then
        local fate, stream, n = ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])], tonumber(ARGV[i + 3])
        local acked = redis.pcall('XACK', stream, group, unpack(ARGV, i + 4, i + 3 + n))
        if type(acked) == 'number' then
            count(fate, stream, acked)
        elseif not gone(acked) then
            return acked
        end
        i = i + 4 + n
    else
        local stream, id, n = KEYS[tonumber(ARGV[i + 1])], ARGV[i + 2], tonumber(ARGV[i + 3])
        local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
        if pending.err and not gone(pending) then return pending end
        if not pending.err and #pending > 0 then
            redis.call('XADD', dead, '*', unpack(ARGV, i + 4, i + 3 + n))
            count('dead_lettered', stream, redis.call('XACK', stream, group, id))
        end
        i = i + 4 + n
    end
end
local answer = {}
for _, fate in ipairs(order) do
    answer[#answer + 1] = fate
    answer[#answer + 1] = counts[fate]
end
return answer
"""
)

# KEYS: dead-letter stream, stream, ledger. ARGV: group, id, the letter's original_id. The end of the
# MULTI that begins with the XADD of a dead letter too wide for a script. A MULTI goes on after a command
# that failed: so the entry is let go only where its letter is the newest one. A letter that was not
# wanted, because somebody else had settled the entry, is taken back. Returns 1 when the entry was
# dead-lettered by this.
SETTLE_WIDE = (
    FLAGS
    + """
local dead, stream, id = KEYS[1], KEYS[2], ARGV[2]
redis.call('HLEN', KEYS[3])
local newest = redis.call('XREVRANGE', dead, '+', '-', 'COUNT', 1)[1]
if not newest or newest[2][2] ~= stream or newest[2][4] ~= ARGV[3] then
    return redis.error_reply('ERR the dead letter was not added')
end
if redis.pcall('XACK', stream, ARGV[1], id) == 1 then
    redis.call('HINCRBY', KEYS[3], 'dead_lettered:' .. stream, 1)
    return 1
end
redis.call('XDEL', dead, newest[1])
return 0
"""
)

# KEYS: dead-letter stream, stream. ARGV: the letter's ID, fields and values… of the entry. Replays a
# letter: the entry is added and the letter deleted, or neither. Returns 0 where the letter is gone,
# replayed by an earlier attempt perhaps whose reply was lost. Not when memory is short: it takes some.
REPLAY = """#!lua
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
"""

# KEYS: stream, a record in the same slot. ARGV: the letter's name, ms to keep the record, fields and
# values… The first half of a replay where the letter is in another slot: the entry is added unless the
# record says that it was; whoever calls deletes the letter then. Between the two, a second attempt finds
# the record. Returns whether the entry was added.
REPLAY_ONCE = """#!lua
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""

# Lua: ends the books of a stream; its counts, which ARGV names from the second on, move to `closed:`.
CLOSE_BOOKS = """
local function close_books(ledger, stream)
    for i = 2, #ARGV do
        local field = ARGV[i] .. ':' .. stream
        local before = redis.call('HGET', ledger, field)
        if before then
            redis.call('HDEL', ledger, field)
            redis.call('HINCRBY', ledger, 'closed:' .. ARGV[i], before)
        end
    end
    redis.call('HDEL', ledger, 'base:' .. stream, 'dropped:' .. stream)
end
"""

# KEYS: ledger, streams. ARGV: group, counts…  Makes the group from each stream's first entry. Returns for
# each stream 1 when it was made, 0 when it was there, -1 when the stream is gone or is another type. A
# group made anew starts new books for the stream: what was counted before moves to `closed:`. `base:` is
# how many entries had been trimmed before the group existed; with it as ENTRIESREAD, the server's own count
# of reads and its lag are exact from the first entry on; Redis 6.2 has no such counts. A group that is
# there, as nearly all are when a worker starts, is known by the cheapest command that needs it.
MAKE_GROUPS = (
    FLAGS
    + CLOSE_BOOKS
    + """
local ledger, group = KEYS[1], ARGV[1]
local function make(stream)
    if not redis.pcall('XPENDING', stream, group).err then return 0 end
    local info = redis.pcall('XINFO', 'STREAM', stream)
    if info.err then return -1 end
    local added, length
    for i = 1, #info, 2 do
        if info[i] == 'entries-added' then added = info[i + 1] end
        if info[i] == 'length' then length = info[i + 1] end
    end
    local base = added and added - length or 0
    if added then
        redis.call('XGROUP', 'CREATE', stream, group, '0', 'ENTRIESREAD', base)
    else
        redis.call('XGROUP', 'CREATE', stream, group, '0')
    end
    close_books(ledger, stream)
    if base > 0 then redis.call('HSET', ledger, 'base:' .. stream, base) end
    return 1
end
local made = {}
for i = 2, #KEYS do made[i - 1] = make(KEYS[i]) end
return made
"""
)

# KEYS: stream. ARGV: group, how many pending entries to look at. What the group has still to do, without
# any entry's fields, which may be heavy. Returns nothing where there is no such stream, else: entries
# added, length, the first unread entry's ID or ''; and where the group is there: entries read and lag,
# each nil where Redis does not know, and both forms of XPENDING, empty where nothing is.
BACKLOG = """
local function named(flat)
    local found = {}
    for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
    return found
end
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then
    if string.find(info.err, 'no such key') or string.find(info.err, 'WRONGTYPE') then return false end
    return info
end
local stream, group = named(info), nil
for _, one in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    one = named(one)
    if one['name'] == ARGV[1] then group = one end
end
local unread = ''
if not group or group['lag'] ~= 0 then
    local after = group and '(' .. group['last-delivered-id'] or '-'
    local first = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)[1]
    unread = first and first[1] or ''
end
if not group then return {stream['entries-added'], stream['length'], unread} end
local held, oldest = {}, {}
if group['pending'] > 0 then
    held = redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}
    oldest = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])
end
local added, length = stream['entries-added'], stream['length']
return {added, length, unread, group['entries-read'], group['lag'], held, oldest}
"""

# KEYS: streams. ARGV: group. Which of them, by their numbers from 1, have pending entries.
PENDING = """
local found = {}
for i, stream in ipairs(KEYS) do
    local pending = redis.pcall('XPENDING', stream, ARGV[1])
    if not pending.err and pending[1] > 0 then found[#found + 1] = i end
end
return found
"""

# KEYS: signs of life. ARGV: worker, ms after which one counts as gone, for how many ms it has not read all
# of its share, or ''. Shows that this worker lives, forgets who does not, and returns of each that lives
# its name and for how many ms it has not read all of its share, or ''. By the server's clock; a sign from
# the future is one from before that clock was put back.
BEAT = (
    FLAGS
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function digits(number) return string.format('%.0f', number) end
local caught_up = ARGV[3] ~= '' and digits(now - ARGV[3]) or ''
redis.call('HSET', KEYS[1], ARGV[1], digits(now) .. ' ' .. caught_up)
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[2])
local alive, known = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #known, 2 do
    local beat, until_ = string.match(known[i + 1], '^(%d+) (%d*)$')
    if not beat or math.abs(now - beat) > tonumber(ARGV[2]) then
        redis.call('HDEL', KEYS[1], known[i])
    else
        alive[#alive + 1] = known[i]
        alive[#alive + 1] = until_ ~= '' and digits(math.max(0, now - until_)) or ''
    end
end
return alive
"""
)

# KEYS: stream, ledger. ARGV: group, consumer, least idle ms, cursor, count. XAUTOCLAIM, counting in the
# same step the pending entries whose data was trimmed away: Redis forgets those as it names them. Redis 6.2
# does neither: it claims them and shows a nil for each. So those are looked for among what this consumer
# has pending in the part that was gone through; nothing of that is in the worker's hands meanwhile.
CLAIM = (
    FLAGS
    + """
redis.call('HLEN', KEYS[2])
local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
local found, gone = {}, reply[3] and #reply[3] or 0
local function forget(first, last)
    repeat
        local page = redis.call('XPENDING', KEYS[1], ARGV[1], first, last, 100, ARGV[2])
        for _, pending in ipairs(page) do
            local id = pending[1]
            if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
                gone = gone + redis.call('XACK', KEYS[1], ARGV[1], id)
            end
            first = '(' .. id
        end
    until #page < 100
end
for _, entry in ipairs(reply[2]) do
    if entry then found[#found + 1] = entry end
end
if #found < #reply[2] then
    forget(ARGV[4], reply[1] == '0-0' and '+' or '(' .. reply[1])
end
if gone > 0 then redis.call('HINCRBY', KEYS[2], 'trimmed:' .. KEYS[1], gone) end
return {reply[1], found, gone}
"""
)

# KEYS: tries of entries that are tried alone. ARGV: stream|id. Notes one try more; returns how many now.
TRY_ALONE = FLAGS + "return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"

# KEYS: ledger, streams. ARGV: oldest milliseconds to keep. Trims what is older, but never an entry that
# some group has not read or not acknowledged: one script, so that no group can appear in between. A stream
# without any group is left alone. Returns how many entries went, and counts them in the ledger, so that
# what others delete can be told.
TRIM = (
    FLAGS
    + """
local function parts(id)
    local millis, sequence = string.match(id, '^(%d+)-(%d+)$')
    return millis, sequence
end
local function pad(digits) return string.rep('0', 20 - #digits) .. digits end
local function before(a, b)
    local am, as = parts(a)
    local bm, bs = parts(b)
    if am ~= bm then return pad(am) < pad(bm) end
    return pad(as) < pad(bs)
end
local trimmed = 0
for i = 2, #KEYS do
    local stream, oldest = KEYS[i], ARGV[1] .. '-0'
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err or #groups == 0 then oldest = nil end
    for _, info in ipairs(groups) do
        local group = {}
        for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
        local kept = group['last-delivered-id']
        if group['pending'] > 0 then
            kept = redis.call('XPENDING', stream, group['name'])[2]
        end
        if oldest and before(kept, oldest) then oldest = kept end
    end
    local gone = oldest and redis.call('XTRIM', stream, 'MINID', oldest) or 0
    if gone > 0 then redis.call('HINCRBY', KEYS[1], 'dropped:' .. stream, gone) end
    trimmed = trimmed + gone
end
return trimmed
"""
)

# KEYS: lease. ARGV: mine, milliseconds, a holder known to be gone or ''. Takes or renews the lease when it
# is free, mine, or held by that one. Returns '' on success, else the holder.
LEASE = (
    FLAGS
    + """
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] or holder == ARGV[3] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ''
end
return holder
"""
)

# KEYS: lease. ARGV: mine. Gives the lease back, if it is still mine.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def digest(script: str) -> str:
    """Redis's own name for a script that it knows."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


class Keys:
    """Names of the keys that Sluice keeps in Redis for one consumer group."""

    def __init__(self, group: str) -> None:
        self.ledger = f"sluice:{group}:ledger"
        self.alone = f"sluice:{group}:alone"
        self.upkeep = f"sluice:{group}:upkeep"
        self.flood_accepted = f"sluice:{group}:flood_accepted"
        self._worker = f"sluice:{group}:worker:"
        self._alive = f"sluice:{group}:alive:"

    def ledger_of(self, stream: bytes) -> str:  # noqa: ARG002
        """The ledger that counts the entries of `stream`."""
        return self.ledger

    def ledgers(self, client: redis.Redis) -> list[str]:  # noqa: ARG002
        """All there are."""
        return [self.ledger]

    def together(self, streams: Sequence[bytes], most: int) -> Iterator[tuple[str, Sequence[bytes]]]:
        """`streams` in parts that one script may have, of at most `most`, with the ledger of each part."""
        return ((self.ledger, part) for part in chunks(streams, most))

    def alive(self, pattern: str) -> str:
        """Where workers that look for the same streams show that they live."""
        return self._alive + pattern

    def worker(self, consumer: str) -> str:
        return self._worker + consumer

    @property
    def workers(self) -> str:
        return self._worker + "*"
