-- In log slots: one on a cluster, else any number. Touches of each log's slot, by five KEYS a log:
--   meta, log:<dataset>, logged:<dataset>, marks:<dataset>, ready.
-- ARGV: 1, 2 how long (ms) marks of named and of unnamed producers live, 3 pause between two looks at the marks (ms), then two a
--   log: dataset, id consumed: it and all before it are sealed in versions
-- -> for each log the entries left, or the error that it met
-- What was released is read off the first entry left: ids of another incarnation may be gone, their sum is not.
local KEYS_A_LOG, now, named, unnamed, pause = 5, now_ms(), ARGV[1], ARGV[2], tonumber(ARGV[3])

local function trim(stream, totals, marks_at, ready, dataset, consumed)
  local ms, seq = string.match(consumed, '^(%d+)-(%d+)$')
  local behind = ms .. '-' .. int(seq + 1)
  redis.call('XTRIM', stream, 'MINID', '=', behind)
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local logged = redis.call('HMGET', totals, 'appended', 'rows', 'marks_seen')
  local released, released_rows = logged[1] or '0', logged[2] or '0'
  if first then
    local entry = { d = '' }
    for i = 1, #first[2], 2 do entry[first[2][i]] = first[2][i + 1] end
    released, released_rows = int(entry.c - #entry.d - 64), int(entry.r - entry.n)
    redis.call('ZADD', ready, int(math.min(now, tonumber((string.match(first[1], '^%d+'))))), dataset)
  else
    redis.call('ZREM', ready, dataset)
  end
  if logged[1] then redis.call('HSET', totals, 'released', released, 'released_rows', released_rows) end
  if logged[1] and now - tonumber(logged[3] or '0') > pause then
    local marks = redis.call('HGETALL', marks_at)
    for i = 1, #marks, 2 do
      local lives = string.sub(marks[i], 1, 1) == '~' and unnamed or named
      local at = string.match(marks[i + 1], '^%d+ (%d+)')
      if now - at > tonumber(lives) then redis.call('HDEL', marks_at, marks[i]) end
    end
    redis.call('HSET', totals, 'marks_seen', int(now))
  end
  return first and redis.call('XLEN', stream) or 0
end

local left = {}
for i = 1, #KEYS / KEYS_A_LOG do
  local _, stream, totals, marks, ready = unpack(KEYS, (i - 1) * KEYS_A_LOG + 1, i * KEYS_A_LOG)
  local ran, answer = pcall(trim, stream, totals, marks, ready, ARGV[2 + 2 * i], ARGV[3 + 2 * i])
  left[i] = ran and answer or redis.error_reply(type(answer) == 'table' and answer.err or answer)
end
return left
