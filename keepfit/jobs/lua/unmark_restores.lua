-- unmark_restores: models are restored or repaired, or cannot be: remove the marks of mark_restores, unless another lease
-- has marked them since.
--
-- KEYS[1] restores      hash of models that are restored or repaired: the lease that does it
-- ARGV[1] lease         lease of the caller
-- ARGV[2...] models     hashes of models
--
-- returns the number of marks that were removed
local removed = 0
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then
    removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return removed
