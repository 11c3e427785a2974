-- claim_inbox: lock a model and read its state, its bundle and its next requests at one moment.
--
-- KEYS[1] state       hash of the model
-- KEYS[2] bundle      live bundle
-- KEYS[3] inbox       stream of requests: retained ones, then pending ones
-- KEYS[4] lock        lease that learns the model
-- KEYS[5] followed    exists while gateways want the scorer of each new version
-- ARGV[1] token       lease of the caller
-- ARGV[2] lock ttl    milliseconds
-- ARGV[3] known       digest of the bundle that the caller has in memory, '' for none
-- ARGV[4] entries max number of requests to read
-- ARGV[5] bytes max   bytes to read (at least one request is read)
--
-- `big` names the key that holds a large request's rows; it is '' if they are in `rows`. `size` is in bytes.
--
-- returns {'missing'}          there is no such model
--         {'locked'}           another lease learns it
--         {'ok', {generation, version, rows_seen, learned, digest, recipe, attempts, large, harm, followed},
--          bundle or '', {{sequence, chain, rows, big, size}...}}
--         `attempts` counts what these requests have done to workers, `harm` is the last of it (unlock); `followed`
--         is 1 or 0
--
-- After one death the same requests are read together once more: a single death may have any cause. After another one
-- they are suspects (unlock): a claim reads half of them, and after the next death half of those, until each killing
-- request is claimed alone. The state's field `tried` is the last request that was read, `suspect` the last suspect,
-- `holder` the lease that read.
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'rows_seen', 'learned', 'digest', 'recipe',
  'attempts', 'tried', 'suspect', 'large', 'harm')
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
if suspect > learned then
  most = math.min(most, math.max(1, math.floor((suspect - learned) / 2)))
elseif attempts > 0 then
  most = math.min(most, math.max(1, tried - learned))
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
  redis.call('HSET', KEYS[1], 'tried', string.format('%.0f', entries[#entries][1]), 'holder', ARGV[1])
end
local bundle = ''
if state[5] ~= '' and state[5] ~= ARGV[3] then
  bundle = redis.call('GET', KEYS[2]) or ''
end
return {'ok', {state[1], state[2], state[3], state[4], state[5], state[6], attempts, state[10] or '',
  state[11] or '', redis.call('EXISTS', KEYS[5])}, bundle, entries}
