-- renew_lease: extend a lease whose worker lives, or whose job waits for one.
--
-- KEYS[1] leases    sorted set of leases, score: deadline in milliseconds since 1970
-- ARGV[1] lease     id of the lease
-- ARGV[2] ttl       milliseconds until it expires
--
-- returns 1 if the lease is valid, else 0
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return 1
