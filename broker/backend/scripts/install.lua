-- Touches: meta, the projection's five hashes (KEYS[2..6], in the order of rules/fold.py TABLES), datasets, unindexed.
-- ARGV: seq, tables (JSON), run id to adopt for an empty log ('' none), dataset
local have = tonumber(redis.call('HGET', KEYS[2], 'seq') or '0')
local want = tonumber(ARGV[1])
if want == 0 then
  local run = incarnation()
  if have == 0 and run == ARGV[3] then redis.call('HSET', KEYS[2], 'run_id', run) end
  return 'adopted'
end
if have >= want then return 'there' end
local tables = { head = KEYS[2], versions = KEYS[3], edges = KEYS[4], productions = KEYS[5], holds = KEYS[6] }
local state = cjson.decode(ARGV[2])
outgrow(state.head.epoch)
for name, fields in pairs(state) do
  redis.call('DEL', tables[name])
  for field, value in pairs(fields) do redis.call('HSET', tables[name], field, value) end
end
redis.call('SADD', prefix .. 'datasets', ARGV[4])
redis.call('SADD', prefix .. 'unindexed', ARGV[4])
return 'installed'
