-- retry: move dead letters to the end of the inbox, each under the next sequence. The script moves them atomically: a
-- request is in one of the two streams, never in both.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of pending requests
-- KEYS[3] dead           stream of dead letters
-- KEYS[4] idempotency    first answer to this call
-- KEYS[5...] big         rows of the large request at the same place in ARGV; KEYS[3] for a small request
-- ARGV[1] generation     integer, of the model that the caller read
-- ARGV[2] ttl            milliseconds for which a repeated call is recognized
-- ARGV[3] entries max    number of requests that may be pending
-- ARGV[4] bytes max      bytes that may be pending (one larger request may be pending alone)
-- ARGV[5...] ids         ids of dead letters
--
-- returns {'ok', version, outcomes, pending, pace}  `outcomes` has one word per id, separated by spaces: its new
--                     sequence, or why it was not moved: 'gone' (missing, or named twice), 'other' (its sequence is of
--                     an earlier model), 'lost' (its rows are missing), 'full' (it does not fit: `pending` requests are
--                     pending and `pace` of them are learned per second)
--         {'missing'} there is no such model
--         {'stale'}   the model was created again
local state = redis.call('HMGET', KEYS[1], 'generation', 'accepted', 'learned', 'bytes', 'chain', 'version', 'pace', 'origin')
if not state[1] then
  return {'missing'}
end
if state[1] ~= ARGV[1] then
  return {'stale'}
end
local accepted, bytes, chain = tonumber(state[2]), tonumber(state[4]), state[5]
local waiting, version, pace = accepted - tonumber(state[3]), tonumber(state[6]), tonumber(state[7] or 0)
local seen = redis.call('GET', KEYS[4])
if seen then
  return {'ok', version, seen, waiting, pace}
end
local outcomes, entries, count, named = {}, {}, 0, {}
for i = 5, #ARGV do
  local item = redis.call('XRANGE', KEYS[3], ARGV[i], ARGV[i])[1]
  local entry = item and item[2]
  local outcome = ''
  if not entry or named[item[1]] or (entry[10] ~= '' and entry[10] ~= KEYS[i]) then
    outcome = 'gone'
  elseif tonumber(entry[2]) < tonumber(state[8] or ARGV[1]) then
    outcome = 'other'
  elseif entry[10] ~= '' and redis.call('STRLEN', KEYS[i]) ~= tonumber(entry[12]) then
    outcome = 'lost'
  elseif waiting + count >= tonumber(ARGV[3])
    or (waiting + count > 0 and bytes + tonumber(entry[12]) > tonumber(ARGV[4])) then
    outcome = 'full'
  else
    count = count + 1
    bytes = bytes + tonumber(entry[12])
    outcome = string.format('%.0f', accepted + count)
    named[item[1]] = true
    entries[i] = {item[1], entry, outcome .. '-0'}
  end
  outcomes[#outcomes + 1] = outcome
end
for i = 5, #KEYS do
  if entries[i] then
    local old, entry, id = entries[i][1], entries[i][2], entries[i][3]
    chain = redis.sha1hex(chain .. ':' .. old .. ':' .. entry[8])
    if entry[10] ~= '' then
      redis.call('XADD', KEYS[2], id, 'rows', '', 'chain', chain, 'big', entry[10], 'size', entry[12])
    else
      redis.call('XADD', KEYS[2], id, 'rows', entry[8], 'chain', chain)
    end
    redis.call('XDEL', KEYS[3], old)
  end
end
local words = table.concat(outcomes, ' ')
if count > 0 then
  redis.call('HSET', KEYS[1], 'accepted', string.format('%.0f', accepted + count), 'chain', chain,
    'bytes', string.format('%.0f', bytes))
  redis.call('HINCRBY', KEYS[1], 'removed', count)
  redis.call('SET', KEYS[4], words, 'PX', ARGV[2])
end
return {'ok', version, words, waiting + count, pace}
