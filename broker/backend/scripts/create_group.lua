-- Touches: the stream alone (KEYS[1], here not meta).
-- ARGV: group, first id, idle (ms)  -> 1: it is new | 0: it existed
-- Consumers that have not read for so long and hold nothing died without leaving: they go here, or they would pile up for ever.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if not made.err then return 1 end
if not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #flat, 2 do consumer[flat[i]] = flat[i + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
return 0
