-- keep_rows: keep rows that were predicted, each under the id that the client gave it, until its label comes. Either
-- all rows of a call are kept or none. A repeated call is answered as the first one was.
--
-- KEYS[1] state        hash of the model
-- KEYS[2] rows         hash of the open rows, by id
-- KEYS[3] ends         sorted set of their ids; score: milliseconds at which the row expires
-- KEYS[4] closed       sorted set of the ids of rows that were labelled ('l' before the id) or have expired ('e' before
--                      it); score: milliseconds until which that is remembered
-- ARGV[1] generation   integer, of the model that predicted the rows
-- ARGV[2] ttl          milliseconds for which a row is kept
-- ARGV[3] bytes max    bytes that the open rows of the model may have
-- ARGV[4...] rows      for each row three values: its id; what was asked (a letter, then the beginning of the payload of
--                      a learning request); what was answered (msgpack, which follows the target in that payload)
--
-- An open row is stored as '<length of what was asked> <what was asked><what was answered>'. In `open_bytes` it counts
-- with its id and 200 bytes more, for its entries in Redis.
--
-- returns {'kept', open rows, their bytes, microseconds of Redis' clock}
--         {'repeated', {answered...}}   all rows are open already, and this is what was answered then
--         {'open', id}                  another row is open under this id, or it was asked something else about it
--         {'labelled', id}              a row with this id was labelled
--         {'mixed', id}                 this row is open already, and another row of the call is not
--         {'full', open rows, their bytes}   the rows do not fit
--         {'missing'}                   there is no such model
--         {'stale'}                     the model was created again or restored to an older snapshot
local state = redis.call('HMGET', KEYS[1], 'generation', 'open_rows', 'open_bytes')
if not state[1] then
  return {'missing'}
end
if state[1] ~= ARGV[1] then
  return {'stale'}
end
local rows, bytes = tonumber(state[2] or 0), tonumber(state[3] or 0)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answered, open_id, fresh = {}, nil, 0
for i = 4, #ARGV, 3 do
  local id, head = ARGV[i], #ARGV[i + 1] .. ' ' .. ARGV[i + 1]
  local stored = redis.call('HGET', KEYS[2], id)
  if stored and tonumber(redis.call('ZSCORE', KEYS[3], id)) > now then
    if string.sub(stored, 1, #head) ~= head then
      return {'open', id}
    end
    answered[#answered + 1] = string.sub(stored, #head + 1)
    open_id = id
  else
    if tonumber(redis.call('ZSCORE', KEYS[4], 'l' .. id) or 0) > now then
      return {'labelled', id}
    end
    if stored then
      -- It has expired, and is replaced.
      rows, bytes = rows - 1, bytes - #id - #stored - 200
    end
    fresh = fresh + 1
    rows, bytes = rows + 1, bytes + #id + #head + #ARGV[i + 2] + 200
  end
end
if fresh == 0 then
  return {'repeated', answered}
end
if open_id then
  return {'mixed', open_id}
end
if bytes > tonumber(ARGV[3]) then
  return {'full', tonumber(state[2] or 0), tonumber(state[3] or 0)}
end
for i = 4, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[i], #ARGV[i + 1] .. ' ' .. ARGV[i + 1] .. ARGV[i + 2])
  redis.call('ZADD', KEYS[3], string.format('%.0f', now + ARGV[2]), ARGV[i])
  redis.call('ZREM', KEYS[4], 'e' .. ARGV[i])
end
redis.call('HSET', KEYS[1], 'open_rows', string.format('%.0f', rows), 'open_bytes', string.format('%.0f', bytes))
return {'kept', rows, bytes, string.format('%.0f', time[1] * 1000000 + time[2])}
