-- Appends events of the users of one bucket: duplicates dropped, order kept, sequences capped, the outbox written.
-- KEYS: 1 last commit_seq, 2 outbox (a stream), 3 erased users (a hash), from 4 on the users' sequences.
-- ARGV: 1 cap, 2 most rows in the outbox, 3 256 times 0 or 1: whether the action takes a slot, 4 "1": write the outbox;
--       then for each event: the place of its user in KEYS, the row in front of commit_seq, action and id length,
--       item id, the event as JSON.
-- Answers one number an event: 1 accepted, 0 duplicate, -1 the user was erased later than the event.
-- The value's layout stands in packed.py. Numbers are compared and not strings: Lua sorts strings by the server's locale.
local EMPTY, ROW, PER_EVENT = string.char(2, 0, 0), 28, 5
local cap, max_outbox, takes_slot, logged = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local num_events = (#ARGV - 4) / PER_EVENT
if logged and redis.call('XLEN', KEYS[2]) + num_events > max_outbox then
  return redis.error_reply('OUTBOXFULL ' .. max_outbox)
end

local function newer(rows, at, time, hash_high, hash_low)
  local t, h, l = struct.unpack('>I6I4I4', rows, at + 1)
  if t ~= time then return t > time end
  if h ~= hash_high then return h > hash_high end
  return l > hash_low
end

local function holds(rows, hash)
  local found = string.find(rows, hash, 1, true)
  while found do
    if (found - 1) % ROW == 6 then return true end
    found = string.find(rows, hash, found + 1, true)
  end
  return false
end

local function slot(rows, number)
  return string.byte(takes_slot, string.byte(rows, number * ROW + 27) + 1)
end

-- Without the oldest event of the kind, where there are more than `cap`.
local function capped(rows, ids, kind)
  local n, count, last = #rows / ROW, 0, nil
  for i = 0, n - 1 do
    if slot(rows, i) == kind then count, last = count + 1, i end
  end
  if count <= cap then return rows, ids end
  local id_end = #ids
  for i = last + 1, n - 1 do id_end = id_end - string.byte(rows, i * ROW + 28) end
  local id_start = id_end - string.byte(rows, last * ROW + 28)
  return string.sub(rows, 1, last * ROW) .. string.sub(rows, last * ROW + 29),
    string.sub(ids, 1, id_start) .. string.sub(ids, id_end + 1)
end

local commit_seq = tonumber(redis.call('GET', KEYS[1]) or '0')
local sequences, changed, outcomes = {}, {}, {}
for e = 1, num_events do
  local a = 4 + (e - 1) * PER_EVENT
  local user, head, tail, item_id, body = tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5]
  local key = KEYS[user]
  if not sequences[key] then
    local value = redis.call('GET', key) or EMPTY
    local n = struct.unpack('>H', value, 2)
    local erased = redis.call('HGET', KEYS[3], key)
    sequences[key] = {
      rows = string.sub(value, 4, 3 + n * ROW), ids = string.sub(value, 4 + n * ROW),
      erased = erased and struct.unpack('>I6', erased),
    }
  end
  local sequence = sequences[key]
  local time, hash = struct.unpack('>I6', head), string.sub(head, 7, 14)
  if sequence.erased and time <= sequence.erased then
    outcomes[e] = -1
  elseif holds(sequence.rows, hash) then
    outcomes[e] = 0
  else
    outcomes[e] = 1
    local seq = 0
    if logged then
      commit_seq = commit_seq + 1
      seq = commit_seq
      redis.call('XADD', KEYS[2], seq .. '-0', 'event', body)
    end
    local row = head .. struct.pack('>I6', seq) .. tail
    local rows, ids = sequence.rows, sequence.ids
    local high, low = struct.unpack('>I4I4', hash)
    local place, id_place = 0, 0
    while place < #rows and newer(rows, place, time, high, low) do
      id_place = id_place + string.byte(rows, place + 28)
      place = place + ROW
    end
    rows = string.sub(rows, 1, place) .. row .. string.sub(rows, place + 1)
    ids = string.sub(ids, 1, id_place) .. item_id .. string.sub(ids, id_place + 1)
    if #rows > cap * ROW then rows, ids = capped(rows, ids, string.byte(takes_slot, string.byte(tail, 1) + 1)) end
    sequence.rows, sequence.ids = rows, ids
    changed[key] = true
  end
end
for key in pairs(changed) do
  local sequence = sequences[key]
  redis.call('SET', key, string.char(2) .. struct.pack('>H', #sequence.rows / ROW) .. sequence.rows .. sequence.ids)
end
if logged then redis.call('SET', KEYS[1], string.format('%.0f', commit_seq)) end
return outcomes
