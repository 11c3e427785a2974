-- claim_job: hold a pull job for a while, if no other process holds it.
--
-- KEYS[1] open           sorted set of the jobs that have not ended, by the end of their holder's time
-- KEYS[2] job            hash, the record of the job
-- ARGV[1] id             of the job
-- ARGV[2] holder         name of the process and its claim
-- ARGV[3] ttl            milliseconds for which it is held without being renewed
--
-- returns 1 if it is held now, 0 if another process holds it or it has ended
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not held or tonumber(held) > now then
  return 0
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], 'holder', ARGV[2], 'state', 'running')
redis.call('HSETNX', KEYS[2], 'started', string.format('%.3f', now / 1000))
redis.call('HINCRBY', KEYS[2], 'claims', 1)
return 1
