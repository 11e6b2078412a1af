-- Touches: meta, and for each request what `finish` touches.
-- ARGV: history (seconds), then triples: request id, terminal state, event  -> how many became terminal (the others were already)
local ended = 0
for i = 2, #ARGV, 3 do ended = ended + finish(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[1]) end
return ended
