-- Touches (reads): the projection's five hashes (KEYS[2..6], in the order of rules/fold.py TABLES).
-- -> their fields and values, at one moment
local tables = {}
for i = 2, 6 do tables[i - 1] = redis.call('HGETALL', KEYS[i]) end
return tables
