-- Touches: meta, head:<dataset>, request:<id>, idem:…, responses:<target>, inflight, backlog:…, deadlines, requests:…,
--   awaited, retries:<target>
-- ARGV: 1 tenant in-flight cap, 2 tenant backlog cap, 3 unread cap, 4 memory ratio (percent), 5 history (seconds), then for each order:
--   id, body, dataset, tenant, name, priority, target, idempotency key ('' none), body hash, deadline (ms, '' none),
--   max staleness (ms, '' none), derivation key, terminal event for an answer at once ('' none), the seq it was made at
-- -> for each order: {'queued'|'backlog'|'answered'|'same', id} | {'conflict', id} | {'unread'|'line'|'memory'|'unknown'|'reconcile'|'expired'},
--   always with the head's seq last. What is said of one order holds for it alone.
local run, now, heads = incarnation(), now_ms(), {}
local inflight_cap, line_cap, unread_cap, history = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]
local MEMORY_EVERY, FIELDS = 64, 14
local orders = (#ARGV - 5) / FIELDS

local submits = redis.call('HINCRBY', KEYS[1], 'submits', orders)
local full = redis.call('HGET', KEYS[1], 'full') == '1'
redis.call('HSET', KEYS[1], 'inflight_cap', inflight_cap)
if full or submits % MEMORY_EVERY < orders then
  local memory = redis.call('INFO', 'memory')
  local used, limit = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
  full = limit > 0 and used * 100 > limit * ARGV[4]
  redis.call('HSET', KEYS[1], 'full', full and '1' or '0')
end

local function head_of(tenant, name)
  local key = prefix .. 'head:' .. tenant .. '/' .. name
  if not heads[key] then heads[key] = redis.call('HMGET', key, 'run_id', 'seq', 'session', 'dropped', 'confirmed_at') end
  return heads[key]
end

-- What is accepted now is unread later: the bound counts both, and what a reader put off.
local function unread_of(target)
  return redis.call('XLEN', prefix .. 'responses:' .. target) + redis.call('ZCARD', prefix .. 'retries:' .. target)
    + tonumber(redis.call('HGET', prefix .. 'awaited', target) or '0')
end

local function waiting_of(tenant)
  local count = 0
  for _, priority in ipairs(PRIORITIES) do count = count + redis.call('LLEN', line_of(tenant, priority)) end
  return count
end

local function submit(id, body, dataset, tenant, name, priority, target, idempotency, hash, deadline, staleness, derivation, event, made_at)
  local head, key = head_of(tenant, name), prefix .. 'request:' .. id
  local seq = head[2] or '0'
  if redis.call('EXISTS', key) == 1 then return { 'same', id, seq } end
  if head[1] ~= run then return { 'reconcile', '', seq } end
  if not head[3] or head[4] == '1' then return { 'unknown', '', seq } end
  local idem = idempotency ~= '' and prefix .. 'idem:' .. target .. ':' .. idempotency
  if idem then
    local known = redis.call('HMGET', idem, 'id', 'hash')
    if known[1] then return { known[2] == hash and 'same' or 'conflict', known[1], seq } end
  end
  if deadline ~= '' and tonumber(deadline) <= 0 then return { 'expired', '', seq } end
  if full then return { 'memory', '', seq } end
  if unread_of(target) >= unread_cap then return { 'unread', '', seq } end
  local confirmed = tonumber(head[5] or '0') -- 0: nothing of this session was ever confirmed
  local fresh = event ~= '' and made_at == seq and staleness ~= '' and confirmed > 0 and now - confirmed * 1000 <= tonumber(staleness)
  local crowded = not fresh and tonumber(redis.call('HGET', prefix .. 'inflight', tenant) or '0') >= inflight_cap
  if crowded and waiting_of(tenant) >= line_cap then return { 'line', '', seq } end

  if idem then
    redis.call('HSET', idem, 'id', id, 'hash', hash)
    redis.call('EXPIRE', idem, history)
  end
  redis.call('HSET', key, 'body', body, 'dataset', dataset, 'tenant', tenant, 'name', name, 'priority', priority, 'target', target,
    'staleness', staleness, 'derivation', derivation, 'created', int(now), 'attempts', 0, 'state', fresh and 'completed' or 'queued')
  if fresh then
    redis.call('HSET', key, 'done', event, 'entry', redis.call('XADD', prefix .. 'responses:' .. target, '*', 'e', event))
    redis.call('EXPIRE', key, history)
    return { 'answered', id, seq }
  end
  redis.call('HINCRBY', prefix .. 'awaited', target, 1)
  if deadline ~= '' then
    redis.call('HSET', key, 'deadline', int(now + deadline))
    redis.call('ZADD', prefix .. 'deadlines', int(now + deadline), id)
  end
  if crowded then
    redis.call('HSET', key, 'wait', 'backlog')
    redis.call('RPUSH', line_of(tenant, priority), id)
    return { 'backlog', id, seq }
  end
  redis.call('HINCRBY', prefix .. 'inflight', tenant, 1)
  redis.call('XADD', prefix .. 'requests:' .. name .. ':' .. priority, '*', 'r', id, 'd', dataset)
  return { 'queued', id, seq }
end

local results = {}
for i = 6, #ARGV, FIELDS do results[#results + 1] = submit(unpack(ARGV, i, i + FIELDS - 1)) end
return results
