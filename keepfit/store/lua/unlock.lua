-- unlock: release a model's lock, unless requests are pending that no other worker would notice; and count what the
-- requests of the last claim have done to their worker.
--
-- KEYS[1] state   hash of the model
-- KEYS[2] lock    lease that learns the model
-- ARGV[1] token   lease of the worker that learned
-- ARGV[2] force   '1' releases the lock even if requests are pending
-- ARGV[3] score   what the worker's claim counts: 0 if it did the worker no harm, 1 if the worker died, more if the same
--                 requests would do the same again
-- ARGV[4] harm    what happened to the worker, '' if nothing
--
-- Only the claim that came last counts, once, and only if it was not committed (the state's field `holder`, claim_inbox):
-- a lease that has merely expired says nothing about its requests.
--
-- returns 1 requests are pending (and the lock is kept, unless forced); 0 none is pending; -1 that lease does not hold
--         the lock
local state = redis.call('HMGET', KEYS[1], 'accepted', 'learned', 'attempts', 'tried', 'suspect', 'holder')
if state[6] == ARGV[1] then
  local learned, tried, score = tonumber(state[2]), tonumber(state[4]), tonumber(ARGV[3])
  if score > 0 and tried > learned then
    local attempts = tonumber(state[3] or 0) + score
    if attempts > 1 or tonumber(state[5] or 0) > learned then
      redis.call('HSET', KEYS[1], 'suspect', state[4])
      if tried - learned > 1 then
        attempts = 0
      end
    end
    redis.call('HSET', KEYS[1], 'attempts', attempts, 'harm', ARGV[4])
  end
  redis.call('HDEL', KEYS[1], 'holder')
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return -1
end
local waits = state[1] and tonumber(state[1]) > tonumber(state[2])
if not waits or ARGV[2] == '1' then
  redis.call('DEL', KEYS[2])
end
return waits and 1 or 0
