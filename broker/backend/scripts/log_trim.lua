-- In a log slot. Touches: meta, log:<dataset> (KEYS[2]), logged:<dataset> (KEYS[3]), marks:<dataset> (KEYS[4]), ready (KEYS[5]).
-- ARGV: 1 dataset, 2 id consumed: it and all before it are sealed in versions; 3, 4 how long (ms) marks of named and of unnamed
--   producers live, 5 pause between two looks at the marks (ms)
-- -> entries left
-- What was released is read off the first entry left: ids of another incarnation may be gone, their sum is not.
local now = now_ms()
local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
local behind = ms .. '-' .. int(seq + 1)
redis.call('XTRIM', KEYS[2], 'MINID', '=', behind)
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local logged = redis.call('HMGET', KEYS[3], 'appended', 'rows', 'marks_seen')
local released, released_rows = logged[1] or '0', logged[2] or '0'
if first then
  local entry = { d = '' }
  for i = 1, #first[2], 2 do entry[first[2][i]] = first[2][i + 1] end
  released, released_rows = int(entry.c - #entry.d - 64), int(entry.r - entry.n)
  redis.call('ZADD', KEYS[5], int(math.min(now, tonumber((string.match(first[1], '^%d+'))))), ARGV[1])
else
  redis.call('ZREM', KEYS[5], ARGV[1])
end
if logged[1] then redis.call('HSET', KEYS[3], 'released', released, 'released_rows', released_rows) end
if logged[1] and now - tonumber(logged[3] or '0') > tonumber(ARGV[5]) then
  local marks = redis.call('HGETALL', KEYS[4])
  for i = 1, #marks, 2 do
    local lives = string.sub(marks[i], 1, 1) == '~' and ARGV[4] or ARGV[3]
    local at = string.match(marks[i + 1], '^%d+ (%d+)')
    if now - at > tonumber(lives) then redis.call('HDEL', KEYS[4], marks[i]) end
  end
  redis.call('HSET', KEYS[3], 'marks_seen', int(now))
end
return redis.call('XLEN', KEYS[2])
