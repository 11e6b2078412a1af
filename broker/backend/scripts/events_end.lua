-- Touches: meta, events (KEYS[2]).
-- -> since when this Redis remembers (ms), id of the newest event ('0-0': none yet), now (ms)
incarnation()
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return { redis.call('HGET', KEYS[1], 'born'), newest[1] and newest[1][1] or '0-0', int(now_ms()) }
