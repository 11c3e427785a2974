-- renew: give a lock more time while its holder still works.
--
-- KEYS[1] lock    who learns a model
-- ARGV[1] token   the caller's lease
-- ARGV[2] ttl     milliseconds
--
-- returns 1 renewed; 0 the lock is not the caller's
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
