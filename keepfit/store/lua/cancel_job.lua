-- cancel_job: end a pull job that no process holds; have the process that holds it end it.
--
-- KEYS[1] open           sorted set of the jobs that have not ended, by the end of their holder's time
-- KEYS[2] job            hash, the record of the job
-- ARGV[1] id             of the job
-- ARGV[2] kept           milliseconds for which the record of an ended job is kept
--
-- returns 1 if the job was open, 0 if it has ended, -1 if there is none
if redis.call('EXISTS', KEYS[2]) == 0 then
  return -1
end
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(held) > now then
  redis.call('HSET', KEYS[2], 'cancel', 1)
else
  redis.call('HSET', KEYS[2], 'state', 'cancelled', 'ended', string.format('%.3f', now / 1000))
  redis.call('HDEL', KEYS[2], 'holder')
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
