-- Touches: meta, the set that lists the log (KEYS[2]), the projection's hashes (KEYS[3..8], in the order of rules/patch.py
-- TABLES), unindexed, events.
-- ARGV: seq, SHA-256 of the record before, patch (JSON), run id of a barrier ('' none), the log's id, history of events (ms),
-- then events
-- -> 'published' | 'behind' | 'differs'
local HEAD = KEYS[3]
local head = redis.call('HMGET', HEAD, 'seq', 'sha', 'reserved_seq')
local seq, want = tonumber(head[1] or '0'), tonumber(ARGV[1])
if seq >= want then return 'published' end
if seq < want - 1 then return 'behind' end
if (head[2] or GENESIS) ~= ARGV[2] then return 'differs' end
local patch = cjson.decode(ARGV[3])
local run = ARGV[4] ~= '' and incarnation()
local tables = tables_from(3)

local put = patch.put.head
if put and put.confirmed_at then put.confirmed_at = not_ahead(put.confirmed_at) end
for _, name in ipairs(patch.clear) do redis.call('DEL', tables[name]) end
for name, fields in pairs(patch.drop) do
  for _, field in ipairs(fields) do redis.call('HDEL', tables[name], field) end
end
for name, fields in pairs(patch.put) do
  for field, value in pairs(fields) do redis.call('HSET', tables[name], field, value) end
end
if head[3] and tonumber(head[3]) <= want then redis.call('HDEL', HEAD, 'reserved_seq', 'reserved_data', 'reserved_at') end
if run and run == ARGV[4] then
  redis.call('HSET', HEAD, 'run_id', run)
elseif run then
  outgrow(patch.put.head.epoch)
end
redis.call('SADD', KEYS[2], ARGV[5])
redis.call('SADD', prefix .. 'unindexed', ARGV[5])
for i = 7, #ARGV do
  redis.call('XADD', prefix .. 'events', 'MINID', '~', int(now_ms() - ARGV[6]), '*', 'e', ARGV[i])
end
return 'published'
