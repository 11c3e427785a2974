-- retry: move requests that were put aside to the end of the inbox, each under the next sequence. One moment moves them:
-- a request is in one of the two streams, and never in both.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of waiting requests
-- KEYS[3] dead           stream of requests put aside
-- KEYS[4] seen           what this call was answered the first time
-- KEYS[5...] big         rows of the large request at the same place in ARGV; KEYS[3] beside a small one
-- ARGV[1] generation     integer the caller knows the model by
-- ARGV[2] ttl            milliseconds for which a repeat is known
-- ARGV[3] entries max    requests that may wait
-- ARGV[4] bytes max      bytes that may wait (a single larger request may wait alone)
-- ARGV[5...] ids         requests in the stream of those put aside
--
-- returns {'ok', version, outcomes, waiting, pace}  `outcomes` has one word per id, parted by spaces: its new sequence,
--                     or why it was not moved: 'gone' (not there, or named twice), 'other' (of other sequences),
--                     'lost' (its rows are), 'full' (does not fit: `waiting` wait, of which `pace` are learned a second)
--         {'missing'} no such model
--         {'stale'}   the model was made again meanwhile
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
local told = table.concat(outcomes, ' ')
if count > 0 then
  redis.call('HSET', KEYS[1], 'accepted', string.format('%.0f', accepted + count), 'chain', chain,
    'bytes', string.format('%.0f', bytes))
  redis.call('HINCRBY', KEYS[1], 'removed', count)
  redis.call('SET', KEYS[4], told, 'PX', ARGV[2])
end
return {'ok', version, told, waiting + count, pace}
