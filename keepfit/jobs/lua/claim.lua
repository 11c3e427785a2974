-- claim: complete a lease's last batch and claim its next one.
--
-- The awake leases share the models by hash, so that the work of one model finds its bundle in a worker's cache. A
-- caller claims models of its own share first. If none of them has work, it claims a part of the other shares.
--
-- A very slow model is claimed alone, one request at a time, and never by the last worker: of W workers, up to W - 1 may
-- be busy with models of this kind or with any other long call (one, if there is only one), so that the work of other
-- models does not wait.
--
-- A model that another lease restores or repairs (mark_restores) is not claimed: its work waits until that is done.
--
-- KEYS[1] models     list of models with work, each once
-- KEYS[2] known      set of the same models
-- KEYS[3] leases     sorted set of leases, score: deadline in milliseconds since 1970
-- KEYS[4] claimed    list of the entries that this lease has claimed
-- KEYS[5] jobs       RQ's list of jobs that wait for a worker
-- KEYS[6] since      milliseconds since 1970 at which the work began to wait for the next claim
-- KEYS[7] holders    hash of leases that are drained by a worker: '<worker> <milliseconds of its last claim>'; with
--                    ' <model>' after the worker if it has claimed a very slow one
-- KEYS[8] requests   hash with each model's worker requests in order: <model>:<number>, <model>:first, <model>:next
-- KEYS[9] slow       hash of slow models: number of requests that one claim may take; '01' for a very slow one
-- KEYS[10] workers   RQ's set of live workers
-- KEYS[11] restores  hash of models that are restored or repaired: the lease that does it
-- KEYS[12] others    list of models with work of the other run queue
-- KEYS[13] wake-ups  stream that lingering leases wait for
-- ARGV[1] lease      id of the caller's lease
-- ARGV[2] ttl        milliseconds until a lease expires that is not renewed
-- ARGV[3] worker     name of the caller
-- ARGV[4] models     number of models to claim
-- ARGV[5] requests   number of requests to claim of them in total; 0 claims the models themselves
-- ARGV[6] keep       milliseconds until the list of claimed entries expires if nothing abandons it
-- ARGV[7] awake      milliseconds since its last claim for which a lease is awake; then others take over its models
-- ARGV[8] late       milliseconds that work may wait before one more lease is enqueued
--
-- returns {} if the lease is not valid (any more); else {{number of jobs that wait for a worker, number of models that
--         are left in the run queue, number of models in the other one, 1 if work that was late is left and one more
--         lease is to be enqueued, id of the last wake-up}, {model, bound, ...}, entries...}: the slow models among the
--         claimed ones with the bound that applied, and hashes of models; or the milliseconds until the deadline of a
--         request (9 digits), followed by the request. Without entries, the models are those that wait and that this
--         worker may not claim now, as very slow ones

-- Workers of 0.1 take one request of such a model at a time.
local VERY_SLOW = '01'

if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  return {}
end
local models, budget = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local woken = redis.call('XREVRANGE', KEYS[13], '+', '-', 'COUNT', 1)
local state = {redis.call('LLEN', KEYS[5]), 0, redis.call('LLEN', KEYS[12]), 0, woken[1] and woken[1][1] or '0-0'}
local answer = {state, {}}
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. string.format('%.0f', now))
local look = redis.call('LRANGE', KEYS[1], 0, math.max(models, 32) - 1)
if #look == 0 then
  -- Nothing is claimed and no model has work: the heartbeat renews the lease.
  return answer
end
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])

local awake, busy = {ARGV[3]}, 0
if redis.call('HLEN', KEYS[7]) > 1 then
  awake = {}
  for _, holder in ipairs(redis.call('HVALS', KEYS[7])) do
    local name, model, last = string.match(holder, '^(%S+) ?(%x*) (%d+)$')
    local is_awake = now - tonumber(last) < tonumber(ARGV[7])
    if model ~= '' or not is_awake then
      busy = busy + 1
    end
    if is_awake then
      awake[#awake + 1] = name
    end
  end
  table.sort(awake)
end
local own, others, kept = {}, {}, {}
local is_last = busy > 0 and busy >= redis.call('SCARD', KEYS[10]) - 1
local bounds = is_last and redis.call('HMGET', KEYS[9], unpack(look)) or {}
local restores = redis.call('EXISTS', KEYS[11]) == 1 and redis.call('HMGET', KEYS[11], unpack(look)) or {}
for i, model in ipairs(look) do
  local by = restores[i]
  local is_restored = by and by ~= ARGV[1] and redis.call('ZSCORE', KEYS[3], by)
  if is_restored or bounds[i] == VERY_SLOW then
    table.insert(kept, model)
    table.insert(kept, VERY_SLOW)
  elseif awake[tonumber(string.sub(model, 1, 8), 16) % #awake + 1] == ARGV[3] then
    own[#own + 1] = model
  else
    others[#others + 1] = model
  end
end
if #own == 0 and #others > 0 then
  for i = 1, math.ceil(#others / #awake) do
    own[i] = others[i]
  end
end

local taken, held = 0, {}
local function take_requests(model, bound)
  local found = redis.call('HMGET', KEYS[8], model .. ':first', model .. ':next')
  local first, next_number = tonumber(found[1] or 0), tonumber(found[2] or 0)
  -- Leave a share of the requests to the other awake leases.
  local turn = math.min(budget, tonumber(bound or budget), math.ceil((next_number - first) / #awake))
  local began = taken
  while first < next_number and taken < budget and taken - began < turn do
    local request = redis.call('HGET', KEYS[8], model .. ':' .. first)
    local waits = request and tonumber(string.sub(request, 2, 14)) >= now
    local suspect = waits and string.sub(request, 1, 1) ~= '0'
    if suspect and taken > 0 then
      break
    end
    redis.call('HDEL', KEYS[8], model .. ':' .. first)
    first = first + 1
    if waits then
      held[#held + 1] = model .. request
      local left = string.format('%09.0f', tonumber(string.sub(request, 2, 14)) - now)
      answer[#answer + 1] = left .. string.sub(request, 15)
      taken = taken + 1
    end
    if suspect then
      -- A worker died after it claimed this request. If the request is the cause, no other request is lost with it.
      budget = 0
    end
  end
  if first < next_number then
    redis.call('HSET', KEYS[8], model .. ':first', first)
    redis.call('RPUSH', KEYS[1], model)
  else
    redis.call('HDEL', KEYS[8], model .. ':first', model .. ':next')
    redis.call('SREM', KEYS[2], model)
  end
end

local asks = budget > 0
for i, model in ipairs(own) do
  if i > models or (asks and taken >= budget) then
    break
  end
  local bound, began = redis.call('HGET', KEYS[9], model), taken
  local alone = bound == VERY_SLOW
  if not alone or taken == 0 then
    redis.call('LREM', KEYS[1], 1, model)
    if asks then
      take_requests(model, bound)
    else
      redis.call('SREM', KEYS[2], model)
      taken = taken + 1
      held[taken], answer[taken + 2] = model, model
    end
    if bound and taken > began then
      table.insert(answer[2], model)
      table.insert(answer[2], bound)
    end
    if alone and taken > 0 then
      redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. model .. ' ' .. string.format('%.0f', now))
      break
    end
  end
end
for i = 1, #held, 1000 do
  redis.call('RPUSH', KEYS[4], unpack(held, i, math.min(i + 999, #held)))
end
state[2] = redis.call('LLEN', KEYS[1])
if #held > 0 then
  redis.call('PEXPIRE', KEYS[4], ARGV[6])
  local is_late = now - tonumber(redis.call('GET', KEYS[6]) or now) >= tonumber(ARGV[8])
  if is_late and state[2] > 0 and redis.call('ZCARD', KEYS[3]) < redis.call('SCARD', KEYS[10]) then
    state[4] = 1
  end
else
  answer[2] = kept
end
redis.call('SET', KEYS[6], now)
return answer
