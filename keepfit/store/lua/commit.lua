-- commit: make a staged bundle live, if nothing has happened since it was taken. Every check comes before the first
-- write, because scripts do not roll back.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] bundle         live bundle
-- KEYS[3] inbox          stream of requests: those that wait, before them those that are kept
-- KEYS[4] staged         bundle written ahead
-- KEYS[5] dead           stream of requests put aside (ids `<generation>-<sequence>`)
-- KEYS[6...] big         rows of large requests that are learned now, and of those that were and are kept
-- ARGV[1] generation     integer the bundle was taken at
-- ARGV[2] old digest     digest of the bundle taken, '' for a new model
-- ARGV[3] old learned    sequence the taken bundle had learned
-- ARGV[4] learned        sequence the new bundle has learned
-- ARGV[5] chain          hex digest of the request at that sequence, as it was read
-- ARGV[6] digest         SHA-256 hex of the staged bundle
-- ARGV[7] rows_seen      rows the new bundle has learned
-- ARGV[8] metrics        JSON
-- ARGV[9] bytes          bytes of the requests that wait no more
-- ARGV[10] channel       where gateways hear of commits
-- ARGV[11] hash          the model's hash
-- ARGV[12] reason        why the request at `learned` was put aside unlearned, '' if all were learned
-- ARGV[13] pace          requests learned a second
-- ARGV[14] changed       JSON of the parameters that were changed since the model was made, '' for none
-- ARGV[15] replay bytes   bytes of learned requests to keep at most
-- ARGV[16] places         sequences of the requests of KEYS[6...], parted by spaces
--
-- What is learned stays in the inbox until a snapshot has it (note), so that a bundle which is lost can be made again.
-- The state's `kept` says from where: '<cut> <its bytes> <half> <its bytes> <bytes>'. Requests up to `cut` are gone. Where
-- all that is kept would be too much, what is up to `half` goes. `bytes` counts all that was ever learned, each request
-- with 64 more for its place in the stream; the others what it was when `cut` and `half` were learned. `large` names the
-- kept ones of KEYS[6...]: '<sequence> <key> ...'.
--
-- returns the new version; or 0: the model is gone or made again; -1: another commit came first;
--         -2: the inbox holds other requests than were read; -3: the staged bundle is gone. Below 1 nothing changed.
local state = redis.call('HMGET', KEYS[1], 'generation', 'digest', 'learned', 'kept')
if not state[1] or state[1] ~= ARGV[1] then
  return 0
end
if state[2] ~= ARGV[2] or state[3] ~= ARGV[3] then
  return -1
end
local last = redis.call('XRANGE', KEYS[3], ARGV[4] .. '-0', ARGV[4] .. '-0')
if not last[1] or last[1][2][4] ~= ARGV[5] then
  return -2
end
if redis.call('EXISTS', KEYS[4]) == 0 then
  return -3
end
local put_aside, most = '0', tonumber(ARGV[15])
local kept = {}
for number in string.gmatch(state[4] or '0 0 0 0 0', '%d+') do
  kept[#kept + 1] = tonumber(number)
end
local cut, cut_bytes, half, half_bytes, before = unpack(kept)
local bytes = before + ARGV[9] + 64 * (ARGV[4] - ARGV[3])
if ARGV[12] ~= '' then
  put_aside = '1'
  -- Before all other writes: it is the one that a stream could refuse, because its ids only grow.
  local request, time = last[1][2], redis.call('TIME')
  redis.call('XADD', KEYS[5], state[1] .. '-' .. ARGV[4], 'generation', state[1], 'sequence', ARGV[4],
    'reason', ARGV[12], 'rows', request[2], 'big', request[6] or '', 'size', request[8] or #request[2],
    'at', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  -- No bundle has learned it, so it is none to learn again.
  redis.call('XDEL', KEYS[3], last[1][1])
  bytes = bytes - 64 - (request[8] or #request[2])
end
redis.call('RENAME', KEYS[4], KEYS[2])
redis.call('PERSIST', KEYS[2])
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HINCRBY', KEYS[1], 'bytes', -tonumber(ARGV[9]))
redis.call('HSET', KEYS[1], 'digest', ARGV[6], 'learned', ARGV[4], 'rows_seen', ARGV[7], 'metrics', ARGV[8], 'attempts', 0,
  'pace', ARGV[13])
if ARGV[14] ~= '' then
  redis.call('HSET', KEYS[1], 'changed', ARGV[14])
end
-- Oldest first: the older half; all but what was learned now; that too.
for _, place in ipairs({{half, half_bytes}, {tonumber(ARGV[3]), before}, {tonumber(ARGV[4]), bytes}}) do
  if bytes - cut_bytes > most then
    cut, cut_bytes = place[1], place[2]
  end
end
if cut > kept[1] then
  redis.call('XTRIM', KEYS[3], 'MINID', '=', string.format('%.0f', cut + 1) .. '-0')
end
if half <= cut then
  half, half_bytes = cut, cut_bytes
  if bytes - cut_bytes > most / 2 then
    half, half_bytes = tonumber(ARGV[4]), bytes
  end
end
redis.call('HSET', KEYS[1], 'kept', string.format('%.0f %.0f %.0f %.0f %.0f', cut, cut_bytes, half, half_bytes, bytes))
if #KEYS > 5 then
  local next_place, large = string.gmatch(ARGV[16], '%d+'), {}
  for i = 6, #KEYS do
    local sequence = next_place()
    if tonumber(sequence) > cut then
      large[#large + 1], large[#large + 2] = sequence, KEYS[i]
    else
      redis.call('UNLINK', KEYS[i])
    end
  end
  redis.call('HSET', KEYS[1], 'large', table.concat(large, ' '))
end
redis.call('PUBLISH', ARGV[10],
  table.concat({ARGV[11], state[1], string.format('%.0f', version), ARGV[4], ARGV[7], put_aside, ARGV[12]}, ' '))
return version
