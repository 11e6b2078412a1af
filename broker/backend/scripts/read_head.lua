-- Touches: meta, head:<dataset> (KEYS[2]).
-- -> run id, epoch, then the head's seq, sha, run_id, reserved_seq, reserved_data
local run, epoch = incarnation()
local head = redis.call('HMGET', KEYS[2], 'seq', 'sha', 'run_id', 'reserved_seq', 'reserved_data')
return { run, epoch, head[1], head[2], head[3], head[4], head[5] }
