-- Touches: meta, datasets, requests:…, request:<id>, flight:<id>, lapse, delayed, parked. Writes nothing.
-- ARGV: most of each  -> datasets that have a request queued, in flight, delayed or parked: one moment, so nothing slips between
local seen, found = {}, {}
local function add(dataset)
  if dataset and not seen[dataset] then
    seen[dataset] = true
    found[#found + 1] = dataset
  end
end
local function add_request(id) add(redis.call('HGET', prefix .. 'request:' .. id, 'dataset')) end

local names = {}
for _, dataset in ipairs(redis.call('SMEMBERS', prefix .. 'datasets')) do
  names[string.match(dataset, '([^/]+)$')] = true
end
for name in pairs(names) do
  for _, priority in ipairs({ 'high', 'normal', 'low' }) do
    for _, entry in ipairs(redis.call('XRANGE', prefix .. 'requests:' .. name .. ':' .. priority, '-', '+', 'COUNT', ARGV[1])) do
      add_request(entry[2][2])
    end
  end
end
for _, flight in ipairs(redis.call('ZRANGE', prefix .. 'lapse', 0, ARGV[1])) do
  add(redis.call('HGET', prefix .. 'flight:' .. flight, 'dataset'))
end
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'delayed', 0, ARGV[1])) do add_request(id) end
for _, dataset in ipairs(redis.call('HVALS', prefix .. 'parked')) do add(dataset) end
return found
