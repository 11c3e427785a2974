-- delete: forget a model; its snapshots stay where they are.
--
-- KEYS[1] state, KEYS[2] bundle, KEYS[3] inbox, KEYS[4] lock, KEYS[5] dead
-- KEYS[6...] big    rows of large requests that wait or were put aside
-- ARGV[1] channel   where gateways hear of it
-- ARGV[2] hash      the model's hash
--
-- returns 1 forgotten; 0 there was none
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
for i = 6, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
redis.call('PUBLISH', ARGV[1], table.concat({ARGV[2], generation, '-1', '0', '0', '0', ''}, ' '))
return 1
