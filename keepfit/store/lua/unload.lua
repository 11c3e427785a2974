-- unload: delete an idle model from Redis. Its newest snapshot contains all that it has learned, so its next use
-- restores it.
--
-- KEYS[1] state         hash of the model
-- KEYS[2] bundle        live bundle
-- KEYS[3] inbox         stream of requests: retained ones, then pending ones
-- KEYS[4] lock          lease that learns the model, or a restore that has claimed it
-- KEYS[5] dead          stream of dead letters
-- KEYS[6] idle          idle record, written here; install reads it
-- KEYS[7] rows          hash of the open rows (keep_rows)
-- KEYS[8] ends          sorted set of their ids
-- KEYS[9] closed        sorted set of the ids of labelled and expired rows
-- ARGV[1] generation    integer, of the model that the caller read
-- ARGV[2] digest        SHA-256 hex of the bundle that the caller found in the storage
-- ARGV[3] idle          seconds for which nothing has read or written the bundle, at least
-- ARGV[4] ttl           milliseconds for which the idle record stays; idempotency keys live no longer
--
-- returns 1 deleted; 0 the model is gone, is not the one that the caller read, is in use, has requests, dead letters or open
--         rows, or its snapshot was not noted: nothing was changed
local state = redis.call('HMGET', KEYS[1], 'generation', 'digest', 'version', 'snapshot_version', 'origin', 'removed')
if not state[1] or state[1] ~= ARGV[1] or state[2] ~= ARGV[2] or state[3] ~= state[4] then
  return 0
end
if redis.call('EXISTS', KEYS[4]) == 1 or redis.call('XLEN', KEYS[3]) > 0 or redis.call('XLEN', KEYS[5]) > 0 then
  return 0
end
if redis.call('HLEN', KEYS[7]) > 0 then
  return 0
end
local idle = redis.call('OBJECT', 'IDLETIME', KEYS[2])
if not idle or idle < tonumber(ARGV[3]) then
  return 0
end
redis.call('SET', KEYS[6], table.concat({state[1], state[2], state[5] or state[1], state[6] or ''}, ' '), 'PX', ARGV[4])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[5])
redis.call('UNLINK', KEYS[7], KEYS[8], KEYS[9])
return 1
