-- push: put entries into a waiting room and see whether a lease must be sent for.
--
-- KEYS[1] waiting    list of entries
-- KEYS[2] known      set of waiting entries, for rooms where each waits once
-- KEYS[3] leases     sorted set of leases, score: deadline in milliseconds
-- KEYS[4] workers    RQ's set of live workers
-- ARGV[1] lease      id for a new lease
-- ARGV[2] ttl        milliseconds a lease lives without being renewed
-- ARGV[3] once       '1' where an entry waits only once
-- ARGV[4...] entries to put in; none of them just looks whether a lease is missing
--
-- returns 1 the caller must enqueue the RQ job named by ARGV[1]; 0 enough leases are out
for i = 4, #ARGV do
  if ARGV[3] == '0' or redis.call('SADD', KEYS[2], ARGV[i]) == 1 then
    redis.call('RPUSH', KEYS[1], ARGV[i])
  end
end
local waiting, leases = redis.call('LLEN', KEYS[1]), redis.call('ZCARD', KEYS[3])
-- The first lease drains all that waits; a further one pays when more waits than the leases out took along, and
-- more leases than workers would only queue up.
if waiting == 0 or (leases > 0 and (waiting <= leases or leases >= redis.call('SCARD', KEYS[4]))) then
  return 0
end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2], ARGV[1])
return 1
