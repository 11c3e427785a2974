-- settle: take a model off the list of changed ones, unless it was marked for a newer version meanwhile.
--
-- KEYS[1] changed   sorted set of hashes; a worker raises the score to what it is about to commit
-- ARGV[1] hash      the model's hash
-- ARGV[2] score     of the generation and version that are in a snapshot now
--
-- returns 1 taken off; 0 still on (or never was)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) > tonumber(ARGV[2]) then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
