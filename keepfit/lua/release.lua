-- release: end a lease, if nothing waits or if it must.
--
-- KEYS[1] waiting   list of entries
-- KEYS[2] leases    sorted set of leases
-- KEYS[3] claimed   list of the entries this lease has in hand, all done
-- ARGV[1] lease     the caller's id
-- ARGV[2] force     '1' ends it in any case
--
-- returns 1 ended; 0 entries wait and the lease goes on
if ARGV[2] ~= '1' and redis.call('LLEN', KEYS[1]) > 0 then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
