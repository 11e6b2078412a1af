-- Touches: meta, the listener's lease (KEYS[2]), heard (KEYS[3]).
-- ARGV: epoch, counter, how long to remember it (ms), then slot and position in turn  -> 'fenced' | 'kept'
if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 'fenced' end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 'kept'
