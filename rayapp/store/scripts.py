"""The short server-side scripts of `redis.py`. Each runs whole: no other client's command comes in between.

Their keys and arguments stand where they are called. The long one, for events, is `append.lua`.
"""

from typing import Final

COMMIT: Final = """
if redis.call('XLEN', KEYS[2]) + (#ARGV - 1) / 2 > tonumber(ARGV[1]) then return redis.error_reply('OUTBOXFULL') end
for i = 2, #ARGV, 2 do
  redis.call('XADD', KEYS[2], redis.call('INCR', KEYS[1]) .. '-0', ARGV[i], ARGV[i + 1])
end
"""
PUT_USER: Final = """
if redis.call('XLEN', KEYS[2]) + 1 > tonumber(ARGV[1]) then return redis.error_reply('OUTBOXFULL') end
redis.call('XADD', KEYS[2], redis.call('INCR', KEYS[1]) .. '-0', ARGV[2], ARGV[3])
local old = redis.call('HGET', KEYS[3], ARGV[4])
if not old or cjson.decode(old).effective_at_ms <= tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[3])
end
"""
READ: Final = """
local rows = redis.call('XRANGE', KEYS[2], ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
return {redis.call('GET', KEYS[1]) or '0', rows}
"""
AGREE: Final = """
local kept = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1], 'BYSCORE')
if kept[1] then return kept[1] end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  if tonumber(ARGV[1]) < tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]) then return false end
  redis.call('ZPOPMIN', KEYS[1])
end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
"""
ADVANCE: Final = """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return end
local rows = redis.call('XRANGE', KEYS[2], '-', '+')
redis.call('SET', KEYS[1], ARGV[1])
for _, row in ipairs(rows) do
  redis.call('XADD', KEYS[2], redis.call('INCR', KEYS[1]) .. '-0', row[2][1], row[2][2])
end
if #rows > 0 then redis.call('XTRIM', KEYS[2], 'MINID', ARGV[1] .. '-1') end
"""
SHOW: Final = """
local erased = redis.call('HGET', KEYS[1], KEYS[2])
if erased and struct.unpack('>I6', ARGV[2]) <= struct.unpack('>I6', erased) then return end
local keep, rows, known = tonumber(ARGV[1]), {}, {}
for at = 1, #ARGV[3], 8 do
  local hash = string.sub(ARGV[3], at, at + 7)
  if not known[hash] and #rows < keep then rows[#rows + 1] = ARGV[2] .. hash end
  known[hash] = true
end
local old = redis.call('GET', KEYS[3]) or ''
for at = 1, #old, 14 do
  local row = string.sub(old, at, at + 13)
  if #rows < keep and not known[string.sub(row, 7)] then rows[#rows + 1] = row end
end
redis.call('SET', KEYS[3], table.concat(rows))
"""
ERASE: Final = """
redis.call('DEL', KEYS[2], KEYS[4])
redis.call('HDEL', KEYS[3], ARGV[2])
local old = redis.call('HGET', KEYS[1], KEYS[2])
if not old or struct.unpack('>I6', old) < struct.unpack('>I6', ARGV[1]) then
  redis.call('HSET', KEYS[1], KEYS[2], ARGV[1])
end
"""
PUT_ITEM: Final = """
if ARGV[3] and (redis.call('HGET', KEYS[2], ARGV[1]) or '') ~= ARGV[3] then return 0 end
local number = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], number, ARGV[1])
return number
"""
