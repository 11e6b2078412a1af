-- Touches: meta, cursors:<dataset> (KEYS[2]).
-- ARGV: 'report', name, fields (JSON), lease (ms) | 'renew', name, version, lease (ms) | 'list', grace (ms)
-- report -> nothing. renew -> 1, or 0: it is not known at this version. list -> now (ms), when this Redis began to remember cursors (ms), then name, end of lease (ms), fields for each.
-- A cursor whose lease ended longer than `grace` ago is forgotten.
incarnation()
local now = now_ms()
if ARGV[1] == 'report' then
  redis.call('HSET', KEYS[2], ARGV[2], int(now + ARGV[4]) .. ' ' .. ARGV[3])
  return
end
if ARGV[1] == 'renew' then
  local fields = string.match(redis.call('HGET', KEYS[2], ARGV[2]) or '', '^%d+ (.*)$')
  if not fields or cjson.decode(fields).version ~= tonumber(ARGV[3]) then return 0 end
  redis.call('HSET', KEYS[2], ARGV[2], int(now + ARGV[4]) .. ' ' .. fields)
  return 1
end
local found, known = { int(now), redis.call('HGET', KEYS[1], 'born') or int(now) }, redis.call('HGETALL', KEYS[2])
for i = 1, #known, 2 do
  local till, fields = string.match(known[i + 1], '^(%d+) (.*)$')
  if tonumber(till) + ARGV[2] < now then
    redis.call('HDEL', KEYS[2], known[i])
  else
    found[#found + 1], found[#found + 2], found[#found + 3] = known[i], till, fields
  end
end
return found
