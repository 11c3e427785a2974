-- release: end a lease if its condition holds.
--
-- KEYS[1] models        list of models with work in a run queue
-- KEYS[2] other models  list of models with work in the other run queue
-- KEYS[3] leases        sorted set of leases
-- KEYS[4] claimed       list of the entries that this lease has claimed, all completed
-- KEYS[5] holders       hash of leases that are drained by a worker; the last word is the time of the last claim
-- ARGV[1] lease         id of the caller's lease
-- ARGV[2] when          'idle': if no model has work; 'spare': if another lease is awake; 'now': always
-- ARGV[3] awake         milliseconds since its last claim for which a lease is awake
--
-- returns 1 if the lease has ended; 0 if it goes on
if ARGV[2] == 'idle' and redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2]) > 0 then
  return 0
end
if ARGV[2] == 'spare' then
  local time, awake = redis.call('TIME'), 0
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for _, lease in ipairs(redis.call('HKEYS', KEYS[5])) do
    local last = string.match(redis.call('HGET', KEYS[5], lease), '%d+$')
    if lease ~= ARGV[1] and now - tonumber(last) < tonumber(ARGV[3]) then
      awake = awake + 1
    end
  end
  if awake == 0 then
    return 0
  end
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[4])
return 1
