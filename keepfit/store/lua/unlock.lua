-- unlock: release a model's lock, unless requests are pending that no other worker would notice.
--
-- KEYS[1] state   hash of the model
-- KEYS[2] lock    lease that learns the model
-- ARGV[1] token   lease of the caller
-- ARGV[2] force   '1' releases the lock even if requests are pending
-- ARGV[3] alive   '1' if the caller is the worker of this lease and its last claim did no harm: that claim does not
--                 count as an attempt then
--
-- returns 1 requests are pending (and the lock is kept, unless forced); 0 none is pending; -1 the caller does not hold
--         the lock
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return -1
end
local state = redis.call('HMGET', KEYS[1], 'accepted', 'learned', 'attempts')
local waits = state[1] and tonumber(state[1]) > tonumber(state[2])
if not waits or ARGV[2] == '1' then
  redis.call('DEL', KEYS[2])
end
if ARGV[3] == '1' and tonumber(state[3] or 0) > 0 then
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
return waits and 1 or 0
