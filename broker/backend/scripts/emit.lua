-- Touches: meta, events (KEYS[2]), once:<what>.
-- ARGV: event (JSON), history of events (ms), what is told only once in that time ('': always)  -> 1, or 0: it was told
if ARGV[3] ~= '' and not redis.call('SET', prefix .. 'once:' .. ARGV[3], '1', 'NX', 'PX', ARGV[2]) then return 0 end
incarnation()
redis.call('XADD', KEYS[2], 'MINID', '~', int(now_ms() - ARGV[2]), '*', 'e', ARGV[1])
return 1
