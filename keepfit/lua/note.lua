-- note: tell a model of its newest snapshot.
--
-- KEYS[1] state       hash of the model
-- ARGV[1] generation  of the snapshot
-- ARGV[2] version     of the snapshot
-- ARGV[3] snapshot    JSON
--
-- returns 1 noted; 0 the model is gone, was made again, or knows a newer one
local state = redis.call('HMGET', KEYS[1], 'generation', 'snapshot_version')
if not state[1] or state[1] ~= ARGV[1] or tonumber(state[2]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'snapshot', ARGV[3], 'snapshot_version', ARGV[2])
return 1
