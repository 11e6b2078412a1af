-- Touches: meta, parts:<id>.
-- ARGV: 1 flight, 2 task (number of a part | 'finalise'), 3 attempt, 4 'done' | 'error', 5 result or error (JSON), 6 rows, 7 bytes
-- -> 'gone' (the flight is over) | 'more' | 'last' (no part is left)
-- The first result of a task counts, whichever attempt made it; only the present attempt's error does. Idempotent.
local key = prefix .. 'parts:' .. ARGV[1]
if redis.call('HEXISTS', key, 'plan') == 0 then return 'gone' end
local done = 'done:' .. ARGV[2]
if redis.call('HEXISTS', key, done) == 0 then
  if ARGV[4] == 'done' then
    redis.call('HSET', key, done, ARGV[5])
    redis.call('HDEL', key, 'error:' .. ARGV[2])
    if ARGV[2] ~= 'finalise' then
      redis.call('HINCRBY', key, 'left', -1)
      redis.call('HINCRBY', key, 'rows', ARGV[6])
      redis.call('HINCRBY', key, 'bytes', ARGV[7])
    end
  elseif redis.call('HGET', key, 'attempt:' .. ARGV[2]) == ARGV[3] then
    redis.call('HSET', key, 'error:' .. ARGV[2], ARGV[5])
  end
end
return redis.call('HGET', key, 'left') == '0' and 'last' or 'more'
