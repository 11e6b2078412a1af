-- Touches: meta, head:<dataset> (KEYS[2]), flight:<id>, members:<id>, parts:<id>, flights, waiting:…, lapse, and for each member what `finish` touches.
-- ARGV: 1 flight, 2 epoch, 3 counter, 4 confirmed at (seconds, '' as it was), 5 position (JSON, '' as it was), 6 '1': the flight is over,
--       7 history (seconds), then triples: request id, terminal state, event | request id, 'queued', due (ms from now)
-- -> 'fenced' | how many became terminal. Members that are terminal already (cancelled, expired) stay as they are.
local key = prefix .. 'flight:' .. ARGV[1]
if not holds(key, ARGV[2], ARGV[3]) then return 'fenced' end
local flight = redis.call('HMGET', key, 'dataset', 'slot')
local ended, now = 0, now_ms()
for i = 8, #ARGV, 3 do
  local id = ARGV[i]
  if ARGV[i + 1] == 'queued' then
    local request = prefix .. 'request:' .. id
    if redis.call('HGET', request, 'state') == 'running' then
      redis.call('HSET', request, 'state', 'queued')
      redis.call('HDEL', request, 'flight')
      redis.call('SREM', prefix .. 'members:' .. ARGV[1], id)
      redis.call('ZADD', prefix .. 'delayed', int(now + ARGV[i + 2]), id)
    end
  else
    ended = ended + finish(id, ARGV[i + 1], ARGV[i + 2], ARGV[7])
  end
end
if ARGV[4] ~= '' and tonumber(ARGV[4]) > (tonumber(redis.call('HGET', KEYS[2], 'confirmed_at') or '0')) then
  redis.call('HSET', KEYS[2], 'confirmed_at', ARGV[4])
end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[2], 'position', ARGV[5]) end
if ARGV[6] == '1' then end_flight(ARGV[1], flight[1], flight[2]) end
return ended
