-- announce_due: announce the newest version of a model, if a commit of it was left out and its interval is over (commit).
--
-- KEYS[1] state          hash of the model
-- KEYS[2] events         stream of events of all models
-- KEYS[3] due            models whose last commit is not announced yet, with the time of the last one that is (ms)
-- ARGV[1] hash           hash of the model
-- ARGV[2] events         number of events to keep
-- ARGV[3] interval       milliseconds in which at most one commit of a model is announced
-- ARGV[4] metrics bytes  length of metrics up to which an event has them
--
-- returns 1 announced; 0 nothing is due, or the model is gone
local time, announced = redis.call('TIME'), redis.call('ZSCORE', KEYS[3], ARGV[1])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A time in the future is that of a clock that was set back since.
if not announced or (now - announced < tonumber(ARGV[3]) and now >= tonumber(announced)) then
  return 0
end
redis.call('ZREM', KEYS[3], ARGV[1])
local state = redis.call('HMGET', KEYS[1], 'metadata', 'generation', 'version', 'rows_seen', 'metrics', 'announced')
-- A model that was created again has no such commit.
if not state[1] or not string.match(state[6] or '', '%+$') then
  return 0
end
local metrics = #state[5] <= tonumber(ARGV[4]) and ',"metrics":' .. state[5] or ''
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'kind', 'commit', 'hash', ARGV[1], 'metadata', state[1], 'details',
  string.format('{"generation":%s,"version":%s,"rows_seen":%s%s}', state[2], state[3], state[4], metrics))
redis.call('HSET', KEYS[1], 'announced', string.format('%.0f', now))
return 1
