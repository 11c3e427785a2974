-- mark_restores: before models are restored or repaired, mark them, so that no other lease does the same meanwhile. The
-- mark is the lease that does it, and ends with that lease.
--
-- KEYS[1] restores     hash of models that are restored or repaired: the lease that does it
-- KEYS[2] leases       sorted set of leases
-- ARGV[1] lease        lease of the caller
-- ARGV[2] keep         milliseconds until the hash expires, if no model is marked meanwhile
-- ARGV[3...] models    hashes of models
--
-- returns for each model 1 if the caller has marked it; 0 if another lease has
local answer = {}
for i = 3, #ARGV do
  local lease = redis.call('HGET', KEYS[1], ARGV[i])
  if lease and lease ~= ARGV[1] and redis.call('ZSCORE', KEYS[2], lease) then
    answer[i - 2] = 0
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1])
    answer[i - 2] = 1
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return answer
