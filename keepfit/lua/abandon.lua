-- abandon: end the lease of a dead worker and put what it had in hand back to the front, in order.
--
-- KEYS[1] waiting   list of entries
-- KEYS[2] known     set of waiting entries, for rooms where each waits once
-- KEYS[3] leases    sorted set of leases
-- KEYS[4] claimed   list of the entries the lease had in hand
-- ARGV[1] lease     its id
-- ARGV[2] once      '1' where an entry waits only once
--
-- returns the number of entries put back; -1 there was no such lease
if redis.call('ZREM', KEYS[3], ARGV[1]) == 0 then
  return -1
end
local entries = redis.call('LRANGE', KEYS[4], 0, -1)
for i = #entries, 1, -1 do
  if ARGV[2] == '0' or redis.call('SADD', KEYS[2], entries[i]) == 1 then
    redis.call('LPUSH', KEYS[1], entries[i])
  end
end
redis.call('DEL', KEYS[4])
return #entries
