-- commit: make a staged bundle live if the model is unchanged since the claim. All checks precede the first write,
-- because scripts do not roll back.
--
-- KEYS[1] state          hash of the model
-- KEYS[2] bundle         live bundle
-- KEYS[3] inbox          stream of requests: retained ones, then pending ones
-- KEYS[4] staged         staged bundle
-- KEYS[5] dead           stream of dead letters (ids `<generation>-<sequence>`)
-- KEYS[6] new answers     hash of the newest answers to calls of train_score_predict: `size` is their bytes
-- KEYS[7] old answers     hash of those before them, which are dropped when KEYS[6] takes their place
-- KEYS[8] events         stream of events of all models
-- KEYS[9] due            models whose last commit is not announced yet, with the time of the last one that is (ms)
-- KEYS[10...] big        rows of large requests: those that this commit learned, those that are retained, and those of
--                        the dead letters of ARGV[28]
-- ARGV[1] generation     integer, of the claimed model
-- ARGV[2] old digest     digest of the claimed bundle, '' for a new model
-- ARGV[3] old learned    last sequence that the claimed bundle has learned
-- ARGV[4] learned        last sequence that the new bundle has learned
-- ARGV[5] chain          hex request digest at that sequence, as it was claimed
-- ARGV[6] digest         SHA-256 hex of the staged bundle
-- ARGV[7] rows_seen      number of rows that the new bundle has learned
-- ARGV[8] metrics        JSON
-- ARGV[9] bytes          bytes of the requests that are no longer pending
-- ARGV[10] channel       channel of the commit feed
-- ARGV[11] hash          hash of the model
-- ARGV[12] reason        why the request at `learned` becomes a dead letter, '' if all requests were learned
-- ARGV[13] pace          requests learned per second
-- ARGV[14] changed       JSON of the parameters that were changed since the model was created, '' for none
-- ARGV[15] replay bytes   bytes of learned requests to retain at most
-- ARGV[16] places         sequences of the requests of KEYS[10...], separated by spaces; 0 for those of dead letters
-- ARGV[17] width          columns of the rows that the staged bundle has learned, '' if it does not tell
-- ARGV[18] scorers        channel of scorers
-- ARGV[19] scorer         encoded scorer of the staged bundle, '' if the model is not followed or has none
-- ARGV[20] answer         JSON of the answer to the request at `learned`, '' if it wants none. It is stored under
--                         '<origin>-<learned>' as '<version> <rows_seen> <answer>'
-- ARGV[21] answer ttl     milliseconds for which answers are kept
-- ARGV[22] answer bytes   bytes of answers in KEYS[6] from which on they become the old ones
-- ARGV[23] events         number of events to keep
-- ARGV[24] interval       milliseconds in which at most one commit of a model is announced
-- ARGV[25] metrics bytes  length of metrics up to which an event has them
-- ARGV[26] patched        '1' if a learned request changes parameters, else ''
-- ARGV[27] drift          drifts of the model as JSON objects, separated by newlines, '' for none
-- ARGV[28] dead letters   ids of dead letters that the new bundle has learned, separated by spaces
--
-- Learned requests stay in the inbox until a snapshot contains them (note_snapshot), so that a lost bundle can be
-- rebuilt. The state's field `kept` describes them: '<cut> <its bytes> <half> <its bytes> <bytes>'. Requests up to
-- `cut` are removed. If the retained requests exceed the bound, those up to `half` are removed. `bytes` counts all
-- requests ever learned, each with 64 bytes more for its entry in the stream; the bytes of `cut` and `half` are that
-- count when these were learned. `large` names the retained ones of KEYS[10...]: '<sequence> <key> ...'.
--
-- The width of the rows that are accepted next is that of the learned ones. Before any are learned it is the width of
-- the first accepted request, which loses that right when it becomes a dead letter.
--
-- returns the new version; or 0: the model is gone or was created again; -1: another commit came first;
--         -2: the inbox holds other requests than the claimed ones; -3: the staged bundle is missing; -4: a dead letter
--         of ARGV[28] is missing. Below 1 nothing was changed.
local state = redis.call('HMGET', KEYS[1], 'generation', 'digest', 'learned', 'kept', 'origin', 'announced')
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
local learned_again = {}
for id in string.gmatch(ARGV[28], '%S+') do
  if not redis.call('XRANGE', KEYS[5], id, id)[1] then
    return -4
  end
  learned_again[#learned_again + 1] = id
end
local put_aside, most, time = '0', tonumber(ARGV[15]), redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = {}
for number in string.gmatch(state[4] or '0 0 0 0 0', '%d+') do
  kept[#kept + 1] = tonumber(number)
end
local cut, cut_bytes, half, half_bytes, before = unpack(kept)
local bytes = before + ARGV[9] + 64 * (ARGV[4] - ARGV[3])
if ARGV[12] ~= '' then
  put_aside = '1'
  -- The first write: it is the only one that can fail, because ids of a stream must increase.
  local request = last[1][2]
  redis.call('XADD', KEYS[5], state[1] .. '-' .. ARGV[4], 'generation', state[1], 'sequence', ARGV[4],
    'reason', ARGV[12], 'rows', request[2], 'big', request[6] or '', 'size', request[8] or #request[2],
    'at', string.format('%.0f', now))
  -- No bundle has learned it, so a replay must not learn it.
  redis.call('XDEL', KEYS[3], last[1][1])
  bytes = bytes - 64 - (request[8] or #request[2])
end
redis.call('RENAME', KEYS[4], KEYS[2])
redis.call('PERSIST', KEYS[2])
-- In parts, because a call has a few thousand arguments at most.
for i = 1, #learned_again, 1000 do
  local removed = redis.call('XDEL', KEYS[5], unpack(learned_again, i, math.min(i + 999, #learned_again)))
  redis.call('HINCRBY', KEYS[1], 'removed', removed)
end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HINCRBY', KEYS[1], 'bytes', -tonumber(ARGV[9]))
redis.call('HSET', KEYS[1], 'digest', ARGV[6], 'learned', ARGV[4], 'rows_seen', ARGV[7], 'metrics', ARGV[8], 'attempts', 0,
  'pace', ARGV[13])
if ARGV[14] ~= '' then
  redis.call('HSET', KEYS[1], 'changed', ARGV[14])
end
if ARGV[17] ~= '' then
  redis.call('HSET', KEYS[1], 'width', ARGV[17])
elseif put_aside == '1' and ARGV[7] == '0' then
  redis.call('HDEL', KEYS[1], 'width')
end
-- Remove the oldest first: the older half; then all but the requests of this commit; then these as well.
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
if #KEYS > 9 then
  local next_place, large = string.gmatch(ARGV[16], '%d+'), {}
  for i = 10, #KEYS do
    local sequence = next_place()
    if tonumber(sequence) > cut then
      large[#large + 1], large[#large + 2] = sequence, KEYS[i]
    else
      redis.call('UNLINK', KEYS[i])
    end
  end
  redis.call('HSET', KEYS[1], 'large', table.concat(large, ' '))
end
-- Before the version itself: a gateway that hears of the version finds the answer.
if ARGV[20] ~= '' then
  local size = tonumber(redis.call('HGET', KEYS[6], 'size') or 0)
  if size >= tonumber(ARGV[22]) then
    redis.call('RENAME', KEYS[6], KEYS[7])
    size = 0
  end
  redis.call('HSET', KEYS[6], (state[5] or state[1]) .. '-' .. ARGV[4],
    string.format('%.0f', version) .. ' ' .. ARGV[7] .. ' ' .. ARGV[20], 'size', string.format('%.0f', size + #ARGV[20]))
  redis.call('PEXPIRE', KEYS[6], ARGV[21])
end
-- Before the version itself: a gateway that hears of the version has its scorer.
if ARGV[19] ~= '' then
  redis.call('PUBLISH', ARGV[18], table.concat({ARGV[11], state[1], string.format('%.0f', version), ARGV[19]}, ' '))
end
redis.call('PUBLISH', ARGV[10],
  table.concat({ARGV[11], state[1], string.format('%.0f', version), ARGV[4], ARGV[7], put_aside, ARGV[12]}, ' '))
-- Events. With pcall, because everything is committed by now, whatever these keys hold. Of commits at most one in an
-- interval is announced; after others the state's field `announced`, the time of that one, ends in '+', and
-- announce_due announces the newest version when the interval is over.
local function announce(kind, details)
  redis.pcall('XADD', KEYS[8], 'MAXLEN', '~', ARGV[23], '*', 'kind', kind, 'hash', ARGV[11],
    'metadata', redis.call('HGET', KEYS[1], 'metadata'), 'details',
    string.format('{"generation":%s,"version":%.0f,"rows_seen":%s%s}', state[1], version, ARGV[7], details))
end
if put_aside == '1' then
  -- The text after the class of an error may quote the rows.
  local class = string.sub(string.match(ARGV[12], '^[^:]*'), 1, 200)
  announce('dead_letter', ',"sequence":' .. ARGV[4] .. ',"reason":' .. cjson.encode(class))
end
if ARGV[26] ~= '' then
  announce('model_patched', '')
end
for drift in string.gmatch(ARGV[27], '[^\n]+') do
  announce('drift', ',"drift":' .. drift)
end
local announced, waits = string.match(state[6] or '0', '^(%d+)(%+?)')
if now - announced >= tonumber(ARGV[24]) or now < tonumber(announced) then
  announce('commit', #ARGV[8] <= tonumber(ARGV[25]) and ',"metrics":' .. ARGV[8] or '')
  redis.call('HSET', KEYS[1], 'announced', string.format('%.0f', now))
  redis.pcall('ZREM', KEYS[9], ARGV[11])
elseif waits == '' then
  redis.call('HSET', KEYS[1], 'announced', announced .. '+')
  redis.pcall('ZADD', KEYS[9], announced, ARGV[11])
end
return version
