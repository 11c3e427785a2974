-- accept: take one learning request into a model's inbox. What it answers 'ok' to is a promise.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of waiting requests
-- KEYS[3] idempotency    first answer to this key
-- ARGV[1] generation     integer the caller checked the rows against
-- ARGV[2] payload        msgpack of the rows
-- ARGV[3] body digest    hex digest of the request, to tell a repeat from another body
-- ARGV[4] width          columns of each row
-- ARGV[5] key ttl        milliseconds
-- ARGV[6] entries max    requests that may wait
-- ARGV[7] bytes max      bytes that may wait (a single larger request may wait alone)
--
-- returns {'ok', sequence, version}        accepted
--         {'again', sequence, version}     accepted before under this key; nothing changed
--         {'missing'}                      no such model
--         {'stale', generation}            the model was made again meanwhile
--         {'conflict'}                     the key came before with another body
--         {'full', waiting}                too much waits
--         {'width', width}                 the model's rows have another width
local state = redis.call('HMGET', KEYS[1], 'generation', 'accepted', 'learned', 'bytes', 'width', 'chain', 'version')
if not state[1] then
  return {'missing'}
end
if state[1] ~= ARGV[1] then
  return {'stale', state[1]}
end
local first = redis.call('GET', KEYS[3])
if first then
  local digest, sequence, generation = string.match(first, '^(%x+) (%d+) (%d+)$')
  -- A key of an earlier generation speaks of rows that this model never had.
  if generation == ARGV[1] then
    if digest ~= ARGV[3] then
      return {'conflict'}
    end
    return {'again', tonumber(sequence), tonumber(state[7])}
  end
end
local waiting = tonumber(state[2]) - tonumber(state[3])
if waiting >= tonumber(ARGV[6]) or (waiting > 0 and tonumber(state[4]) + #ARGV[2] > tonumber(ARGV[7])) then
  return {'full', waiting}
end
if state[5] and state[5] ~= ARGV[4] then
  return {'width', state[5]}
end
local sequence = tonumber(state[2]) + 1
-- Each link covers the one before, so that rows which took the same sequences after a lost tail are told apart.
local chain = redis.sha1hex(state[6] .. ':' .. ARGV[3])
redis.call('XADD', KEYS[2], sequence .. '-0', 'rows', ARGV[2], 'chain', chain)
redis.call('HSET', KEYS[1], 'accepted', sequence, 'chain', chain, 'width', ARGV[4], 'bytes', tonumber(state[4]) + #ARGV[2])
redis.call('SET', KEYS[3], table.concat({ARGV[3], sequence, ARGV[1]}, ' '), 'PX', ARGV[5])
return {'ok', sequence, tonumber(state[7])}
