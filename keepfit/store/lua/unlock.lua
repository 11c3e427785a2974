-- unlock: let go of a model, unless requests wait that nobody else would notice.
--
-- KEYS[1] state   hash of the model
-- KEYS[2] lock    who learns the model
-- ARGV[1] token   the caller's lease
-- ARGV[2] force   '1' lets go in any case
-- ARGV[3] alive   '1' where the caller is the lease's own worker and the requests it read last did it no harm: that
--                 read is no attempt then
--
-- returns 1 requests wait (and the caller keeps the lock, unless forced); 0 none wait; -1 the lock is not the caller's
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
