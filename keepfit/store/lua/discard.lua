-- discard: delete dead letters permanently.
--
-- KEYS[1] state    hash of the model
-- KEYS[2] dead     stream of dead letters
-- KEYS[3...] big   rows of the large request at the same place in ARGV; KEYS[2] for a small request
-- ARGV[1...] ids   ids of dead letters
--
-- returns {number deleted, version}; {} if there is no such model
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
    -- A dead letter that is missing here may be pending again, and needs its rows.
    if item[2][10] ~= '' and item[2][10] == KEYS[i] then
      redis.call('UNLINK', KEYS[i])
    end
  end
end
if count > 0 then
  redis.call('HINCRBY', KEYS[1], 'removed', count)
end
return {count, tonumber(version)}
