-- Touches: meta, events (KEYS[2]).
-- ARGV: event (JSON), history of events (ms)
redis.call('XADD', KEYS[2], 'MINID', '~', int(now_ms() - ARGV[2]), '*', 'e', ARGV[1])
