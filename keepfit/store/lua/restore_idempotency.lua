-- restore_idempotency: before a lost model is installed with requests from the row log, store the first answers to the
-- calls of these requests, so that repeated calls are recognized.
--
-- The caller claims the model with it for ten minutes. A later restore, which has a later generation, takes the claim
-- over, and install refuses the earlier restore. So the stored answers and the live model are of the same restore.
--
-- KEYS[1] state              hash of the model
-- KEYS[2] lock               lease that learns the model, or a restore that has claimed it
-- KEYS[3] new answers        hash of the first answers to the newest keys of a client, as accept stores them
-- KEYS[4] old answers        hash of those before them
-- ARGV[1] generation         integer that the restored model will have
-- ARGV[2] born               integer, generation in which the model was created
-- ARGV[3] answers max        number of answers in KEYS[3] at which they become the old ones
-- ARGV[4...] answers         for each key, oldest first: the 16 bytes of the digest that names its answer, and
--                            '<milliseconds until it expires> <digest> <first sequence> <count>'
--
-- returns 1 stored; 0 the model is live, or claimed for a later generation: nothing was changed
local live = redis.call('HGET', KEYS[1], 'generation')
if live and tonumber(live) >= tonumber(ARGV[2]) then
  return 0
end
local claim = string.match(redis.call('GET', KEYS[2]) or '', '^restore (%d+)$')
if claim and tonumber(claim) > tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], 'restore ' .. ARGV[1], 'PX', 600000)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 4, #ARGV do
  local ttl, answer = string.match(string.sub(ARGV[i], 17), '^(%d+) (.+)$')
  if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[3]) then
    redis.call('UNLINK', KEYS[4])
    redis.call('RENAME', KEYS[3], KEYS[4])
  end
  redis.call('HSET', KEYS[3], string.sub(ARGV[i], 1, 16), answer .. ' ' .. ARGV[1] .. string.format(' %.0f', now + ttl))
  -- A model that had left Redis comes back to keys that it still has.
  if redis.call('PTTL', KEYS[3]) < tonumber(ttl) then
    redis.call('PEXPIRE', KEYS[3], ttl)
  end
end
return 1
