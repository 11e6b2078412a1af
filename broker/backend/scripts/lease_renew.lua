-- Touches: meta, the lease (KEYS[2]).
-- ARGV: epoch, counter, milliseconds (0 releases it)  -> 1 | 0 when it is lost
if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 0 end
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[2])
else
  redis.call('HSET', KEYS[2], 'until', int(now_ms() + ARGV[3]))
  redis.call('PEXPIRE', KEYS[2], ARGV[3] * 10)
end
return 1
