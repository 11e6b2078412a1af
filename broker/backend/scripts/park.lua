-- Touches: meta, requests:…, request:<id>, parked, inflight, backlog:….
-- ARGV: '1' park | '0' ring again, then for each: stream, entry id, request id
-- A worker that reads an entry of a dataset it does not serve parks it; any worker that serves it puts it in front of its line.
-- Parked is not in work, so a dataset that nobody serves holds up no other of its tenant.
for i = 2, #ARGV, 3 do
  local id = ARGV[i + 2]
  local key = prefix .. 'request:' .. id
  if ARGV[1] == '1' then
    redis.call('XACK', ARGV[i], 'producers', ARGV[i + 1])
    redis.call('XDEL', ARGV[i], ARGV[i + 1])
    local r = redis.call('HMGET', key, 'state', 'tenant', 'dataset')
    if r[1] == 'queued' and redis.call('HSETNX', prefix .. 'parked', id, r[3]) == 1 then
      redis.call('HSET', key, 'wait', 'no-producer')
      leave_work(r[2])
    end
  elseif redis.call('HDEL', prefix .. 'parked', id) == 1 then
    local r = redis.call('HMGET', key, 'tenant', 'priority')
    if r[1] then
      redis.call('HSET', key, 'wait', 'backlog')
      redis.call('LPUSH', line_of(r[1], r[2]), id)
      admit(r[1])
    end
  end
end
