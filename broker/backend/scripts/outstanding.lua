-- Touches: meta, datasets, requests:…, request:<id>, flight:<id>, lapse, delayed, parked. Writes nothing.
-- ARGV: page  -> datasets that have a request queued, in flight, delayed or parked: one moment, so nothing slips between
-- Streams are read a page at a time, until each dataset of their name was found: mostly that is the first entry.
local seen, found = {}, {}
local function add(dataset)
  if dataset and not seen[dataset] then
    seen[dataset] = true
    found[#found + 1] = dataset
  end
end
local function add_request(id) add(redis.call('HGET', prefix .. 'request:' .. id, 'dataset')) end

local named = {}
for _, dataset in ipairs(redis.call('SMEMBERS', prefix .. 'datasets')) do
  local name = string.match(dataset, '([^/]+)$')
  named[name] = named[name] or {}
  table.insert(named[name], dataset)
end
local function all_seen(datasets)
  for _, dataset in ipairs(datasets) do
    if not seen[dataset] then return false end
  end
  return true
end
for name, datasets in pairs(named) do
  for _, priority in ipairs(PRIORITIES) do
    local stream, from = prefix .. 'requests:' .. name .. ':' .. priority, '-'
    while from and not all_seen(datasets) do
      local page = redis.call('XRANGE', stream, from, '+', 'COUNT', ARGV[1])
      for _, entry in ipairs(page) do add_request(entry[2][2]) end
      from = page[1] and '(' .. page[#page][1]
    end
  end
end
for _, flight in ipairs(redis.call('ZRANGE', prefix .. 'lapse', 0, -1)) do
  add(redis.call('HGET', prefix .. 'flight:' .. flight, 'dataset'))
end
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'delayed', 0, -1)) do add_request(id) end
for _, dataset in ipairs(redis.call('HVALS', prefix .. 'parked')) do add(dataset) end
return found
