-- Touches: meta, flight:<id>, members:<id>, lapse.
-- ARGV: flight, epoch, counter, lease (ms), progress (JSON, '' unchanged)  -> 'held' | 'fenced' | 'deserted' (no member is left to answer)
local key = prefix .. 'flight:' .. ARGV[1]
if not holds(key, ARGV[2], ARGV[3]) then return 'fenced' end
local till = int(now_ms() + ARGV[4])
redis.call('HSET', key, 'until', till)
if ARGV[5] ~= '' then redis.call('HSET', key, 'progress', ARGV[5]) end
redis.call('ZADD', prefix .. 'lapse', till, ARGV[1])
if redis.call('SCARD', prefix .. 'members:' .. ARGV[1]) == 0 then
  redis.call('HSET', key, 'state', 'closed') -- it is about to be killed: nobody may join and suffer from that
  return 'deserted'
end
return 'held'
