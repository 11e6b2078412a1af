-- Touches: meta, head:<dataset> (KEYS[2]), flight:<id>, members:<id>, parts:<id>, flights, waiting:…, lapse,
--   requests:…, delayed, and for each member what `finish` touches.
-- ARGV: 1 flight, 2 epoch, 3 counter, 4 confirmed at (seconds, '' as it was), 5 position (JSON, '' as it was), 6 session and 7 version
--       that these two speak of, 8 '1': the flight is over, 9 history (seconds), then triples: request id, terminal state, event | request id, 'queued', due (ms from now) + ' ' + cause (JSON)
-- -> 'fenced' | how many became terminal. Members that are terminal already (cancelled, expired) stay as they are.
-- A member without an answer goes back into its stream when the flight is over: no request is ever left behind.
local key = prefix .. 'flight:' .. ARGV[1]
if not holds(key, ARGV[2], ARGV[3]) then return 'fenced' end
local flight = redis.call('HMGET', key, 'dataset', 'slot')
local ended, now = 0, now_ms()
for i = 10, #ARGV, 3 do
  local id = ARGV[i]
  if ARGV[i + 1] == 'queued' then
    local request = prefix .. 'request:' .. id
    if redis.call('HGET', request, 'state') == 'running' then
      redis.call('HSET', request, 'state', 'queued')
      redis.call('HDEL', request, 'flight')
      redis.call('SREM', prefix .. 'members:' .. ARGV[1], id)
      local due, cause = string.match(ARGV[i + 2], '^(%d+) ?(.*)$')
      if cause ~= '' then note_cause(id, cause) end
      redis.call('ZADD', prefix .. 'delayed', int(now + due), id)
    end
  else
    ended = ended + finish(id, ARGV[i + 1], ARGV[i + 2], ARGV[9])
  end
end
-- A late answer says nothing about a head that moved on: it would put the position of the newer version back.
local head = redis.call('HMGET', KEYS[2], 'session', 'version', 'confirmed_at')
if head[1] == ARGV[6] and head[2] == ARGV[7] then
  local confirmed_at = ARGV[4] ~= '' and tonumber(ARGV[4]) > tonumber(head[3] or '0') and not_ahead(ARGV[4])
  if confirmed_at then redis.call('HSET', KEYS[2], 'confirmed_at', confirmed_at) end
  if ARGV[5] ~= '' then redis.call('HSET', KEYS[2], 'position', ARGV[5]) end
end
if ARGV[8] == '1' then
  for _, id in ipairs(redis.call('SMEMBERS', prefix .. 'members:' .. ARGV[1])) do requeue(id) end
  end_flight(ARGV[1], flight[1], flight[2])
end
return ended
