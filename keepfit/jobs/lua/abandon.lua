-- abandon: end a lease that no worker executes any more, and put its claimed entries back to the front of their run
-- queue, in order: models to the learn queue, requests to the predict queue.
--
-- KEYS[1] to learn    list of models with rows to learn, each once
-- KEYS[2] known       set of the same models
-- KEYS[3] to predict  list of models with requests, each once
-- KEYS[4] known       set of the same models
-- KEYS[5] leases      sorted set of leases
-- KEYS[6] claimed     list of the entries that the lease has claimed
-- KEYS[7] holders     hash of leases that are drained by a worker
-- KEYS[8] requests    hash with each model's worker requests in order: <model>:<number>, <model>:first, <model>:next
-- KEYS[9] poison      list of poison requests: several workers died while they processed them
-- ARGV[1] lease       id of the lease
-- ARGV[2] deaths      number of workers that may die with a request before it becomes a poison request
-- ARGV[3] died        1 if the worker has died while it processed the entries, else 0
--
-- returns the number of entries put back; -1 if there is no such lease
redis.call('HDEL', KEYS[7], ARGV[1])
if redis.call('ZREM', KEYS[5], ARGV[1]) == 0 then
  return -1
end
local back = 0
local entries = redis.call('LRANGE', KEYS[6], 0, -1)
for i = #entries, 1, -1 do
  local model, request = string.sub(entries[i], 1, 64), string.sub(entries[i], 65)
  local deaths = request ~= '' and tonumber(string.sub(request, 1, 1)) + ARGV[3] or 0
  if deaths >= tonumber(ARGV[2]) then
    redis.call('RPUSH', KEYS[9], string.sub(request, 15))
  else
    if request == '' then
      if redis.call('SADD', KEYS[2], model) == 1 then
        redis.call('LPUSH', KEYS[1], model)
      end
    else
      local first = redis.call('HINCRBY', KEYS[8], model .. ':first', -1)
      redis.call('HSETNX', KEYS[8], model .. ':next', first + 1)
      redis.call('HSET', KEYS[8], model .. ':' .. first, deaths .. string.sub(request, 2))
      if redis.call('SADD', KEYS[4], model) == 1 then
        redis.call('LPUSH', KEYS[3], model)
      end
    end
    back = back + 1
  end
end
redis.call('DEL', KEYS[6])
return back
