-- Touches: meta, head:<dataset> (KEYS[2]), request:<id>, idem:…, responses:<target>, inflight, backlog:<tenant>, deadlines, requests:…,
--   awaited, retries:<target>
-- ARGV: 1 id, 2 body, 3 dataset, 4 tenant, 5 name, 6 priority, 7 target, 8 idempotency key ('' none), 9 body hash, 10 deadline (ms, '' none),
--       11 max staleness (ms, '' none), 12 derivation key, 13 terminal event for an answer at once ('' none), 14 the seq it was made at,
--       15 tenant in-flight cap, 16 tenant backlog cap, 17 unread cap, 18 memory ratio (percent), 19 history (seconds)
-- -> {'queued'|'backlog'|'answered'|'same', id} | {'conflict', id} | {'unread'|'line'|'memory'|'unknown'|'reconcile'|'expired'}, always with the head's seq last
local run = incarnation()
local head = redis.call('HMGET', KEYS[2], 'run_id', 'seq', 'session', 'dropped', 'confirmed_at')
local seq = head[2] or '0'
local key = prefix .. 'request:' .. ARGV[1]
if redis.call('EXISTS', key) == 1 then return { 'same', ARGV[1], seq } end
if head[1] ~= run then return { 'reconcile', '', seq } end
if not head[3] or head[4] == '1' then return { 'unknown', '', seq } end
local idem = ARGV[8] ~= '' and prefix .. 'idem:' .. ARGV[7] .. ':' .. ARGV[8]
if idem then
  local known = redis.call('HMGET', idem, 'id', 'hash')
  if known[1] then return { known[2] == ARGV[9] and 'same' or 'conflict', known[1], seq } end
end
if ARGV[10] ~= '' and tonumber(ARGV[10]) <= 0 then return { 'expired', '', seq } end
local submits = redis.call('HINCRBY', KEYS[1], 'submits', 1)
if submits % 64 == 1 or redis.call('HGET', KEYS[1], 'full') == '1' then
  local memory = redis.call('INFO', 'memory')
  local used, limit = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
  redis.call('HSET', KEYS[1], 'full', (limit > 0 and used * 100 > limit * ARGV[18]) and '1' or '0')
end
if redis.call('HGET', KEYS[1], 'full') == '1' then return { 'memory', '', seq } end
local responses = prefix .. 'responses:' .. ARGV[7]
-- What is accepted now is unread later: the bound counts both, and what a reader put off.
local unread = redis.call('XLEN', responses) + redis.call('ZCARD', prefix .. 'retries:' .. ARGV[7])
unread = unread + tonumber(redis.call('HGET', prefix .. 'awaited', ARGV[7]) or '0')
if unread >= tonumber(ARGV[17]) then return { 'unread', '', seq } end
local now = now_ms()
local fresh = ARGV[13] ~= '' and ARGV[14] == seq and ARGV[11] ~= '' and head[5] and now - head[5] * 1000 <= tonumber(ARGV[11])
local line = prefix .. 'backlog:' .. ARGV[4]
local crowded = not fresh and tonumber(redis.call('HGET', prefix .. 'inflight', ARGV[4]) or '0') >= tonumber(ARGV[15])
if crowded and redis.call('LLEN', line) >= tonumber(ARGV[16]) then return { 'line', '', seq } end

redis.call('HSET', key, 'body', ARGV[2], 'dataset', ARGV[3], 'tenant', ARGV[4], 'name', ARGV[5], 'priority', ARGV[6], 'target', ARGV[7],
  'staleness', ARGV[11], 'derivation', ARGV[12], 'created', int(now), 'attempts', 0, 'state', fresh and 'completed' or 'queued')
if idem then
  redis.call('HSET', idem, 'id', ARGV[1], 'hash', ARGV[9])
  redis.call('EXPIRE', idem, ARGV[19])
end
if fresh then
  redis.call('HSET', key, 'done', ARGV[13], 'entry', redis.call('XADD', responses, '*', 'e', ARGV[13]))
  redis.call('EXPIRE', key, ARGV[19])
  return { 'answered', ARGV[1], seq }
end
redis.call('HINCRBY', prefix .. 'awaited', ARGV[7], 1)
if ARGV[10] ~= '' then
  redis.call('HSET', key, 'deadline', int(now + ARGV[10]))
  redis.call('ZADD', prefix .. 'deadlines', int(now + ARGV[10]), ARGV[1])
end
if crowded then
  redis.call('HSET', key, 'wait', 'backlog')
  redis.call('RPUSH', line, ARGV[1])
  return { 'backlog', ARGV[1], seq }
end
redis.call('HINCRBY', prefix .. 'inflight', ARGV[4], 1)
redis.call('XADD', prefix .. 'requests:' .. ARGV[5] .. ':' .. ARGV[6], '*', 'r', ARGV[1])
return { 'queued', ARGV[1], seq }
