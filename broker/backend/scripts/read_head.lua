-- Touches: meta, head:<dataset> of each log asked for (KEYS[2..]).
-- -> run id, epoch, then for each {seq, sha, run_id, reserved_seq, reserved_data, and how long ago that was reserved (ms)}, or an error
local run, epoch = incarnation()
local found = { run, epoch }
for i = 2, #KEYS do
  local head = redis.pcall('HMGET', KEYS[i], 'seq', 'sha', 'run_id', 'reserved_seq', 'reserved_data', 'reserved_at')
  if not head.err then head[6] = head[6] and int(now_ms() - head[6]) end
  found[i + 1] = head
end
return found
