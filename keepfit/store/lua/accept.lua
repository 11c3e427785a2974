-- accept: take learning requests into a model's inbox, in order. What it answers 'ok' to is a promise.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of waiting requests
-- KEYS[3] seen           what this call was answered the first time
-- KEYS[4] lock           who learns the model
-- KEYS[5] big            rows of a large request, written ahead (looked at only where ARGV[7] is not 0)
-- ARGV[1] generation     integer the caller checked the rows against
-- ARGV[2] digest         hex digest of the call, to tell a repeat from another body
-- ARGV[3] width          columns of each row; 0 for a request that is no rows, whatever the model's width
-- ARGV[4] ttl            milliseconds for which a repeat is known
-- ARGV[5] entries max    requests that may wait
-- ARGV[6] bytes max      bytes that may wait (a single larger request may wait alone)
-- ARGV[7] big bytes      size that KEYS[5] must have; 0 where the rows are in ARGV
-- ARGV[8...] requests    msgpack of the rows or of the change, each; of a large request, alone, a digest of its rows
--
-- returns {'ok', first sequence, number accepted, version, 1 if nobody learns the model just now, waiting, pace, origin}
--                                          accepted, or accepted before by this call. The rest did not fit: then
--                                          `waiting` requests wait, of which `pace` are learned a second. `origin` is
--                                          the generation in which the sequences began
--         {'missing'}                      no such model
--         {'stale'}                        the model was made again, or went back to an older bundle, meanwhile
--         {'conflict'}                     the key came before with another body
--         {'lost'}                         the large request's rows are gone, or not all there
--         {'width', width}                 the model's rows have another width
local state = redis.call('HMGET', KEYS[1],
  'generation', 'accepted', 'learned', 'bytes', 'width', 'chain', 'version', 'pace', 'origin')
if not state[1] then
  return {'missing'}
end
local version, pace, origin = tonumber(state[7]), tonumber(state[8] or 0), tonumber(state[9] or state[1])
local accepted, bytes, chain = tonumber(state[2]), tonumber(state[4]), state[6]
local waiting = accepted - tonumber(state[3])
local alone = 1 - redis.call('EXISTS', KEYS[4])
local seen = redis.call('GET', KEYS[3])
if seen then
  local digest, first, count, generation = string.match(seen, '^(%x+) (%d+) (%d+) (%d+)$')
  -- A key from before the model's sequences began speaks of rows that it never had. One of an earlier generation of the
  -- same sequences speaks of its rows, and is heard even where the caller does not know that there is a later one.
  if tonumber(generation) >= origin then
    if digest == ARGV[2] then
      return {'ok', tonumber(first), tonumber(count), version, alone, waiting, pace, origin}
    end
    if state[1] == ARGV[1] then
      return {'conflict'}
    end
  end
end
if state[1] ~= ARGV[1] then
  return {'stale'}
end
if ARGV[3] ~= '0' and state[5] and state[5] ~= ARGV[3] then
  return {'width', state[5]}
end
local big = tonumber(ARGV[7])
if big > 0 and redis.call('STRLEN', KEYS[5]) ~= big then
  return {'lost'}
end
local count = 0
for i = 8, #ARGV do
  local size = big > 0 and big or #ARGV[i]
  if waiting + count >= tonumber(ARGV[5]) or (waiting + count > 0 and bytes + size > tonumber(ARGV[6])) then
    break
  end
  count = count + 1
  bytes = bytes + size
  -- Each link covers the one before, so that rows which took the same sequences after a lost tail are told apart.
  chain = redis.sha1hex(chain .. ':' .. ARGV[i])
  local id = string.format('%.0f-0', accepted + count)
  if big > 0 then
    redis.call('XADD', KEYS[2], id, 'rows', '', 'chain', chain, 'big', KEYS[5], 'size', size)
    redis.call('PERSIST', KEYS[5])
  else
    redis.call('XADD', KEYS[2], id, 'rows', ARGV[i], 'chain', chain)
  end
end
if count > 0 then
  redis.call('HSET', KEYS[1], 'accepted', string.format('%.0f', accepted + count), 'chain', chain,
    'bytes', string.format('%.0f', bytes))
  if ARGV[3] ~= '0' then
    redis.call('HSET', KEYS[1], 'width', ARGV[3])
  end
  redis.call('SET', KEYS[3], string.format('%s %.0f %.0f %s', ARGV[2], accepted + 1, count, ARGV[1]), 'PX', ARGV[4])
end
return {'ok', accepted + 1, count, version, alone, waiting + count, pace, origin}
