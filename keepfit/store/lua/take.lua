-- take: lock a model and read, in one moment, its state, its bundle and the requests that come next.
--
-- KEYS[1] state       hash of the model
-- KEYS[2] bundle      live bundle
-- KEYS[3] inbox       stream of requests: those that wait, before them those that are kept
-- KEYS[4] lock        who learns the model
-- ARGV[1] token       the caller's lease
-- ARGV[2] lock ttl    milliseconds
-- ARGV[3] known       digest of the bundle the caller holds unpickled, '' for none
-- ARGV[4] entries max requests to read
-- ARGV[5] bytes max   bytes to read (at least one request is read)
--
-- `big` names the key that holds a large request's rows; it is '' where they are in `rows`. `size` is in bytes.
--
-- returns {'missing'}          no such model
--         {'locked'}           another lease learns it
--         {'ok', {generation, version, rows_seen, learned, digest, recipe, attempts, large}, bundle or '',
--          {{sequence, chain, rows, big, size}...}}
--         attempts counts the reads of just these requests, this one included, that came to no end: a commit sets it
--         back, and who lives to tell (unlock) gives its own back, so the others are workers that died of it
--
-- Requests that were read when two workers died in turn are suspect: one death may have any cause. From then on half of
-- them are read at a time, and half of those at the next death, until those that kill stand alone. The state's `tried`
-- is the last request that was read, `suspect` the last one that is.
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'rows_seen', 'learned', 'digest', 'recipe',
  'attempts', 'tried', 'suspect', 'large')
if not state[1] then
  return {'missing'}
end
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[1] then
  return {'locked'}
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
local learned, attempts, tried = tonumber(state[4]), tonumber(state[7] or 0), tonumber(state[8] or 0)
local suspect, most = tonumber(state[9] or 0), tonumber(ARGV[4])
if attempts == 1 and tried - learned > 1 and suspect <= learned then
  most = math.min(most, tried - learned)
elseif attempts > 0 then
  suspect = tried
  if tried - learned > 1 then
    attempts = 0
  end
end
if suspect > learned then
  most = math.min(most, math.max(1, math.floor((suspect - learned) / 2)))
end
local entries, bytes, next_id = {}, 0, state[4]
while #entries < most and bytes < tonumber(ARGV[5]) do
  local read = redis.call('XRANGE', KEYS[3], '(' .. next_id .. '-0', '+', 'COUNT', 16)
  for _, item in ipairs(read) do
    next_id = string.match(item[1], '^(%d+)')
    local size = tonumber(item[2][8] or #item[2][2])
    if #entries < most and (#entries == 0 or bytes + size <= tonumber(ARGV[5])) then
      entries[#entries + 1] = {tonumber(next_id), item[2][4], item[2][2], item[2][6] or '', size}
    end
    bytes = bytes + size
  end
  if #read < 16 then
    break
  end
end
if #entries > 0 then
  attempts = attempts + 1
  redis.call('HSET', KEYS[1], 'attempts', attempts, 'tried', string.format('%.0f', entries[#entries][1]),
    'suspect', string.format('%.0f', suspect))
end
local bundle = ''
if state[5] ~= '' and state[5] ~= ARGV[3] then
  bundle = redis.call('GET', KEYS[2]) or ''
end
return {'ok', {state[1], state[2], state[3], state[4], state[5], state[6], attempts, state[10] or ''}, bundle, entries}
