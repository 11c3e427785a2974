-- create_job: make a pull job, unless it exists.
--
-- KEYS[1] job            hash, the record of the job
-- KEYS[2] jobs           sorted set of all jobs by the time at which they were made
-- KEYS[3] open           sorted set of the jobs that have not ended
-- ARGV[1] id             of the job
-- ARGV[2] digest         hex digest of its request; distinguishes a repeated call from another body
-- ARGV[3] open max       number of jobs that may be open
-- ARGV[4] jobs max       number of all jobs
-- ARGV[5...] fields      names and values of its record, in turn
--
-- returns {'made'}
--         {'exists', digest}   there is a job of this id, made by a request with this digest
--         {'full', number}     so many jobs are open, or are kept
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then
  return {'exists', digest}
end
local open, all = redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[2])
if open >= tonumber(ARGV[3]) or all >= tonumber(ARGV[4]) then
  return {'full', open}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'digest', ARGV[2], 'state', 'queued',
  'created', string.format('%.3f', now / 1000))
for i = 5, #ARGV do
  if i % 2 == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
return {'made'}
