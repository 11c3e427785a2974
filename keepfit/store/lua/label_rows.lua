-- label_rows: join open rows with their labels, and append each to the inbox as a learning request, in the order of the
-- labels. A row is open or in the inbox, never both.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] inbox          stream of pending requests
-- KEYS[3] idempotency    first answer to this call, if it has no client's key
-- KEYS[4] lock           lease that learns the model
-- KEYS[5] rows           hash of the open rows, by id (keep_rows)
-- KEYS[6] ends           sorted set of their ids by the milliseconds at which they expire
-- KEYS[7] closed         sorted set of the ids of labelled and of expired rows (keep_rows)
-- KEYS[8] new answers    hash of the first answers to the newest keys of the client; not used without a client's key
-- KEYS[9] old answers    hash of those before them; not used without a client's key
-- ARGV[1] generation     integer, of the model that the caller checked the labels against
-- ARGV[2] digest         hex digest of the call; distinguishes a repeated call from another body
-- ARGV[3] ttl            milliseconds for which a repeated call is recognized
-- ARGV[4] entries max    number of requests that may be pending
-- ARGV[5] bytes max      bytes that may be pending (one larger request may be pending alone)
-- ARGV[6] name           short digest of the client's key, which names its answer in KEYS[8] and KEYS[9]; '' without one
-- ARGV[7] answers max    number of answers in KEYS[8] at which they become the old ones, and those are forgotten
-- ARGV[8] remembered     milliseconds for which it is remembered that a row was labelled
-- ARGV[9] remembered max number of labelled and expired rows that are remembered
-- ARGV[10] call bytes    bytes of the payloads of one call, beside its first
-- ARGV[11] logged        '1' if the payloads are returned, for the row log
-- ARGV[12] acceptance    msgpack of the client's request id and of the time of the call, with which each payload ends
-- ARGV[13...] labels     for each label two values: the id of its row; msgpack of its target and its weight
--
-- The first answer is stored as accept stores it, with the outcomes after the generation.
--
-- returns {'ok', first sequence, number accepted, version, 1 if the model is not locked, pending, pace, origin, outcomes,
--          {payload...}, open rows, their bytes, microseconds of Redis' clock}
--                        `outcomes` has one letter for each label: 'a' accepted, by this call or by an earlier one with
--                        the same key; 'u' no row has this id; 'e' the row has expired; 'l' it was labelled before; 'f'
--                        not accepted because it does not fit. '' if only the number is known any more. Of a
--                        repeated call the payloads are those that no snapshot contains
--         {'unlogged'}   the call is a repeat, and some of its payloads are neither in the inbox nor in a snapshot
--         {'missing'}    there is no such model
--         {'stale'}      the model was created again or restored to an older snapshot
--         {'conflict'}   the key was used with another body
local state = redis.call('HMGET', KEYS[1],
  'generation', 'accepted', 'learned', 'bytes', 'chain', 'version', 'pace', 'origin', 'open_rows', 'open_bytes',
  'base')
if not state[1] then
  return {'missing'}
end
local version, pace, origin = tonumber(state[6]), tonumber(state[7] or 0), tonumber(state[8] or state[1])
local accepted, bytes, chain = tonumber(state[2]), tonumber(state[4]), state[5]
local rows, row_bytes = tonumber(state[9] or 0), tonumber(state[10] or 0)
local waiting = accepted - tonumber(state[3])
local alone = 1 - redis.call('EXISTS', KEYS[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = string.format('%.0f', time[1] * 1000000 + time[2])
local named = ARGV[6] ~= ''
local seen = nil
if named then
  seen = redis.call('HGET', KEYS[8], ARGV[6]) or redis.call('HGET', KEYS[9], ARGV[6])
  if seen and tonumber(string.match(seen, '%d+$')) <= now then
    seen = nil
  end
else
  seen = redis.call('GET', KEYS[3])
end
if seen then
  local digest, first, count, generation, outcomes = string.match(seen, '^(%x+) (%d+) (%d+) (%d+) ?(%a*)')
  if tonumber(generation) >= origin then
    if digest == string.sub(ARGV[2], 1, #digest) then
      local payloads, last = {}, first + count - 1
      -- Without outcomes the answer comes from the row log (restore_idempotency), which has the payloads.
      if ARGV[11] == '1' and outcomes ~= '' then
        local range = redis.call('XRANGE', KEYS[2], first .. '-0', string.format('%.0f', last) .. '-0')
        for i, entry in ipairs(range) do
          payloads[i] = entry[2][2]
        end
        local saved = tonumber(string.match(state[11] or '', '^%d+') or 0)
        if #payloads < last - math.max(first - 1, saved) then
          return {'unlogged'}
        end
      end
      return {'ok', tonumber(first), tonumber(count), version, alone, waiting, pace, origin, outcomes, payloads, rows,
        row_bytes, micros}
    end
    if state[1] == ARGV[1] then
      return {'conflict'}
    end
  end
end
if state[1] ~= ARGV[1] then
  return {'stale'}
end
local outcomes, payloads, count, call_bytes, full = {}, {}, 0, 0, false
for i = 13, #ARGV, 2 do
  local id, outcome = ARGV[i], 'u'
  local stored = redis.call('HGET', KEYS[5], id)
  if stored and tonumber(redis.call('ZSCORE', KEYS[6], id)) > now then
    local length = string.match(stored, '^%d+')
    local ends = #length + 1 + length
    local payload = string.sub(stored, #length + 3, ends) .. ARGV[i + 1] .. string.sub(stored, ends + 1) .. ARGV[12]
    -- After the first one that does not fit none is accepted, because the order is that of the labels.
    full = full or waiting + count >= tonumber(ARGV[4])
      or (waiting + count > 0 and bytes + #payload > tonumber(ARGV[5]))
      or (count > 0 and call_bytes + #payload > tonumber(ARGV[10]))
    outcome = 'f'
    if not full then
      outcome = 'a'
      count, bytes, call_bytes = count + 1, bytes + #payload, call_bytes + #payload
      chain = redis.sha1hex(chain .. ':' .. payload)
      redis.call('XADD', KEYS[2], string.format('%.0f-0', accepted + count), 'rows', payload, 'chain', chain)
      rows, row_bytes = rows - 1, row_bytes - #id - #stored - 200
      redis.call('HDEL', KEYS[5], id)
      redis.call('ZREM', KEYS[6], id)
      redis.call('ZADD', KEYS[7], string.format('%.0f', now + ARGV[8]), 'l' .. id)
      if ARGV[11] == '1' then
        payloads[count] = payload
      end
    end
  elseif tonumber(redis.call('ZSCORE', KEYS[7], 'l' .. id) or 0) > now then
    outcome = 'l'
  elseif stored or tonumber(redis.call('ZSCORE', KEYS[7], 'e' .. id) or 0) > now then
    outcome = 'e'
  end
  outcomes[#outcomes + 1] = outcome
end
local letters = table.concat(outcomes)
if count > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[7], 0, -ARGV[9] - 1)
  redis.call('HSET', KEYS[1], 'accepted', string.format('%.0f', accepted + count), 'chain', chain,
    'bytes', string.format('%.0f', bytes),
    'open_rows', string.format('%.0f', rows), 'open_bytes', string.format('%.0f', row_bytes))
  local answer = string.format(' %.0f %.0f %s %s', accepted + 1, count, ARGV[1], letters)
  if named then
    if redis.call('HLEN', KEYS[8]) >= tonumber(ARGV[7]) then
      redis.call('UNLINK', KEYS[9])
      redis.call('RENAME', KEYS[8], KEYS[9])
    end
    local expires = string.format(' %.0f', now + ARGV[3])
    redis.call('HSET', KEYS[8], ARGV[6], string.sub(ARGV[2], 1, 32) .. answer .. expires)
    redis.call('PEXPIRE', KEYS[8], ARGV[3])
  else
    redis.call('SET', KEYS[3], ARGV[2] .. answer, 'PX', ARGV[3])
  end
end
return {'ok', accepted + 1, count, version, alone, waiting + count, pace, origin, letters, payloads, rows, row_bytes,
  micros}
