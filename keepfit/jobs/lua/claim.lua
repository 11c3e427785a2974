-- claim: a lease lays down what it has done and takes what comes next.
--
-- Models that are the caller's own come first: the leases that are awake share the models by hash, so that one model's
-- work finds its bundle warm. A caller with nothing of its own takes its share of the others'.
--
-- KEYS[1] waiting    list of models with work, each once
-- KEYS[2] known      set of the same
-- KEYS[3] leases     sorted set of leases, score: deadline in milliseconds
-- KEYS[4] claimed    list of the entries this lease has in hand
-- KEYS[5] queue      RQ's list of jobs that wait for a worker
-- KEYS[6] since      milliseconds at which what waits began to wait for the next claim
-- KEYS[7] holders    hash of leases at work: '<worker> <milliseconds of its last claim>'
-- KEYS[8] questions  hash with each model's questions in order: <model>:<number>, <model>:first, <model>:next
-- KEYS[9] turns      hash of slow models: questions that one claim may take of it
-- ARGV[1] lease      the caller's id
-- ARGV[2] ttl        milliseconds a lease lives without being renewed
-- ARGV[3] worker     the caller's name
-- ARGV[4] models     models to take; 0 only renews and lays nothing down
-- ARGV[5] questions  questions to take of them in all; 0 takes the models themselves
-- ARGV[6] keep       milliseconds that the list of claimed entries lives on, in case nobody abandons it
-- ARGV[7] awake      milliseconds after which a lease that claims nothing leaves its models to the others
--
-- returns {-1} the lease is not valid (any more); else {jobs that wait for a worker, {model, turn, ...}, entries...}:
--         the slow models among those taken with what bounded them, and hashes of models or questions
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  return {-1}
end
local answer = {redis.call('LLEN', KEYS[5]), {}}
local models, budget = tonumber(ARGV[4]), tonumber(ARGV[5])
local look = {}
if models > 0 then
  redis.call('DEL', KEYS[4])
  look = redis.call('LRANGE', KEYS[1], 0, math.max(models, 32) - 1)
  if #look == 0 then
    -- Nothing is in hand and nothing waits: the lease lives on by its pulse.
    return answer
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
if models == 0 then
  return answer
end
redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. string.format('%.0f', now))

local awake = {ARGV[3]}
if redis.call('HLEN', KEYS[7]) > 1 then
  awake = {}
  for _, holder in ipairs(redis.call('HVALS', KEYS[7])) do
    local name, last = string.match(holder, '^(.*) (%d+)$')
    if now - tonumber(last) < tonumber(ARGV[7]) then
      awake[#awake + 1] = name
    end
  end
  table.sort(awake)
end
local own, others = {}, {}
for _, model in ipairs(look) do
  if awake[tonumber(string.sub(model, 1, 8), 16) % #awake + 1] == ARGV[3] then
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
local function take(model)
  local found = redis.call('HMGET', KEYS[8], model .. ':first', model .. ':next')
  local first, next_number = tonumber(found[1] or 0), tonumber(found[2] or 0)
  local bound = redis.call('HGET', KEYS[9], model)
  if bound then
    table.insert(answer[2], model)
    table.insert(answer[2], bound)
  end
  -- Where others are awake too, they shall have something to do.
  local turn = math.min(budget, tonumber(bound or budget), math.ceil((next_number - first) / #awake))
  local began = taken
  while first < next_number and taken < budget and taken - began < turn do
    local question = redis.call('HGET', KEYS[8], model .. ':' .. first)
    local waits = question and tonumber(string.sub(question, 2, 14)) >= now
    local suspect = waits and string.sub(question, 1, 1) ~= '0'
    if suspect and taken > 0 then
      break
    end
    redis.call('HDEL', KEYS[8], model .. ':' .. first)
    first = first + 1
    if waits then
      held[#held + 1] = model .. question
      answer[#answer + 1] = string.sub(question, 15)
      taken = taken + 1
    end
    if suspect then
      -- It was in hand when a worker died; if it is why, it shall take no others along again.
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
  redis.call('LREM', KEYS[1], 1, model)
  if asks then
    take(model)
  else
    redis.call('SREM', KEYS[2], model)
    held[i], answer[i + 2] = model, model
  end
end
for i = 1, #held, 1000 do
  redis.call('RPUSH', KEYS[4], unpack(held, i, math.min(i + 999, #held)))
end
if #held > 0 then
  redis.call('PEXPIRE', KEYS[4], ARGV[6])
end
redis.call('SET', KEYS[6], now)
return answer
