-- In a log slot. Touches: meta, log:<dataset> (KEYS[2]), logged:<dataset> (KEYS[3]), marks:<dataset> (KEYS[4]), ready (KEYS[5]).
-- ARGV: 1 dataset, 2 run to open it for ('' looks only), 3 id consumed so far, 4 clock margin (ms), then for each sealed mark:
--   producer, block, time (ms)
-- -> {'open'} | {'opened'} | {'closed', run to open it for}
-- After a loss or a restart of Redis, from what is sealed: read behind the look that told the run, or another loss may lie in
-- between, and versions that nobody knew of. New ids must grow past every id that a version consumed, or that a batch of the
-- incarnation before, still on its way, may consume: its clock may have been ahead.
local run = incarnation()
if redis.call('HGET', KEYS[3], 'run') == run then return { 'open' } end
if ARGV[2] ~= run then return { 'closed', run } end

local function ms_of(id) return tonumber((string.match(id, '^%d+'))) end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local floor_ms = math.max(now_ms() + ARGV[4], ms_of(ARGV[3]) + 1)
local stream = redis.call('EXISTS', KEYS[2]) == 1 and redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, stream and #stream or 0, 2 do
  if stream[i] == 'last-generated-id' then floor_ms = math.max(floor_ms, ms_of(stream[i + 1]) + 1) end
end
local floor = int(floor_ms) .. '-0'

local appended, rows = '0', '0'
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'c' then appended = last[2][i + 1] elseif last[2][i] == 'r' then rows = last[2][i + 1] end
  end
end
redis.call('XADD', KEYS[2], floor, 'floor', '')
redis.call('XDEL', KEYS[2], floor)
for i = 5, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[4], ARGV[i])
  if not known or tonumber(string.match(known, '^%d+')) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2] .. ' ? -')
  end
end
local logged = redis.call('HMGET', KEYS[3], 'appended', 'rows', 'released', 'released_rows')
redis.call('HSET', KEYS[3], 'run', run, 'appended', logged[1] or appended, 'rows', logged[2] or rows,
  'released', logged[3] or appended, 'released_rows', logged[4] or rows)
if last then redis.call('ZADD', KEYS[5], 'NX', int(now_ms()), ARGV[1]) end
return { 'opened' }
