-- Touches: meta, head:<dataset> (KEYS[2]).
-- -> run id, epoch, then the head's seq, sha, run_id, reserved_seq, reserved_data, and how long ago that was reserved (ms)
local run, epoch = incarnation()
local head = redis.call('HMGET', KEYS[2], 'seq', 'sha', 'run_id', 'reserved_seq', 'reserved_data', 'reserved_at')
local age = head[6] and int(now_ms() - head[6])
return { run, epoch, head[1], head[2], head[3], head[4], head[5], age }
