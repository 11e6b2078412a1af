-- Touches: meta, requests:… (the stream in ARGV), request:<id>, parked.
-- ARGV: '1' park | '0' ring again, then for each: stream, entry id, request id, dataset
-- A worker that reads an entry of a dataset it does not serve parks it; any worker that serves it rings for it again.
for i = 2, #ARGV, 4 do
  if ARGV[1] == '1' then
    redis.call('XACK', ARGV[i], 'producers', ARGV[i + 1])
    redis.call('XDEL', ARGV[i], ARGV[i + 1])
    if redis.call('HGET', prefix .. 'request:' .. ARGV[i + 2], 'state') == 'queued' then
      redis.call('HSET', prefix .. 'parked', ARGV[i + 2], ARGV[i + 3])
      redis.call('HSET', prefix .. 'request:' .. ARGV[i + 2], 'wait', 'no-producer')
    end
  elseif redis.call('HDEL', prefix .. 'parked', ARGV[i + 2]) == 1 then
    redis.call('HDEL', prefix .. 'request:' .. ARGV[i + 2], 'wait')
    ring(ARGV[i + 2])
  end
end
