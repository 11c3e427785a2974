-- delete: forget a model; its snapshots stay where they are.
--
-- KEYS[1] state, KEYS[2] bundle, KEYS[3] inbox, KEYS[4] lock, KEYS[5] dead
-- KEYS[6...] big    rows of large requests that wait or were put aside
-- ARGV[1] channel   where gateways hear of it
-- ARGV[2] hash      the model's hash
-- ARGV[3] newest    id of the newest request when `big` was read from the inbox, '0-0' where there was none
--
-- returns {0} there was none; else {1, big...}: large rows that came in since `big` was read, for the caller to remove
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
  return {0}
end
local answer = {1}
for _, item in ipairs(redis.call('XRANGE', KEYS[3], '(' .. ARGV[3], '+')) do
  answer[#answer + 1] = item[2][6]
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
for i = 6, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
redis.call('PUBLISH', ARGV[1], table.concat({ARGV[2], generation, '-1', '0', '0', '0', ''}, ' '))
return answer
