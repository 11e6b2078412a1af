-- Touches: meta, flight:<id>, members:<id>, request:<id> of the members, lapse.
-- ARGV: flight, worker, lease (ms)  -> {epoch, counter, kind, dataset, attempts of the most tried member, started (ms)} | nothing when it is held or over
-- Every member notes the lost attempt as one of its causes.
-- A closed flight stays closed: its version may be sealed already, and who asks now must not get what was made before.
local _, epoch = incarnation()
local key, now = prefix .. 'flight:' .. ARGV[1], now_ms()
local f = redis.call('HMGET', key, 'epoch', 'until', 'kind', 'dataset', 'owner', 'started')
if not f[1] then
  redis.call('ZREM', prefix .. 'lapse', ARGV[1])
  return nil
end
if f[1] == epoch and tonumber(f[2]) > now then return nil end
local counter = int(redis.call('HINCRBY', KEYS[1], 'counter', 1))
redis.call('HSET', key, 'owner', ARGV[2], 'epoch', epoch, 'counter', counter, 'until', int(now + ARGV[3]))
redis.call('ZADD', prefix .. 'lapse', int(now + ARGV[3]), ARGV[1])
local most, cause = 0, cjson.encode({ code = 'attempt-failed', what = 'its worker fell silent', of = ARGV[1], why = f[5] .. ' held the flight past its lease', hint = '' })
for _, id in ipairs(redis.call('SMEMBERS', prefix .. 'members:' .. ARGV[1])) do
  note_cause(id, cause)
  most = math.max(most, redis.call('HINCRBY', prefix .. 'request:' .. id, 'attempts', 1))
end
return { epoch, counter, f[3], f[4], most, f[6] or '0' }
