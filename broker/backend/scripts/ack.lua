-- Touches: meta, request:<id> (KEYS[2]), responses:<target>, retries:<target>.
-- -> how often its terminal event was there to take: 1 | 0 (it has not ended, or was taken). Idempotent.
local r = redis.call('HMGET', KEYS[2], 'target', 'entry', 'done')
if not r[2] then return 0 end
local responses = prefix .. 'responses:' .. r[1]
redis.call('XACK', responses, 'readers', r[2])
return redis.call('XDEL', responses, r[2]) + redis.call('ZREM', prefix .. 'retries:' .. r[1], r[3])
