-- release: end a lease, if nothing waits, if it must, or if others can do without it.
--
-- KEYS[1] waiting   list of models with work
-- KEYS[2] leases    sorted set of leases
-- KEYS[3] claimed   list of the entries this lease has in hand, all done
-- KEYS[4] holders   hash of leases at work
-- ARGV[1] lease     the caller's id
-- ARGV[2] when      'idle': where nothing waits; 'spare': where another lease is out; 'now': in any case
--
-- returns 1 ended; 0 the lease goes on
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
