-- expire_rows: delete open rows whose time is over, and forget what was remembered of rows for long enough.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] rows           hash of the open rows, by id (keep_rows)
-- KEYS[3] ends           sorted set of their ids by the milliseconds at which they expire
-- KEYS[4] closed         sorted set of the ids of labelled and of expired rows (keep_rows)
-- ARGV[1] most           number of rows to delete, and to forget, at most
-- ARGV[2] remembered     milliseconds for which it is remembered that a row has expired
-- ARGV[3] remembered max number of labelled and expired rows that are remembered
--
-- returns {open rows, their bytes, microseconds of Redis' clock, 1 if there may be more to delete}; no rows if there is
--         no such model
local state = redis.call('HMGET', KEYS[1], 'generation', 'open_rows', 'open_bytes')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = string.format('%.0f', time[1] * 1000000 + time[2])
if not state[1] then
  return {0, 0, micros, 0}
end
local rows, bytes = tonumber(state[2] or 0), tonumber(state[3] or 0)
local over = string.format('%.0f', now)
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', over, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(expired) do
  rows, bytes = rows - 1, bytes - #id - redis.call('HSTRLEN', KEYS[2], id) - 200
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZADD', KEYS[4], string.format('%.0f', now + ARGV[2]), 'e' .. id)
end
local forgotten = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', over, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(forgotten) do
  redis.call('ZREM', KEYS[4], member)
end
if #expired > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -ARGV[3] - 1)
  redis.call('HSET', KEYS[1], 'open_rows', string.format('%.0f', rows), 'open_bytes', string.format('%.0f', bytes))
end
local more = math.max(#expired, #forgotten) >= tonumber(ARGV[1])
return {rows, bytes, micros, more and 1 or 0}
