-- Touches: meta, the set that lists the log (KEYS[2]), the projection's hashes (KEYS[3..8], in the order of rules/patch.py
-- TABLES), unindexed.
-- ARGV: seq, tables (JSON), run id to adopt for an empty log ('' none), the log's id
local HEAD = KEYS[3]
local have = tonumber(redis.call('HGET', HEAD, 'seq') or '0')
local want = tonumber(ARGV[1])
if want == 0 then
  local run = incarnation()
  if have == 0 and run == ARGV[3] then redis.call('HSET', HEAD, 'run_id', run) end
  return 'adopted'
end
if have >= want then return 'there' end
local tables = tables_from(3)
local state = cjson.decode(ARGV[2])
if state.head.confirmed_at then state.head.confirmed_at = not_ahead(state.head.confirmed_at) end
outgrow(state.head.epoch)
for name, fields in pairs(state) do
  redis.call('DEL', tables[name])
  for field, value in pairs(fields) do redis.call('HSET', tables[name], field, value) end
end
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('SADD', prefix .. 'unindexed', ARGV[4])
return 'installed'
