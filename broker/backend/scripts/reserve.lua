-- Touches: meta, head:<dataset> (KEYS[2]), the lease (KEYS[3], only with ARGV[4]).
-- ARGV: seq, SHA-256 of the record before, record bytes, lease epoch ('' none), lease counter, age and maximal age of files (ms),
-- whether the lease ends with this ('1')
-- -> 'reserved' | 'refused' | 'fenced' | 'too-old'
-- Reserving closes the flight it is done under: who asks from now on gets what a later production finds.
local run = incarnation()
local head = redis.call('HMGET', KEYS[2], 'run_id', 'seq', 'sha', 'reserved_seq')
local seq = tonumber(head[2] or '0')
if head[1] ~= run then return 'refused' end
if seq ~= tonumber(ARGV[1]) - 1 or (head[3] or GENESIS) ~= ARGV[2] then return 'refused' end
if head[4] and tonumber(head[4]) > seq then return 'refused' end
if ARGV[4] ~= '' and not holds(KEYS[3], ARGV[4], ARGV[5]) then return 'fenced' end
if tonumber(ARGV[6]) > tonumber(ARGV[7]) then return 'too-old' end
redis.call('HSET', KEYS[2], 'reserved_seq', ARGV[1], 'reserved_data', ARGV[3], 'reserved_at', int(now_ms()))
if ARGV[4] ~= '' and ARGV[8] == '1' then
  redis.call('DEL', KEYS[3])
elseif ARGV[4] ~= '' and redis.call('HEXISTS', KEYS[3], 'state') == 1 then
  redis.call('HSET', KEYS[3], 'state', 'closed')
end
return 'reserved'
