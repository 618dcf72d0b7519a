"""What a node of a cluster must do as one with dead letters: Lua, each with its contract.

A dead letter and its entry are in different slots there, which no script and no MULTI has together. So the
letter is added first, with a note beside it that it was; then the entry is acknowledged. A crash in between
leaves the entry pending, and the note: the next attempt adds no second letter.
"""

from __future__ import annotations

from redis_scripts import FLAGS

# KEYS: dead-letter stream, a note for each letter. ARGV: ms to keep notes, then for each letter n field
# value…  Adds the letters that have no note yet. Returns for each its ID, or '' where it was there.
ADD_LETTERS = (
    FLAGS
    + """
local answer, i = {}, 2
for k = 2, #KEYS do
    local n, id = tonumber(ARGV[i]), ''
    local note = 'shared'  -- somebody else relies on the letter too
    if redis.call('EXISTS', KEYS[k]) == 0 then
        id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 1, i + n))
        note = id
    end
    redis.call('SET', KEYS[k], note, 'PX', ARGV[1])
    answer[#answer + 1] = id
    i = i + n + 1
end
return answer
"""
)

# KEYS: dead-letter stream, note. ARGV: ms to keep the note, original stream and ID. The end of the MULTI
# that begins with the XADD of a letter too wide for a script, which is taken back where it was there.
# Otherwise as above.
NOTE_WIDE_LETTER = (
    FLAGS
    + """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest or newest[2][2] ~= ARGV[2] or newest[2][4] ~= ARGV[3] then
    return redis.error_reply('ERR the dead letter was not added')
end
local id, note = newest[1], newest[1]
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('XDEL', KEYS[1], id)
    id, note = '', 'shared'
end
redis.call('SET', KEYS[2], note, 'PX', ARGV[1])
return id
"""
)

# KEYS: dead-letter stream, a note for each letter. ARGV: ms to keep notes, then for each letter whether its
# entry was acknowledged for it ('1' or '0'), and its ID where it was added just now, or ''. The note stays
# for a while then: a failover may bring the entry back. A letter goes, with its note, where somebody else
# has settled the entry otherwise meanwhile, and nobody relies on it.
FINISH_LETTERS = (
    FLAGS
    + """
for k = 2, #KEYS do
    local settled, id = ARGV[2 * k - 2], ARGV[2 * k - 1]
    if settled == '1' then
        redis.call('PEXPIRE', KEYS[k], ARGV[1])
    elseif id ~= '' and redis.call('GET', KEYS[k]) == id then
        redis.call('XDEL', KEYS[1], id)
        redis.call('DEL', KEYS[k])
    end
end
return 0
"""
)
