-- push: add entries to a run queue, and decide whether one more lease is needed.
--
-- KEYS[1] models     list of models with work, each once
-- KEYS[2] known      set of the same models
-- KEYS[3] leases     sorted set of leases, score: deadline in milliseconds since 1970
-- KEYS[4] workers    RQ's set of live workers
-- KEYS[5] since      milliseconds since 1970 at which the work began to wait for the next claim
-- KEYS[6] requests   hash with each model's worker requests in order: <model>:<number>, <model>:first, <model>:next
-- KEYS[7] holders    hash of leases that are drained by a worker; the last word is the time of the last claim
-- KEYS[8] wake-ups   stream that lingering leases wait for; an entry names KEYS[1]
-- ARGV[1] lease      id for a new lease
-- ARGV[2] ttl        milliseconds until a lease expires that is not renewed
-- ARGV[3] late       milliseconds that work may wait before one more lease is enqueued
-- ARGV[4] busy       milliseconds since its last claim after which a lease is busy with something slow. If all are, one
--                    more is enqueued at once
-- ARGV[5] most       number of requests that may wait for one model
-- ARGV[6...] entries hash of a model (64 characters); in the predict queue followed by the milliseconds that the
--                    request may wait (9 digits), and the request. Without entries, the script only decides whether a
--                    lease is needed
--
-- returns {1 if the caller must enqueue the RQ job named ARGV[1], else 0; numbers (from 1) of refused entries...}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer, ends = {0}, {}
local idle = redis.call('LLEN', KEYS[1]) == 0
local added = false
for i = 6, #ARGV do
  local model = string.sub(ARGV[i], 1, 64)
  local taken = true
  if #ARGV[i] > 64 then
    local range = ends[model]
    if not range then
      local found = redis.call('HMGET', KEYS[6], model .. ':first', model .. ':next')
      range = {tonumber(found[1] or 0), tonumber(found[2] or 0)}
      ends[model] = range
    end
    -- A request past its deadline has no waiting client. It must not take the place of a request that has one.
    while range[2] - range[1] >= tonumber(ARGV[5]) do
      local oldest = redis.call('HGET', KEYS[6], model .. ':' .. range[1])
      if oldest and tonumber(string.sub(oldest, 2, 14)) >= now then
        break
      end
      redis.call('HDEL', KEYS[6], model .. ':' .. range[1])
      range[1] = range[1] + 1
    end
    taken = range[2] - range[1] < tonumber(ARGV[5])
    if taken then
      local deadline = string.format('%013.0f', now + tonumber(string.sub(ARGV[i], 65, 73)))
      redis.call('HSET', KEYS[6], model .. ':' .. range[2], '0' .. deadline .. string.sub(ARGV[i], 74))
      range[2] = range[2] + 1
    else
      answer[#answer + 1] = i - 5
    end
  end
  if taken and redis.call('SADD', KEYS[2], model) == 1 then
    redis.call('RPUSH', KEYS[1], model)
    added = true
  end
end
for model, range in pairs(ends) do
  redis.call('HSET', KEYS[6], model .. ':first', range[1], model .. ':next', range[2])
end
if added then
  redis.call('XADD', KEYS[8], 'MAXLEN', 1, '*', 'models', KEYS[1])
end
if redis.call('LLEN', KEYS[1]) == 0 then
  return answer
end
if idle then
  redis.call('SET', KEYS[5], now)
end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  -- A repeated call: the answer to the first one, which told the caller to enqueue the job, was lost.
  answer[1] = 1
  return answer
end
-- The first lease drains the queue once RQ has given its job to a worker. One more lease pays off only if the existing
-- ones do not claim the work in time. Each new one gets a while to do so before the next.
local leases, grace = redis.call('ZCARD', KEYS[3]), 100
if leases > 0 then
  local holders = redis.call('HVALS', KEYS[7])
  local is_late = now - tonumber(redis.call('GET', KEYS[5]) or now) >= tonumber(ARGV[3])
  local are_busy = #holders >= leases
  for _, holder in ipairs(holders) do
    are_busy = are_busy and now - tonumber(string.match(holder, '%d+$')) >= tonumber(ARGV[4])
  end
  if not (is_late or are_busy) or leases >= redis.call('SCARD', KEYS[4]) then
    return answer
  end
  grace = 0
end
redis.call('SET', KEYS[5], string.format('%.0f', now + grace))
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
answer[1] = 1
return answer
