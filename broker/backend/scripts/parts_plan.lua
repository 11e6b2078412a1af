-- Touches: meta, flight:<id>, parts:<id>.
-- ARGV: flight, epoch, counter, plan (JSON), number of parts  -> 'fenced' | 'planned' | 'there' (a plan stands already)
if not holds(prefix .. 'flight:' .. ARGV[1], ARGV[2], ARGV[3]) then return 'fenced' end
local key = prefix .. 'parts:' .. ARGV[1]
if redis.call('EXISTS', key) == 1 then return 'there' end
redis.call('HSET', key, 'plan', ARGV[4], 'total', ARGV[5], 'left', ARGV[5], 'rows', 0, 'bytes', 0, 'attempt:finalise', 1)
for i = 0, tonumber(ARGV[5]) - 1 do redis.call('HSET', key, 'attempt:' .. i, 1) end
return 'planned'
