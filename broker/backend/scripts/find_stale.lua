-- Touches: meta, datasets, head:<dataset>, indexed, unindexed.
-- ARGV: most, then for each dataset that the index of attributes now knows: dataset, seq, version
-- -> dataset, seq, newest version, newest version indexed, ... of at most so many that have a record it does not know
-- Publishing puts a dataset into `unindexed`; where nothing was ever indexed, all of them are.
local first = redis.call('EXISTS', prefix .. 'indexed') == 0
if first then
  redis.call('HSET', prefix .. 'indexed', '', '')
  if redis.call('EXISTS', prefix .. 'datasets') == 1 then
    redis.call('SUNIONSTORE', prefix .. 'unindexed', prefix .. 'datasets')
  end
end
local function head_of(dataset)
  local tenant, name = string.match(dataset, '^([^/]+)/[^/]+/([^/]+)$')
  return redis.call('HMGET', prefix .. 'head:' .. tenant .. '/' .. name, 'seq', 'version')
end
for i = 2, #ARGV, 3 do
  redis.call('HSET', prefix .. 'indexed', ARGV[i], ARGV[i + 2])
  if head_of(ARGV[i])[1] == ARGV[i + 1] then redis.call('SREM', prefix .. 'unindexed', ARGV[i]) end
end
local found = {}
for _, dataset in ipairs(redis.call('SRANDMEMBER', prefix .. 'unindexed', ARGV[1])) do
  local head = redis.call('SISMEMBER', prefix .. 'datasets', dataset) == 1 and head_of(dataset)
  if head and head[1] then
    local known = redis.call('HGET', prefix .. 'indexed', dataset) or '0'
    local i = #found
    found[i + 1], found[i + 2], found[i + 3], found[i + 4] = dataset, head[1], head[2] or '0', known
  else
    redis.call('SREM', prefix .. 'unindexed', dataset)
  end
end
return found
