-- remember: before a lost model comes back with what was logged, set what its calls were answered, so that repeats of
-- them find it. The caller lays claim to the model with it, for ten minutes: who comes after, with a later generation,
-- takes that over, and install refuses whoever came before. So what is known and what is live are of the same restore.
--
-- KEYS[1] state        hash of the model
-- KEYS[2] lock         who has the model in hand
-- KEYS[3...] seen      what a call was answered the first time, one key each
-- ARGV[1] generation   integer that the model comes back as
-- ARGV[2] born         integer, generation since which the model is this one
-- ARGV[3...] answers   beside each key '<milliseconds for which it is known> <digest> <first sequence> <count>'
--
-- returns 1 done; 0 the model is live, or claimed for a later generation; nothing changed
local live = redis.call('HGET', KEYS[1], 'generation')
if live and tonumber(live) >= tonumber(ARGV[2]) then
  return 0
end
local claim = string.match(redis.call('GET', KEYS[2]) or '', '^restore (%d+)$')
if claim and tonumber(claim) > tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], 'restore ' .. ARGV[1], 'PX', 600000)
local ttl, answer = {}, {}
for i = 3, #ARGV do
  ttl[i], answer[i] = string.match(ARGV[i], '^(%d+) (.+)$')
end
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], answer[i] .. ' ' .. ARGV[1], 'PX', ttl[i])
end
return 1
