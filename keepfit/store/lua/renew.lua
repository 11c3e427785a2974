-- renew: extend a model's lock while its holder works.
--
-- KEYS[1] lock    lease that learns the model
-- ARGV[1] token   lease of the caller
-- ARGV[2] ttl     milliseconds
--
-- returns 1 renewed; 0 the caller does not hold the lock
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
