-- delete: delete a model from Redis. Its snapshots stay.
--
-- KEYS[1] state, KEYS[2] bundle, KEYS[3] inbox, KEYS[4] lock, KEYS[5] dead
-- KEYS[6] rows, KEYS[7] ends, KEYS[8] closed: its open rows (keep_rows)
-- KEYS[9...] others rows of large requests that are pending or dead letters; stored answers (commit)
-- ARGV[1] channel   channel of the commit feed
-- ARGV[2] hash      hash of the model
-- ARGV[3] newest    id of the newest request when `others` were read from the inbox, '0-0' if there was none
--
-- returns {0} if there was no model; else {1, big...}: keys of large requests that arrived after `others` were read; the
--         caller deletes them
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
  return {0}
end
local answer = {1}
for _, item in ipairs(redis.call('XRANGE', KEYS[3], '(' .. ARGV[3], '+')) do
  answer[#answer + 1] = item[2][6]
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('UNLINK', KEYS[6], KEYS[7], KEYS[8])
for i = 9, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
redis.call('PUBLISH', ARGV[1], table.concat({ARGV[2], generation, '-1', '0', '0', '0', ''}, ' '))
return answer
