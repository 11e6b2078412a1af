-- Touches: meta, flights, flight:<id>, members:<id>, request:<id> of the members.
-- ARGV: flight, epoch, counter  -> 'fenced' | {id, body, attempts, ...}: nobody joins from now on. Idempotent.
local key = prefix .. 'flight:' .. ARGV[1]
if not holds(key, ARGV[2], ARGV[3]) then return 'fenced' end
redis.call('HSET', key, 'state', 'closed')
-- A production is over when it is closed, so the next may begin while this one is being answered. A derivation is yet to be made.
local flight = redis.call('HMGET', key, 'kind', 'slot')
if flight[1] == 'produce' and redis.call('HGET', prefix .. 'flights', flight[2]) == ARGV[1] then
  redis.call('HDEL', prefix .. 'flights', flight[2])
end
local members = {}
for _, id in ipairs(redis.call('SMEMBERS', prefix .. 'members:' .. ARGV[1])) do
  local r = redis.call('HMGET', prefix .. 'request:' .. id, 'body', 'attempts', 'state')
  if r[3] == 'running' then
    members[#members + 1], members[#members + 2], members[#members + 3] = id, r[1], r[2]
  end
end
return members
