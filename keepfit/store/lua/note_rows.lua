-- note_rows: note how many open rows a model has, in the register of all models, and return how many all have.
--
-- The rows are changed by scripts on the keys of their model, which may lie on another server of a cluster. So a caller
-- announces a model before it keeps rows, and notes the numbers afterwards. A caller that dies in between leaves an
-- announced model, whose numbers are noted with its next change, or by the pass that expires rows.
--
-- KEYS[1] register    hash: '<open rows> <their bytes> <microseconds>' by the hash of a model; the sums under 'rows' and
--                     'bytes'
-- ARGV[1] hash        hash of the model
-- ARGV[2] rows        number of its open rows; '' to announce that it will have some
-- ARGV[3] bytes       their bytes
-- ARGV[4] micros      microseconds of Redis' clock at which it had them; older numbers do not replace newer ones. ''
--                     stands for now
-- ARGV[5] forget      microseconds after which a model without rows is forgotten; long enough for any caller between
--                     announcement and note
--
-- returns {open rows of all models, their bytes}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local known = redis.call('HGET', KEYS[1], ARGV[1])
local rows, bytes, at = string.match(known or '0 0 0', '^(%d+) (%d+) (%d+)$')
rows, bytes, at = tonumber(rows), tonumber(bytes), tonumber(at)
local noted = ARGV[4] == '' and now or tonumber(ARGV[4])
if ARGV[2] == '' then
  if rows == 0 then
    redis.call('HSET', KEYS[1], ARGV[1], string.format('0 0 %.0f', now))
  end
elseif rows == 0 and ARGV[2] == '0' then
  if known and now - at > tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[1], ARGV[1])
  end
elseif noted >= at then
  redis.call('HINCRBY', KEYS[1], 'rows', string.format('%.0f', ARGV[2] - rows))
  redis.call('HINCRBY', KEYS[1], 'bytes', string.format('%.0f', ARGV[3] - bytes))
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3] .. string.format(' %.0f', noted))
end
local sums = redis.call('HMGET', KEYS[1], 'rows', 'bytes')
return {tonumber(sums[1] or 0), tonumber(sums[2] or 0)}
