-- In log slots: one on a cluster, else any number. Touches of each part's slot, by five KEYS a part:
--   meta, log:<dataset>, logged:<dataset>, marks:<dataset>, ready.
-- ARGV: 1 dataset, 2 most unbatched bytes, 3 memory ratio (percent), then seven a part: producer, block, author ('-': the number
--   alone tells blocks apart), kind, rows, payload ('' mark only), session that its types are of ('' any)
-- -> for each part {'accepted'|'same', entry id} | {'gap', number expected} | {'taken', mark} | {'reconcile'|'full'|'memory'}, or
--   the error that it met: those before it are in
-- An entry's c and r are the dataset's bytes and rows so far in this slot, itself included.
local OVERHEAD, MEMORY_EVERY, LARGE, KEYS_A_PART, FIELDS = 64, 64, 16384, 5, 7
local dataset, most, ratio, now, server = ARGV[1], tonumber(ARGV[2]), ARGV[3], int(now_ms()), server_run()

local function append(meta, stream, totals, marks, ready, part)
  local producer, number, client, kind, rows_here, payload, session = unpack(ARGV, part, part + FIELDS - 1)
  local run = incarnation(meta, server)
  local logged = redis.call('HMGET', totals, 'run', 'appended', 'rows', 'released')
  if logged[1] ~= run then return { 'reconcile' } end

  local block, mark, author, id = tonumber(number), 0, '', ''
  local known = redis.call('HGET', marks, producer)
  if known then
    local last
    last, author, id = string.match(known, '^(%d+) %d+ (%S+) (%S+)$')
    mark = tonumber(last)
  end
  if block <= mark then
    local mine = client == '-' or (block == mark and (author == client or author == '?'))
    if not mine then return { 'taken', int(mark) } end
    return { 'same', block == mark and id or '' }
  end
  if block ~= mark + 1 then return { 'gap', int(mark + 1) } end

  local appended, rows = tonumber(logged[2]) + #payload + OVERHEAD, tonumber(logged[3]) + tonumber(rows_here)
  if appended - tonumber(logged[4]) > most then return { 'full' } end
  local appends = redis.call('HINCRBY', meta, 'appends', 1)
  local full = redis.call('HGET', meta, 'full') == '1'
  if full or #payload >= LARGE or appends % MEMORY_EVERY == 1 then
    local memory = redis.call('INFO', 'memory')
    local used, limit = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
    full = limit > 0 and used * 100 > limit * ratio
    redis.call('HSET', meta, 'full', full and '1' or '0')
  end
  if full then return { 'memory' } end

  local fields = { 'p', producer, 'b', number, 'k', kind, 'n', rows_here, 'c', int(appended), 'r', int(rows) }
  if payload ~= '' then fields[#fields + 1], fields[#fields + 2] = 'd', payload end
  if session ~= '' then fields[#fields + 1], fields[#fields + 2] = 's', session end
  local entry = redis.call('XADD', stream, '*', unpack(fields))
  redis.call('HSET', totals, 'appended', int(appended), 'rows', int(rows))
  redis.call('HSET', marks, producer, number .. ' ' .. now .. ' ' .. client .. ' ' .. entry)
  redis.call('ZADD', ready, 'NX', now, dataset)
  return { 'accepted', entry }
end

local answers = {}
for i = 1, #KEYS / KEYS_A_PART do
  local meta, stream, totals, marks, ready = unpack(KEYS, (i - 1) * KEYS_A_PART + 1, i * KEYS_A_PART)
  local ran, answer = pcall(append, meta, stream, totals, marks, ready, 4 + (i - 1) * FIELDS)
  answers[i] = ran and answer or redis.error_reply(type(answer) == 'table' and answer.err or answer)
end
return answers
