-- claim: a lease lays down what it has done and takes the next entries.
--
-- KEYS[1] waiting   list of entries
-- KEYS[2] known     set of waiting entries, for rooms where each waits once
-- KEYS[3] leases    sorted set of leases, score: deadline in milliseconds
-- KEYS[4] claimed   list of the entries this lease has in hand
-- KEYS[5] queue     RQ's list of jobs that wait for a worker
-- ARGV[1] lease     the caller's id
-- ARGV[2] ttl       milliseconds a lease lives without being renewed
-- ARGV[3] once      '1' where an entry waits only once
-- ARGV[4] most      entries to take; 0 only renews and lays nothing down
-- ARGV[5] keep      milliseconds that the list of claimed entries lives on, in case nobody abandons it
--
-- returns {-1} the lease is not valid (any more); else {jobs that wait for a worker, entries...}
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  return {-1}
end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2], ARGV[1])
local answer = {redis.call('LLEN', KEYS[5])}
local most = tonumber(ARGV[4])
if most == 0 then
  return answer
end
redis.call('DEL', KEYS[4])
local entries = redis.call('LPOP', KEYS[1], most) or {}
for _, entry in ipairs(entries) do
  redis.call('RPUSH', KEYS[4], entry)
  if ARGV[3] == '1' then
    redis.call('SREM', KEYS[2], entry)
  end
  answer[#answer + 1] = entry
end
if #entries > 0 then
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
return answer
