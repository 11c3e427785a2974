-- accept: append learning requests to a model's inbox, in order. A request that is answered 'ok' will be learned.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of pending requests
-- KEYS[3] idempotency    first answer to this call: of a call without a client's key, or as release 0.1 stored it
-- KEYS[4] lock           lease that learns the model
-- KEYS[5] big            staged rows of a large request (read only if ARGV[7] is not 0); KEYS[2] to ask, before the rows
--                        are staged, whether they would be accepted: then nothing is changed
-- KEYS[6] new answers    hash of the first answers to the newest keys of the client; not used without a client's key.
--                        Of calls in order: the answer to the last one
-- KEYS[7] old answers    hash of those before them, as many as KEYS[6] may hold; not used without a client's key
-- ARGV[1] generation     integer, of the model that the caller checked the rows against
-- ARGV[2] digest         hex digest of the call; distinguishes a repeated call from another body
-- ARGV[3] width          columns of each row; 0 if it is not compared: of a change of parameters, and of rows by
--                        the recipe's columns
-- ARGV[4] ttl            milliseconds for which a repeated call is recognized
-- ARGV[5] entries max    number of requests that may be pending
-- ARGV[6] bytes max      bytes that may be pending (one larger request may be pending alone)
-- ARGV[7] big bytes      size in bytes that KEYS[5] must have; 0 if the rows are in ARGV
-- ARGV[8] name           short digest of the client's key, which names its answer in KEYS[6] and KEYS[7]; '' without one.
--                        Of calls in order: the number of this one, from 1
-- ARGV[9] answers max    number of answers in KEYS[6] at which they become the old ones, and those are forgotten; 0 for
--                        calls in order: each is accepted only if the one before it was the last
-- ARGV[10...] requests   msgpack of the rows or of the change, each; for a large request only a digest of its rows
--
-- returns {'ok', first sequence, number accepted, version, 1 if the model is not locked, pending, pace, origin}
--                                          accepted by this call, or by an earlier call with the same key. The rest did
--                                          not fit: `pending` requests are pending and `pace` of them are learned per
--                                          second. `origin` is the generation in which the sequences began
--         {'fits'}                         the rows of a large request, which are not staged yet, would be accepted
--         {'missing'}                      there is no such model
--         {'stale'}                        the model was created again or restored to an older snapshot
--         {'conflict'}                     the key was used with another body, or the call is out of order
--         {'lost'}                         the staged rows are missing or incomplete
--         {'width', width}                 the rows of the model have another width
local state = redis.call('HMGET', KEYS[1],
  'generation', 'accepted', 'learned', 'bytes', 'width', 'chain', 'version', 'pace', 'origin')
if not state[1] then
  return {'missing'}
end
local version, pace, origin = tonumber(state[7]), tonumber(state[8] or 0), tonumber(state[9] or state[1])
local accepted, bytes, chain = tonumber(state[2]), tonumber(state[4]), state[6]
local waiting = accepted - tonumber(state[3])
local alone = 1 - redis.call('EXISTS', KEYS[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local named, in_order = ARGV[8] ~= '', ARGV[9] == '0'
local seen = named and (redis.call('HGET', KEYS[6], ARGV[8]) or redis.call('HGET', KEYS[7], ARGV[8]))
if seen and tonumber(string.match(seen, '%d+$')) <= now then
  seen = nil
end
seen = seen or redis.call('GET', KEYS[3])
if seen then
  local digest, first, count, generation = string.match(seen, '^(%x+) (%d+) (%d+) (%d+)')
  -- A key from before `origin` belongs to rows that this model never had. A key from an earlier generation of the same
  -- sequences belongs to rows of this model. It is recognized even if the caller does not know the present generation.
  if tonumber(generation) >= origin then
    if digest == string.sub(ARGV[2], 1, #digest) then
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
if in_order and (redis.call('HKEYS', KEYS[6])[1] or '0') ~= string.format('%.0f', ARGV[8] - 1) then
  return {'conflict'}
end
if ARGV[3] ~= '0' and state[5] and state[5] ~= ARGV[3] then
  return {'width', state[5]}
end
local big = tonumber(ARGV[7])
local is_question = big > 0 and KEYS[5] == KEYS[2]
if big > 0 and not is_question and redis.call('STRLEN', KEYS[5]) ~= big then
  return {'lost'}
end
local count = 0
for i = 10, #ARGV do
  local size = big > 0 and big or #ARGV[i]
  if waiting + count >= tonumber(ARGV[5]) or (waiting + count > 0 and bytes + size > tonumber(ARGV[6])) then
    break
  end
  if is_question then
    return {'fits'}
  end
  count = count + 1
  bytes = bytes + size
  -- Each request digest covers the one before. So other rows under the same sequences are recognized, after Redis lost
  -- its last writes.
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
  local answer = string.format(' %.0f %.0f %s', accepted + 1, count, ARGV[1])
  if named then
    if in_order then
      redis.call('DEL', KEYS[6])
    elseif redis.call('HLEN', KEYS[6]) >= tonumber(ARGV[9]) then
      redis.call('UNLINK', KEYS[7])
      redis.call('RENAME', KEYS[6], KEYS[7])
    end
    local expires = string.format(' %.0f', now + ARGV[4])
    redis.call('HSET', KEYS[6], ARGV[8], string.sub(ARGV[2], 1, 32) .. answer .. expires)
    redis.call('PEXPIRE', KEYS[6], ARGV[4])
  else
    redis.call('SET', KEYS[3], ARGV[2] .. answer, 'PX', ARGV[4])
  end
end
return {'ok', accepted + 1, count, version, alone, waiting + count, pace, origin}
