-- Touches: meta, requests:… (the streams in ARGV), request:<id>, head:<dataset>, flights, flight:<id>, members:<id>, waiting:…, lapse.
-- ARGV: 1 worker, 2 lease (ms), 3 most members of a flight, then for each entry read: stream, entry id, request id, fresh flight id
-- -> for each entry: {'lead', request, dataset, priority, attempts, flight, epoch, counter, kind, head's version, its position, started (ms)}
--    | {'join'|'wait'|'gone'|'expired', request}
-- The entry is only a bell: it is acknowledged and deleted here, and from then on the flight's lease keeps the request.
local _, epoch = incarnation()
local now, results, heads = now_ms(), {}, {}
local function head_of(dataset)
  if not heads[dataset] then
    local tenant, name = string.match(dataset, '^([^/]+)/[^/]+/([^/]+)$')
    heads[dataset] = redis.call('HMGET', prefix .. 'head:' .. tenant .. '/' .. name, 'version', 'position', 'confirmed_at')
  end
  return heads[dataset]
end

for i = 4, #ARGV, 4 do
  local id, key = ARGV[i + 2], prefix .. 'request:' .. ARGV[i + 2]
  redis.call('XACK', ARGV[i], 'producers', ARGV[i + 1])
  redis.call('XDEL', ARGV[i], ARGV[i + 1])
  local r = redis.call('HMGET', key, 'state', 'dataset', 'staleness', 'derivation', 'deadline', 'priority')
  if r[1] ~= 'queued' then
    results[#results + 1] = { 'gone', id }
  elseif r[5] and tonumber(r[5]) <= now then
    results[#results + 1] = { 'expired', id }
  else
    local head = head_of(r[2])
    local confirmed = tonumber(head[3] or '0') -- 0: nothing of this session was ever confirmed
    local fresh = r[3] ~= '' and head[1] and confirmed > 0 and now - confirmed * 1000 <= tonumber(r[3])
    local slot = r[2] .. (fresh and '|derive|' .. r[4] or '|produce')
    local flight = redis.call('HGET', prefix .. 'flights', slot)
    local mine, counter = false, false
    if not flight then
      flight, mine = ARGV[i + 3], true
      counter = int(redis.call('HINCRBY', KEYS[1], 'counter', 1))
      redis.call('HSET', prefix .. 'flights', slot, flight)
      redis.call('HSET', prefix .. 'flight:' .. flight, 'dataset', r[2], 'slot', slot, 'kind', fresh and 'derive' or 'produce',
        'state', 'open', 'owner', ARGV[1], 'epoch', epoch, 'counter', counter, 'until', int(now + ARGV[2]), 'started', int(now))
      redis.call('ZADD', prefix .. 'lapse', int(now + ARGV[2]), flight)
    end
    local f = redis.call('HMGET', prefix .. 'flight:' .. flight, 'state', 'epoch', 'counter', 'kind', 'started')
    if f[1] == 'open' and redis.call('SCARD', prefix .. 'members:' .. flight) < tonumber(ARGV[3]) then
      redis.call('SADD', prefix .. 'members:' .. flight, id)
      local attempts = redis.call('HINCRBY', key, 'attempts', 1)
      redis.call('HSET', key, 'state', 'running', 'flight', flight)
      results[#results + 1] = mine
        and { 'lead', id, r[2], r[6], attempts, flight, f[2], f[3], f[4], head[1] or '0', head[2] or 'null', f[5] } or { 'join', id }
    else
      redis.call('SADD', prefix .. 'waiting:' .. slot, id)
      results[#results + 1] = { 'wait', id }
    end
  end
end
return results
