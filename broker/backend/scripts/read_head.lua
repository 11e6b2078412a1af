-- Touches: meta, head:<dataset> of each log asked for (KEYS[2..]).
-- -> run id, epoch, then for each {seq, sha, run_id, reserved_seq, reserved_data, and how long ago that was reserved (ms)}
local run, epoch = incarnation()
local found = { run, epoch }
for i = 2, #KEYS do
  local head = redis.call('HMGET', KEYS[i], 'seq', 'sha', 'run_id', 'reserved_seq', 'reserved_data', 'reserved_at')
  head[6] = head[6] and int(now_ms() - head[6])
  found[i + 1] = head
end
return found
