-- advance_job: renew the hold of a pull job, and store how far it is, or that it has ended.
--
-- KEYS[1] open           sorted set of the jobs that have not ended, by the end of their holder's time
-- KEYS[2] job            hash, the record of the job
-- ARGV[1] id             of the job
-- ARGV[2] holder         as of claim_job
-- ARGV[3] ttl            milliseconds for which it is held from now on; 0 to release it
-- ARGV[4] kept           milliseconds for which the record is kept if the job has ended; 0 if it goes on
-- ARGV[5...] fields      names and values to store in the record, in turn
--
-- returns 'held', 'cancel' if the job is to be cancelled, 'lost' if the process does not hold it: then nothing is stored
local found = redis.call('HMGET', KEYS[2], 'holder', 'cancel')
if found[1] ~= ARGV[2] then
  return 'lost'
end
for i = 5, #ARGV do
  if i % 2 == 1 then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[4] ~= '0' then
  redis.call('HSET', KEYS[2], 'ended', string.format('%.3f', now / 1000))
  redis.call('HDEL', KEYS[2], 'holder')
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('ZREM', KEYS[1], ARGV[1])
elseif ARGV[3] == '0' then
  redis.call('HDEL', KEYS[2], 'holder')
  redis.call('ZADD', KEYS[1], 0, ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
end
return found[2] and 'cancel' or 'held'
