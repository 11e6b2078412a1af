-- Touches: meta, responses:<target> (KEYS[2]), retries:<target> (KEYS[3]), request:<id> of those shown again.
-- ARGV: 1 entry id, 2 due (ms from now), 3 event   | '' , '', '' : show the due ones again
-- -> how many were shown again
if ARGV[1] ~= '' then
  redis.call('XACK', KEYS[2], 'readers', ARGV[1])
  if redis.call('XDEL', KEYS[2], ARGV[1]) == 1 then redis.call('ZADD', KEYS[3], int(now_ms() + ARGV[2]), ARGV[3]) end
  return 0
end
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', int(now_ms()), 'LIMIT', 0, 100)
for _, event in ipairs(due) do
  redis.call('ZREM', KEYS[3], event)
  local entry = redis.call('XADD', KEYS[2], '*', 'e', event)
  local request = prefix .. 'request:' .. (string.match(event, '"id":"([^"]+)"') or '')
  if redis.call('EXISTS', request) == 1 then redis.call('HSET', request, 'entry', entry) end
end
return #due
