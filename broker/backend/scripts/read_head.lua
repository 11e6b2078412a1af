-- Touches: meta, head:<dataset> of each log asked for (KEYS[2..]).
-- -> run id, epoch, then the heads (prelude)
local run, epoch = incarnation()
return { run, epoch, unpack(heads_from(2)) }
