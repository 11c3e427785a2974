-- take: lock a model and read, in one moment, its state, its bundle and the requests that come next.
--
-- KEYS[1] state       hash of the model
-- KEYS[2] bundle      live bundle
-- KEYS[3] inbox       stream of waiting requests
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
--         {'ok', {generation, version, rows_seen, learned, digest, recipe, attempts}, bundle or '', {{sequence, chain, rows, big, size}...}}
--         attempts counts this read; a commit sets it back, so it is the number of workers that died here, plus one
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'rows_seen', 'learned', 'digest', 'recipe', 'accepted')
if not state[1] then
  return {'missing'}
end
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[1] then
  return {'locked'}
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
local entries, bytes, next_id = {}, 0, state[4]
while #entries < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
  local read = redis.call('XRANGE', KEYS[3], '(' .. next_id .. '-0', '+', 'COUNT', 16)
  for _, item in ipairs(read) do
    next_id = string.match(item[1], '^(%d+)')
    local size = tonumber(item[2][8] or #item[2][2])
    if #entries < tonumber(ARGV[4]) and (#entries == 0 or bytes + size <= tonumber(ARGV[5])) then
      entries[#entries + 1] = {tonumber(next_id), item[2][4], item[2][2], item[2][6] or '', size}
    end
    bytes = bytes + size
  end
  if #read < 16 then
    break
  end
end
local attempts = 0
if #entries > 0 then
  attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
local bundle = ''
if state[5] ~= '' and state[5] ~= ARGV[3] then
  bundle = redis.call('GET', KEYS[2]) or ''
end
return {'ok', {state[1], state[2], state[3], state[4], state[5], state[6], attempts}, bundle, entries}
