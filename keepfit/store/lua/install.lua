-- install: create a model in Redis, new or from a snapshot, if none is live. Remains of a predecessor whose deletion
-- was interrupted are not a live model; they are deleted.
--
-- KEYS[1] state        hash of the model
-- KEYS[2] bundle       live bundle
-- KEYS[3] staged       staged bundle (read only if ARGV[8] is a digest)
-- KEYS[4] inbox        stream of pending requests
-- KEYS[5] lock         lease that learns the model, or a restore that has claimed it
-- KEYS[6] dead         stream of dead letters
-- KEYS[7] idle         idle record of a model that left Redis (unload)
-- KEYS[8] rows         open rows of a predecessor (keep_rows)
-- KEYS[9] ends         their ids by the time at which they expire
-- KEYS[10] closed      ids of its labelled and expired rows
-- KEYS[11...] big      rows of large requests of a predecessor
-- ARGV[1] metadata     canonical JSON
-- ARGV[2] recipe       JSON
-- ARGV[3] generation   integer, from MongoDB
-- ARGV[4] version      integer, 0 for a new model
-- ARGV[5] rows_seen    number of rows
-- ARGV[6] sequence     integer, last request that the bundle has learned
-- ARGV[7] chain        hex request digest at that sequence, '' for a new model
-- ARGV[8] digest       SHA-256 hex of the staged bundle, '' for a new model
-- ARGV[9] metrics      JSON
-- ARGV[10] snapshot    JSON of the snapshot that the bundle comes from, '' for a new model
-- ARGV[11] width       columns of a row, '' if the first learned request determines it
-- ARGV[12] born        integer, generation in which the model was created
-- ARGV[13] channel     channel of the commit feed; gateways discard what they know of a predecessor
-- ARGV[14] hash        hash of the model
-- ARGV[15] newest      id of the newest request when `big` was read from the inbox, '0-0' if there was none
-- ARGV[16] changed     JSON of the parameters that were changed before the snapshot, '' for none
-- ARGV[17] base        replay base: the last sequence that it has learned, then generation and version of a snapshot's
--                      document, separated by spaces; the sequence alone for the recipe; '' if there is no replay base
-- ARGV[18] seen        idle record that the caller read before it looked for a snapshot, '' if there was none
-- ARGV[19] origin      integer, generation in which the sequences began, '' if that is this one
-- ARGV[20] removed     number of dead letters that were retried or discarded, '' if there never was one
--
-- returns {0} a model is already live; {-1} the staged bundle is missing; {-2} a later restore has claimed the model
--         (restore_idempotency), or it was live and left Redis since the caller read its snapshot: nothing was
--         changed; else {1, big...}: installed; keys of large requests that arrived
--         after `big` was read; the caller deletes them
local live = redis.call('HGET', KEYS[1], 'generation')
if live and tonumber(live) >= tonumber(ARGV[12]) then
  return {0}
end
local claim = string.match(redis.call('GET', KEYS[5]) or '', '^restore (%d+)$')
if claim and tonumber(claim) > tonumber(ARGV[3]) then
  return {-2}
end
-- The snapshot that the caller has read may lack what the model learned before it left. The record of a predecessor says
-- nothing about this model.
local idle = redis.call('GET', KEYS[7])
if idle and idle ~= ARGV[18] and tonumber(string.match(idle, '^%d+')) >= tonumber(ARGV[12]) then
  return {-2}
end
if ARGV[8] ~= '' and redis.call('EXISTS', KEYS[3]) == 0 then
  return {-1}
end
local answer = {1}
for _, item in ipairs(redis.call('XRANGE', KEYS[4], '(' .. ARGV[15], '+')) do
  answer[#answer + 1] = item[2][6]
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
redis.call('UNLINK', KEYS[8], KEYS[9], KEYS[10])
for i = 11, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if ARGV[8] ~= '' then
  redis.call('RENAME', KEYS[3], KEYS[2])
  redis.call('PERSIST', KEYS[2])
end
redis.call('HSET', KEYS[1],
  'metadata', ARGV[1], 'recipe', ARGV[2], 'generation', ARGV[3], 'version', ARGV[4], 'rows_seen', ARGV[5],
  'accepted', ARGV[6], 'learned', ARGV[6], 'chain', ARGV[7], 'digest', ARGV[8], 'metrics', ARGV[9],
  'snapshot', ARGV[10], 'snapshot_version', ARGV[10] == '' and '-1' or ARGV[4], 'bytes', 0, 'attempts', 0,
  'base', ARGV[17], 'kept', ARGV[6] .. ' 0 ' .. ARGV[6] .. ' 0 0')
if ARGV[11] ~= '' then
  redis.call('HSET', KEYS[1], 'width', ARGV[11])
end
if ARGV[16] ~= '' then
  redis.call('HSET', KEYS[1], 'changed', ARGV[16])
end
if ARGV[19] ~= '' then
  redis.call('HSET', KEYS[1], 'origin', ARGV[19])
end
if ARGV[20] ~= '' then
  redis.call('HSET', KEYS[1], 'removed', ARGV[20])
end
redis.call('PUBLISH', ARGV[13], table.concat({ARGV[14], ARGV[3], ARGV[4], ARGV[6], ARGV[5], '0', ''}, ' '))
return answer
