-- rewind: put another bundle in the place of a live one, which its caller has looked at. What waits to be learned stays
-- and is learned on top of it. The model goes on as another generation, so that nobody takes what it was for what it is;
-- `origin` keeps the generation in which its sequences began.
--
-- KEYS[1] state         hash of the model
-- KEYS[2] bundle        live bundle
-- KEYS[3] staged        bundle written ahead; it names the last sequence that the live one has learned as its own
-- KEYS[4] inbox         stream of requests: those that wait, before them those that are kept
-- KEYS[5...] big        rows of large requests that are kept
-- ARGV[1] generation    integer of the model as the caller saw it
-- ARGV[2] old digest    of its bundle then, '' where it had none
-- ARGV[3] new generation  integer, from MongoDB
-- ARGV[4] version       integer, of the staged bundle
-- ARGV[5] rows_seen     rows that the staged bundle has learned
-- ARGV[6] digest        SHA-256 hex of the staged bundle
-- ARGV[7] metrics       JSON
-- ARGV[8] width         columns of a row, '' where that is not known
-- ARGV[9] changed       JSON of the parameters that were changed before the snapshot, '' for none
-- ARGV[10] channel      where gateways hear of it
-- ARGV[11] hash         the model's hash
-- ARGV[12] base         what requests that are learned from now on come on top of, as in install; '=' where the staged
--                       bundle has learned just what the live one has, so that what is kept is kept on
--
-- returns 1 done, perhaps by this very call before; 0 the model is gone, or is not what the caller saw; -1 the staged
--         bundle is gone. Below 1 nothing changed.
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
-- Who has the bundle of before in hand commits nothing any more, and did not die of it.
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
  -- What was learned after the snapshot is forgotten, and what is learned from now on comes on top of it.
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
