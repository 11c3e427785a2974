-- unmark_changed: remove a model from the changed models, unless it was marked for a newer version.
--
-- KEYS[1] changed   sorted set of hashes; a worker raises the score before each commit
-- ARGV[1] hash      hash of the model
-- ARGV[2] score     of the generation and version that the snapshot contains
--
-- returns 1 removed; 0 still marked (or not marked before)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) > tonumber(ARGV[2]) then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
