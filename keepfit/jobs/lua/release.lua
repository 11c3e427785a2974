-- release: end a lease if its condition holds.
--
-- KEYS[1] models    list of models with work
-- KEYS[2] leases    sorted set of leases
-- KEYS[3] claimed   list of the entries that this lease has claimed, all completed
-- KEYS[4] holders   hash of leases that are drained by a worker
-- ARGV[1] lease     id of the caller's lease
-- ARGV[2] when      'idle': if no model has work; 'spare': if there is another lease; 'now': always
--
-- returns 1 if the lease has ended; 0 if it goes on
if ARGV[2] == 'idle' and redis.call('LLEN', KEYS[1]) > 0 then
  return 0
end
if ARGV[2] == 'spare' and redis.call('ZCARD', KEYS[2]) < 2 then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
