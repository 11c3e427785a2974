-- rewind: replace a live bundle by another one, if the model is still the one that the caller read. Pending requests
-- stay and are learned on top of the new bundle. The model gets a new generation, so that no reader takes its earlier
-- state for the present one; `origin` keeps the generation in which its sequences began.
--
-- KEYS[1] state         hash of the model
-- KEYS[2] bundle        live bundle
-- KEYS[3] staged        staged bundle; its header names the last sequence of the live bundle as its own
-- KEYS[4] inbox         stream of requests: retained ones, then pending ones
-- KEYS[5...] big        rows of large requests that are retained
-- ARGV[1] generation    integer, of the model that the caller read
-- ARGV[2] old digest    digest of its bundle at that time, '' if it had none
-- ARGV[3] new generation  integer, from MongoDB
-- ARGV[4] version       integer, of the staged bundle
-- ARGV[5] rows_seen     number of rows that the staged bundle has learned
-- ARGV[6] digest        SHA-256 hex of the staged bundle
-- ARGV[7] metrics       JSON
-- ARGV[8] width         columns of a row, '' if unknown
-- ARGV[9] changed       JSON of the parameters that were changed before the snapshot, '' for none
-- ARGV[10] channel      channel of the commit feed
-- ARGV[11] hash         hash of the model
-- ARGV[12] base         replay base of the requests that are learned later, as in install; '=' if the staged bundle has
--                       learned the same requests as the live one: then all retained requests stay
--
-- returns 1 replaced, by this call or by an earlier identical one; 0 the model is gone, or is not the one that the
--         caller read; -1 the staged bundle is missing. Below 1 nothing was changed.
local state = redis.call('HMGET', KEYS[1], 'generation', 'digest', 'learned', 'origin', 'kept')
if state[1] == ARGV[3] then
  redis.call('UNLINK', KEYS[3])
  return 1
end
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
  return 0
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  return -1
end
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
-- A worker that has claimed the former bundle cannot commit it; its claim must not count as an attempt.
redis.call('HSET', KEYS[1], 'generation', ARGV[3], 'origin', state[4] or state[1], 'version', ARGV[4], 'rows_seen', ARGV[5],
  'digest', ARGV[6], 'metrics', ARGV[7], 'snapshot', '', 'snapshot_version', '-1', 'attempts', 0)
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[1], 'width', ARGV[8])
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[1], 'changed', ARGV[9])
else
  redis.call('HDEL', KEYS[1], 'changed')
end
if ARGV[12] ~= '=' then
  -- Forget the requests that were learned after the snapshot. The snapshot is the replay base of later requests.
  local bytes = string.match(state[5] or '0', '%d+$')
  redis.call('XTRIM', KEYS[4], 'MINID', '=', string.format('%.0f', state[3] + 1) .. '-0')
  for i = 5, #KEYS do
    redis.call('UNLINK', KEYS[i])
  end
  redis.call('HDEL', KEYS[1], 'large')
  redis.call('HSET', KEYS[1], 'base', ARGV[12], 'kept', table.concat({state[3], bytes, state[3], bytes, bytes}, ' '))
end
redis.call('PUBLISH', ARGV[10], table.concat({ARGV[11], ARGV[3], ARGV[4], state[3], ARGV[5], '0', ''}, ' '))
return 1
