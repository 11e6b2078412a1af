-- Touches: meta, flight:<id>, parts:<id>.
-- ARGV: flight, epoch, counter, task, attempt  -> 'fenced' | the attempt to run now: one more than ARGV[5], unless another counted it
if not holds(prefix .. 'flight:' .. ARGV[1], ARGV[2], ARGV[3]) then return 'fenced' end
local key, field = prefix .. 'parts:' .. ARGV[1], 'attempt:' .. ARGV[4]
if redis.call('HGET', key, field) == ARGV[5] then
  redis.call('HDEL', key, 'error:' .. ARGV[4])
  redis.call('HINCRBY', key, field, 1)
end
return redis.call('HGET', key, field)
