-- Touches: meta, the lease (KEYS[2]), head:<dataset> of each log to look at meanwhile (KEYS[3..]).
-- ARGV: owner, milliseconds  -> epoch, counter, run id, then the heads (prelude) | nothing when somebody else holds it
local run, epoch = incarnation()
local lease = redis.call('HMGET', KEYS[2], 'owner', 'epoch', 'until')
local now = now_ms()
if lease[1] and lease[1] ~= ARGV[1] and lease[2] == epoch and tonumber(lease[3]) > now then return nil end
local heads = heads_from(3)
local counter = int(redis.call('HINCRBY', KEYS[1], 'counter', 1))
redis.call('HSET', KEYS[2], 'owner', ARGV[1], 'epoch', epoch, 'counter', counter, 'until', int(now + ARGV[2]))
redis.call('PEXPIRE', KEYS[2], ARGV[2] * 10)
return { epoch, counter, run, unpack(heads) }
