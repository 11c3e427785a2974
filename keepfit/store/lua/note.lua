-- note: tell a model of its newest snapshot, and let go of the learned requests that are in it.
--
-- KEYS[1] state       hash of the model
-- KEYS[2] inbox       stream of requests: those that wait, before them those that are kept
-- KEYS[3...] big      rows of large requests that were kept when the model was saved
-- ARGV[1] generation  of the model that was saved
-- ARGV[2] version     of the snapshot
-- ARGV[3] snapshot    JSON
-- ARGV[4] sequence    last request that the snapshot has learned
-- ARGV[5] chain       hex digest of that request
-- ARGV[6] digest      SHA-256 hex of the bundle that was saved
-- ARGV[7] bytes       of all that it had ever learned, as the state's `kept` counts them (commit)
-- ARGV[8] base        what requests come on top of that are learned after it, as in install
--
-- returns 1 noted; 0 the model is gone, was made again, or knows a newer one
local state = redis.call('HMGET', KEYS[1], 'generation', 'snapshot_version', 'digest', 'learned', 'kept', 'large')
if not state[1] or state[1] ~= ARGV[1] or tonumber(state[2]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'snapshot', ARGV[3], 'snapshot_version', ARGV[2])
-- Redis may have lost its tail since, and learned other requests under these sequences, or not yet learned them again:
-- they go where the very bundle is live, or the very request was learned.
local last = redis.call('XRANGE', KEYS[2], ARGV[4] .. '-0', ARGV[4] .. '-0')[1]
local is_learned = last and last[2][4] == ARGV[5] and tonumber(ARGV[4]) <= tonumber(state[4])
if state[3] ~= ARGV[6] and not is_learned then
  return 1
end
-- What was cut off before was before that.
local half, half_bytes, bytes = string.match(state[5] or '0 0 0 0 0', '(%d+) (%d+) (%d+)$')
if tonumber(half) < tonumber(ARGV[4]) then
  half, half_bytes = ARGV[4], ARGV[7]
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('%.0f', ARGV[4] + 1) .. '-0')
redis.call('HSET', KEYS[1], 'base', ARGV[8], 'kept', table.concat({ARGV[4], ARGV[7], half, half_bytes, bytes}, ' '))
if #KEYS > 2 then
  for i = 3, #KEYS do
    redis.call('UNLINK', KEYS[i])
  end
  local large = {}
  for sequence, name in string.gmatch(state[6] or '', '(%d+) (%S+)') do
    if tonumber(sequence) > tonumber(ARGV[4]) then
      large[#large + 1], large[#large + 2] = sequence, name
    end
  end
  redis.call('HSET', KEYS[1], 'large', table.concat(large, ' '))
end
return 1
