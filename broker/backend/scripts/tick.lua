-- Touches: meta, delayed, requests:…, deadlines, lapse, parked.
-- ARGV: most of each  -> {ids past their deadline}, {flight, dataset, ...} past their lease, {id, dataset, ...} parked
-- Delayed requests that are due get their bell. A lapsed flight that was shown goes behind those that wait to be: it stays
-- overdue, for `until` says so, and one that nobody serves hides no other.
local _, epoch = incarnation()
local now = int(now_ms())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', prefix .. 'delayed', id)
  ring(id)
end
local lapsed = {}
local function add(flight)
  local dataset = redis.call('HGET', prefix .. 'flight:' .. flight, 'dataset')
  if not dataset then return redis.call('ZREM', prefix .. 'lapse', flight) end
  redis.call('ZADD', prefix .. 'lapse', now, flight)
  lapsed[#lapsed + 1], lapsed[#lapsed + 2] = flight, dataset
end
local seen = redis.call('HGET', KEYS[1], 'lapsed_epoch')
if seen ~= epoch then
  -- Redis restarted: every lease is void at once, not only those whose time is over.
  local void = seen and redis.call('ZRANGE', prefix .. 'lapse', 0, -1) or {}
  for _, flight in ipairs(void) do redis.call('ZADD', prefix .. 'lapse', 0, flight) end
  redis.call('HSET', KEYS[1], 'lapsed_epoch', epoch)
end
for _, flight in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'lapse', '-inf', now, 'LIMIT', 0, ARGV[1])) do add(flight) end
-- Of the parked ones a page at a time: there may be as many as requests for which no producer lives.
local at = redis.call('HGET', KEYS[1], 'parked_at') or '0'
local page = redis.call('HSCAN', prefix .. 'parked', at, 'COUNT', ARGV[1])
if page[1] ~= at then redis.call('HSET', KEYS[1], 'parked_at', page[1]) end
return {
  redis.call('ZRANGEBYSCORE', prefix .. 'deadlines', '-inf', now, 'LIMIT', 0, ARGV[1]),
  lapsed,
  page[2],
}
