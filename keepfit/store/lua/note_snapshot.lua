-- note_snapshot: store a model's newest snapshot in its state, and delete the retained requests that it contains.
--
-- KEYS[1] state       hash of the model
-- KEYS[2] inbox       stream of requests: retained ones, then pending ones
-- KEYS[3...] big      rows of large requests that were retained when the model was saved
-- ARGV[1] generation  integer, of the saved model
-- ARGV[2] version     integer, of the snapshot
-- ARGV[3] snapshot    JSON
-- ARGV[4] sequence    last request that the snapshot has learned
-- ARGV[5] chain       hex request digest at that sequence
-- ARGV[6] digest      SHA-256 hex of the saved bundle
-- ARGV[7] bytes       bytes of all requests it had ever learned, as the state's field `kept` counts them (commit)
-- ARGV[8] base        replay base of the requests that are learned later, as in install
--
-- returns 1 stored; 0 the model is gone, was created again, or has a newer snapshot
local state = redis.call('HMGET', KEYS[1], 'generation', 'snapshot_version', 'digest', 'learned', 'kept', 'large')
if not state[1] or state[1] ~= ARGV[1] or tonumber(state[2]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'snapshot', ARGV[3], 'snapshot_version', ARGV[2])
-- Redis may have lost its last writes since, and have other requests under these sequences, or have not learned them
-- again yet. So requests are deleted only if exactly this bundle is live, or exactly this request was learned.
local last = redis.call('XRANGE', KEYS[2], ARGV[4] .. '-0', ARGV[4] .. '-0')[1]
local is_learned = last and last[2][4] == ARGV[5] and tonumber(ARGV[4]) <= tonumber(state[4])
if state[3] ~= ARGV[6] and not is_learned then
  return 1
end
-- The former `cut` is never after this sequence.
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
