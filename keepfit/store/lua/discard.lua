-- discard: forget requests that were put aside, for good.
--
-- KEYS[1] state    hash of the model
-- KEYS[2] dead     stream of requests put aside
-- KEYS[3...] big   rows of the large request at the same place in ARGV; KEYS[2] beside a small one
-- ARGV[1...] ids   requests in the stream of those put aside
--
-- returns {number forgotten, version}; {} where there is no such model
local version = redis.call('HGET', KEYS[1], 'version')
if not version then
  return {}
end
local ids, count = {}, 0
for i = 1, #ARGV do
  ids[i] = ARGV[i]
end
for i = 3, #KEYS do
  local item = redis.call('XRANGE', KEYS[2], ids[i - 2], ids[i - 2])[1]
  if item then
    count = count + redis.call('XDEL', KEYS[2], item[1])
    -- A request that is there no more may wait in the inbox again, and needs its rows.
    if item[2][10] ~= '' and item[2][10] == KEYS[i] then
      redis.call('UNLINK', KEYS[i])
    end
  end
end
if count > 0 then
  redis.call('HINCRBY', KEYS[1], 'removed', count)
end
return {count, tonumber(version)}
