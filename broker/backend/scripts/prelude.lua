-- Prepended to every script. Touches: meta (KEYS[1] of every script, '{domain.shard}:meta').
-- Other keys of the slot are derived from its prefix; all share the hash tag, so a script stays in one slot.
local prefix = string.sub(KEYS[1], 1, -5)
local GENESIS = string.rep('0', 64)
local PRIORITIES = { 'high', 'normal', 'low' }
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }

-- The projection of a log, by table: its keys begin at `first`, in the order of rules/patch.py TABLES.
local TABLES = { 'head', 'versions', 'edges', 'productions', 'holds', 'channels' }
local function tables_from(first)
  local tables = {}
  for i, name in ipairs(TABLES) do tables[name] = KEYS[first + i - 1] end
  return tables
end

local function int(number) return string.format('%.0f', number) end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A time that another clock told (seconds, as text), at most the present: what is ahead would count as fresh for as long.
local function not_ahead(seconds)
  local now = now_ms()
  return tonumber(seconds) * 1000 > now and string.format('%.3f', now / 1000) or seconds
end

-- The server's own run id, read here: an identity a client sends survives its retries and proves nothing. The epoch is part of
-- the identity because FLUSHALL forgets everything and keeps the run id.
-- A new incarnation gets a higher epoch; leases of the old one are void from that moment.
-- `meta`: of the slot that is meant, where a script serves several; `run`: what server_run told this very script.
local function server_run() return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end

local function incarnation(meta, run)
  meta, run = meta or KEYS[1], run or server_run()
  local known = redis.call('HMGET', meta, 'run_id', 'epoch')
  if known[1] == run then return run .. ':' .. known[2], known[2] end
  local epoch = int(math.max((tonumber(known[2]) or 0) + 1, now_ms()))
  redis.call('HSET', meta, 'run_id', run, 'epoch', epoch)
  redis.call('HSETNX', meta, 'born', int(now_ms())) -- since when there is memory: a restart keeps it, a loss does not
  return run .. ':' .. epoch, epoch
end

-- How the heads in KEYS[first..] stand: of each {seq, sha, run_id, reserved_seq, reserved_data, and how long ago that was
-- reserved (ms)}, or an error.
local function heads_from(first)
  local found = {}
  for i = first, #KEYS do
    local head = redis.pcall('HMGET', KEYS[i], 'seq', 'sha', 'run_id', 'reserved_seq', 'reserved_data', 'reserved_at')
    if not head.err then head[6] = head[6] and int(now_ms() - head[6]) end
    found[#found + 1] = head
  end
  return found
end

-- A log of another incarnation whose clock was ahead: epochs only grow, so this one begins anew behind it, under a new identity.
local function outgrow(epoch)
  local _, current = incarnation()
  if epoch and tonumber(epoch) >= tonumber(current) then redis.call('HSET', KEYS[1], 'epoch', int(epoch + 1)) end
end

-- Whether (epoch, counter) is the present holder of the lease in `key`. Equality at the moment of effect: that is the fence.
local function holds(key, epoch, counter)
  local lease = redis.call('HMGET', key, 'epoch', 'counter', 'until')
  local _, current = incarnation()
  return lease[1] == epoch and lease[2] == counter and epoch == current and tonumber(lease[3]) > now_ms()
end

local function ring(id)
  local where = redis.call('HMGET', prefix .. 'request:' .. id, 'name', 'priority', 'dataset')
  if where[1] then
    redis.call('XADD', prefix .. 'requests:' .. where[1] .. ':' .. where[2], '*', 'r', id, 'd', where[3])
  end
end

-- A running request goes back to its stream.
local function requeue(id)
  local key = prefix .. 'request:' .. id
  if redis.call('HGET', key, 'state') ~= 'running' then return end
  redis.call('HSET', key, 'state', 'queued')
  redis.call('HDEL', key, 'flight')
  ring(id)
end

-- Why an attempt of a request failed (JSON), for the dead letters: the list is kept as text, comma by comma.
local function note_cause(id, cause)
  local key = prefix .. 'request:' .. id
  local known = redis.call('HGET', key, 'causes')
  redis.call('HSET', key, 'causes', known and known .. ',' .. cause or cause)
end

local function line_of(tenant, priority) return prefix .. 'backlog:' .. tenant .. ':' .. priority end

local function next_of(tenant)
  for _, priority in ipairs(PRIORITIES) do
    local id = redis.call('LPOP', line_of(tenant, priority))
    if id then return id end
  end
end

-- As many of the tenant's lines go on as there is room for, the high ones first. The cap is what the last submit said.
local function admit(tenant)
  local room = tonumber(redis.call('HGET', KEYS[1], 'inflight_cap') or '1')
    - tonumber(redis.call('HGET', prefix .. 'inflight', tenant) or '0')
  local id = room > 0 and next_of(tenant)
  while id do
    local key = prefix .. 'request:' .. id
    if redis.call('HGET', key, 'state') == 'queued' then
      redis.call('HDEL', key, 'wait')
      redis.call('HINCRBY', prefix .. 'inflight', tenant, 1)
      ring(id)
      room = room - 1
    end
    id = room > 0 and next_of(tenant)
  end
end

-- One request of the tenant is no longer in work.
local function leave_work(tenant)
  if redis.call('HINCRBY', prefix .. 'inflight', tenant, -1) <= 0 then redis.call('HDEL', prefix .. 'inflight', tenant) end
  admit(tenant)
end

-- The one way into a terminal state: state flip and terminal event in one step. 0: it was terminal already.
local function finish(id, state, event, history_seconds)
  local key = prefix .. 'request:' .. id
  local r = redis.call('HMGET', key, 'state', 'tenant', 'target', 'wait', 'flight', 'priority')
  if not r[1] or TERMINAL[r[1]] then return 0 end
  redis.call('HSET', key, 'state', state, 'done', event)
  redis.call('HDEL', key, 'flight', 'wait')
  redis.call('EXPIRE', key, history_seconds)
  redis.call('HSET', key, 'entry', redis.call('XADD', prefix .. 'responses:' .. r[3], '*', 'e', event))
  if state == 'failed' then
    local kept = redis.call('HMGET', key, 'body', 'causes')
    local oldest = int(now_ms() - history_seconds * 1000)
    redis.call('XADD', prefix .. 'dead', 'MINID', '=', oldest, '*', 'e', event, 'b', kept[1], 'c', '[' .. (kept[2] or '') .. ']')
  end
  if redis.call('HINCRBY', prefix .. 'awaited', r[3], -1) <= 0 then redis.call('HDEL', prefix .. 'awaited', r[3]) end
  redis.call('ZREM', prefix .. 'deadlines', id)
  redis.call('ZREM', prefix .. 'delayed', id)
  redis.call('HDEL', prefix .. 'parked', id)
  if r[5] then redis.call('SREM', prefix .. 'members:' .. r[5], id) end
  if r[4] == 'backlog' then
    redis.call('LREM', line_of(r[2], r[6]), 1, id)
  elseif r[4] ~= 'no-producer' then -- what is parked is not in work
    leave_work(r[2])
  end
  return 1
end

-- The flight is over: forget it and ring for those who wait for the next one.
local function end_flight(id, dataset, slot)
  redis.call('DEL', prefix .. 'flight:' .. id, prefix .. 'members:' .. id, prefix .. 'parts:' .. id)
  redis.call('ZREM', prefix .. 'lapse', id)
  if redis.call('HGET', prefix .. 'flights', slot) == id then redis.call('HDEL', prefix .. 'flights', slot) end
  local waiting = prefix .. 'waiting:' .. slot
  for _, request in ipairs(redis.call('SMEMBERS', waiting)) do ring(request) end
  redis.call('DEL', waiting)
end
