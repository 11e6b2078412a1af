-- In a log slot. Touches: meta, log:<dataset> (KEYS[2]), logged:<dataset> (KEYS[3]), marks:<dataset> (KEYS[4]), ready (KEYS[5]).
-- ARGV: 1 dataset, 2 producer, 3 block, 4 author ('-': the number alone tells blocks apart), 5 kind, 6 rows, 7 payload ('' mark only),
--   8 session that its types are of ('' any), 9 most unbatched bytes, 10 memory ratio (percent)
-- -> {'accepted'|'same', entry id} | {'gap', number expected} | {'taken', mark} | {'reconcile'|'full'|'memory'}
-- An entry's c and r are the dataset's bytes and rows so far in this slot, itself included.
local OVERHEAD, MEMORY_EVERY, LARGE = 64, 64, 16384
local run = incarnation()
local logged = redis.call('HMGET', KEYS[3], 'run', 'appended', 'rows', 'released')
if logged[1] ~= run then return { 'reconcile' } end

local block, mark, author, id = tonumber(ARGV[3]), 0, '', ''
local known = redis.call('HGET', KEYS[4], ARGV[2])
if known then
  local number
  number, author, id = string.match(known, '^(%d+) %d+ (%S+) (%S+)$')
  mark = tonumber(number)
end
if block <= mark then
  local mine = ARGV[4] == '-' or (block == mark and (author == ARGV[4] or author == '?'))
  if not mine then return { 'taken', int(mark) } end
  return { 'same', block == mark and id or '' }
end
if block ~= mark + 1 then return { 'gap', int(mark + 1) } end

local appended, rows = tonumber(logged[2]) + #ARGV[7] + OVERHEAD, tonumber(logged[3]) + tonumber(ARGV[6])
if appended - tonumber(logged[4]) > tonumber(ARGV[9]) then return { 'full' } end
local appends = redis.call('HINCRBY', KEYS[1], 'appends', 1)
local full = redis.call('HGET', KEYS[1], 'full') == '1'
if full or #ARGV[7] >= LARGE or appends % MEMORY_EVERY == 1 then
  local memory = redis.call('INFO', 'memory')
  local used, limit = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
  full = limit > 0 and used * 100 > limit * ARGV[10]
  redis.call('HSET', KEYS[1], 'full', full and '1' or '0')
end
if full then return { 'memory' } end

local fields = { 'p', ARGV[2], 'b', ARGV[3], 'k', ARGV[5], 'n', ARGV[6], 'c', int(appended), 'r', int(rows) }
if ARGV[7] ~= '' then fields[#fields + 1], fields[#fields + 2] = 'd', ARGV[7] end
if ARGV[8] ~= '' then fields[#fields + 1], fields[#fields + 2] = 's', ARGV[8] end
local entry = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('HSET', KEYS[3], 'appended', int(appended), 'rows', int(rows))
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3] .. ' ' .. int(now_ms()) .. ' ' .. ARGV[4] .. ' ' .. entry)
redis.call('ZADD', KEYS[5], 'NX', int(now_ms()), ARGV[1])
return { 'accepted', entry }
