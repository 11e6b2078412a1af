-- Touches (reads): the projection's hashes (KEYS[2..7], in the order of rules/patch.py TABLES).
-- -> their fields and values, at one moment
local tables = {}
for i = 2, #KEYS do tables[i - 1] = redis.call('HGETALL', KEYS[i]) end
return tables
